"""Writes the table of link types in docs/captures.md from the code's own: python docs/link_types.py"""

from __future__ import annotations

from pathlib import Path

from nfnet.captures import LinkType
from nfnet.captures._link_layer import LINK_LAYERS

PAGE = Path(__file__).with_name("captures.md")
BEGIN, END = "<!-- written by docs/link_types.py -->\n", "<!-- end -->\n"


def table() -> str:
    """A row for each link layer, with all numbers that it has."""
    rows: dict[str, list[int]] = {}
    for number, layer in LINK_LAYERS.items():
        rows.setdefault(layer.what, []).append(int(number))
    lines = ["| link type | number | what it is |", "| --- | --- | --- |"]
    for what, numbers in rows.items():
        name = LinkType(numbers[0]).name
        lines.append(f"| {name} | {', '.join(map(str, numbers))} | {what} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page, with the table as it is now."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page())
