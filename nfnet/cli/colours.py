"""Colours in a terminal."""

from __future__ import annotations

import os
import sys

from .._io.system import WINDOWS

_CODES = {"bold": 1, "red": 31, "green": 32, "yellow": 33, "magenta": 35}  # of ECMA-48


def paint(text: str, colour: str) -> str:
    """Return a text in a colour, or unchanged if standard output does not show colours.

    Standard output shows colours if it is a terminal, unless the environment variable NO_COLOR is set to a text that
    is not empty, or TERM is "dumb". Windows' consoles do not all understand the codes, so they get none.
    """
    if WINDOWS or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return text
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"
