"""Draws the pictures of the documentation: make pictures.

`pictures/NAME.dot` becomes `images/NAME.svg`, by Graphviz. What `nfnet demo` prints becomes `images/demo-light.svg` and
`images/demo-dark.svg`, by rich. Needs the program `dot`, and the right to make network namespaces.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

DOCS = Path(__file__).parent
SOURCES = DOCS / "pictures"
IMAGES = DOCS / "images"


# --- diagrams


class Colour(NamedTuple):
    """What a class of shapes looks like: fill and line, on light and on dark pages."""

    light: tuple[str, str]
    dark: tuple[str, str]


COLOURS = {
    "node": Colour(("#ffffff", "#5f6b7a"), ("#2a3038", "#9aa5b4")),
    "hook": Colour(("#e3edfb", "#3767b1"), ("#223553", "#84aef0")),
    "ours": Colour(("#e4f3e6", "#3a8046"), ("#1f3d26", "#7cc98a")),
    "store": Colour(("#f4eefb", "#7a4fa3"), ("#382a4a", "#c3a0e6")),
    "loss": Colour(("#fbe9e5", "#a33b22"), ("#4a251c", "#f0997f")),
}
TEXT = ("#1f2733", "#e6e9ee")
PAGE = ("#fbfbfc", "#1d2126")
LINE = ("#5f6b7a", "#9aa5b4")


def style() -> str:
    """The style sheet of a diagram; dark where the reader's system is."""

    def rules(index: int) -> str:
        shapes = ".{0} path, .{0} polygon, .{0} ellipse {{ fill: {1}; stroke: {2} }}"
        lines = [shapes.format(name, *colour[index]) for name, colour in COLOURS.items()]
        lines.append(
            f".plain path, .plain polygon {{ fill: none; stroke: none }} .zone path {{ stroke: {LINE[index]} }}"
        )
        lines.append(
            f".edge path {{ stroke: {LINE[index]} }} .edge polygon {{ fill: {LINE[index]}; stroke: {LINE[index]} }}"
        )
        lines.append(f"text {{ fill: {TEXT[index]} }} .page {{ fill: {PAGE[index]} }}")
        return "\n".join(lines)

    font = 'text { font-family: system-ui, "DejaVu Sans", sans-serif } .edge path, .zone path { fill: none }'
    return f"<style>\n{font}\n{rules(0)}\n@media (prefers-color-scheme: dark) {{\n{rules(1)}\n}}\n</style>"


def draw(source: Path) -> None:
    """Draw a diagram; its first line, a comment, is its title."""
    title = source.read_text().partition("\n")[0].removeprefix("// ")
    svg = subprocess.run(["dot", "-Tsvg", source], check=True, capture_output=True, text=True).stdout
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<title>.*?</title>\n?", "", svg)
    svg = re.sub(r'<polygon fill="white"[^>]*points="([^"]*)"/>', r'<polygon class="page" points="\1"/>', svg, count=1)
    svg = re.sub(r' (?:fill|stroke|font-family)="[^"]*"', "", svg)
    svg = re.sub(r"(<svg[^>]*>)", rf"\1\n<title>{title}</title>\n{style()}", svg, count=1, flags=re.DOTALL)
    (IMAGES / source.with_suffix(".svg").name).write_text(svg)


# --- what a terminal shows

LIGHT = TerminalTheme(
    (251, 251, 252),
    (31, 39, 51),
    [
        (31, 39, 51),
        (163, 59, 34),
        (42, 122, 58),
        (138, 97, 0),
        (40, 90, 170),
        (122, 79, 163),
        (0, 110, 120),
        (95, 107, 122),
    ],
)
DARK = TerminalTheme(
    (29, 33, 38),
    (230, 233, 238),
    [
        (29, 33, 38),
        (240, 153, 127),
        (124, 201, 138),
        (224, 192, 104),
        (132, 174, 240),
        (195, 160, 230),
        (110, 200, 208),
        (154, 165, 180),
    ],
)
_SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>nfnet demo</title>
<style>
.{unique_id}-matrix {{ font: {char_height}px "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre }}
{styles}
</style>
<defs>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def run(*command: str) -> str:
    """Return what a command prints on a terminal, colours included."""
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment["TERM"] = "xterm"
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, close_fds=True, env=environment)
    os.close(theirs)
    printed = b""
    try:
        while chunk := os.read(ours, 4096):
            printed += chunk
    except OSError:  # EIO: the other side is closed
        pass
    finally:
        os.close(ours)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed:\n{printed.decode()}")
    return printed.decode().replace("\r\n", "\n")


def picture_demo() -> None:
    """The first packets of the demo: those over UDP."""
    printed = run(str(Path(sys.executable).with_name("nfnet")), "demo")
    lines = printed.split("\n")
    first, end = (next(number for number, line in enumerate(lines) if word in line) for word in ("UDP ", "TCP "))
    text = Text.from_ansi("\n".join(["$ nfnet demo", *lines[first:end]]).rstrip())
    for name, theme in (("light", LIGHT), ("dark", DARK)):
        with open(os.devnull, "w") as nowhere:
            width = max(map(len, text.plain.split("\n"))) + 1
            console = Console(record=True, file=nowhere, width=width, color_system="truecolor", force_terminal=True)
            console.print(text)
            console.save_svg(
                str(IMAGES / f"demo-{name}.svg"), title="", theme=theme, code_format=_SVG, unique_id="demo"
            )


if __name__ == "__main__":
    for path in sorted(SOURCES.glob("*.dot")):
        draw(path)
    picture_demo()
