"""Tables of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .._printable import printable

_WIDEST = 60  # characters of a column


def plain(value: Any) -> Any:
    """Return a value of a database as one that JSON can represent."""
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, (str, int, float, list, dict)) else str(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Yield the lines of a table, with numbers aligned to the right."""
    rows = list(rows)
    texts = [list(columns), *([_text(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts)]
    numbers = [all(isinstance(row[place], (int, float)) for row in rows) for place in range(len(widths))]
    for text in texts:
        cells = (cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(text, widths, numbers))
        yield "  ".join(cells).rstrip()


def _text(value: Any) -> str:
    text = "-" if value is None else printable(str(plain(value)))
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."
