"""Puts each page of the documentation as plain Markdown beside its HTML, and their list in llms.txt: make docs.

python docs/plain.py build/docs/markdown build/docs/html
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

INDEX = Path(__file__).with_name("index.md")


def without_comments(text: str) -> str:
    """Return a page without what it holds for its test."""
    return re.sub(r"<!--.*?-->\n+", "", text, flags=re.DOTALL)


def sections() -> dict[str, list[str]]:
    """Return the pages under each caption of the index, in order."""
    found = re.findall(r"```\{toctree\}\n:caption: (.+)\n:maxdepth: \d+\n\n((?:\S+\n)+)```", INDEX.read_text())
    return {caption: pages.split() for caption, pages in found}


def entry(page: str, text: str) -> str:
    """Return the line of a page in llms.txt: its title, and the first sentence of what stands before the first part."""
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    beginning = re.split(r"^#+ ", text.partition("\n\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    prose = re.search(
        r"(?:\A|\n\n)(?!How to use)([A-Z`*\[](?:(?!\n\n|\n:).)+?(?:[.](?=\s)|:?(?=\n\n)))", beginning, re.DOTALL
    )
    assert title is not None, page
    first = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(prose[1].split())) if prose else ""
    return f"- [{title[1]}]({page}.md)" + (f": {first.rstrip(' :')}" if first else "")


def main(source: Path, target: Path) -> None:
    """Write the pages and their list into ``target``."""
    lines = [
        "# nfnet",
        "",
        "> Deciding and logging packets from Python on Linux: NFQUEUE and NFLOG without a C library.",
        "",
    ]
    texts = {str(path.relative_to(source))[:-3]: without_comments(path.read_text()) for path in source.rglob("*.md")}
    for page, text in texts.items():
        (target / f"{page}.md").write_text(text)
    for caption, pages in sections().items():
        lines += [f"## {caption}", "", *(entry(page, texts[page]) for page in pages), ""]
    (target / "llms.txt").write_text("\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
