"""Writes the tables of link types and of compared captures in docs/captures.md: python docs/link_types.py

The numbers are those that tests/compare_captures.py stored in docs/captures.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from nfnet.captures import LinkType
from nfnet.captures._link_layer import LINK_LAYERS

PAGE = Path(__file__).with_name("captures.md")
RESULTS = Path(__file__).with_name("captures")
END = "<!-- end -->\n"


def suites() -> dict[str, dict[str, Any]]:
    """The numbers of each test suite, by its name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def table() -> str:
    """A row for each link layer, with all numbers that it has, and how many packets were compared."""
    same: Counter[int] = Counter()
    differ: Counter[int] = Counter()
    for suite in suites().values():
        for kind, (packets, frames) in suite["link types"].items():
            same[int(kind)] += packets
            differ[int(kind)] += frames
    rows: dict[str, list[int]] = {}
    for number, layer in LINK_LAYERS.items():
        rows.setdefault(layer.what, []).append(int(number))
    lines = ["| link type | number | what it is | packets as in tshark | others |", "| --- | --- | --- | --- | --- |"]
    for what, numbers in rows.items():
        name = LinkType(numbers[0]).name
        counts = [f"{sum(count[number] for number in numbers):,}" for count in (same, differ)]
        lines.append(f"| {name} | {', '.join(map(str, numbers))} | {what} | {' | '.join(counts)} |")
    return "\n".join(lines) + "\n"


def compared() -> str:
    """A row for each test suite."""
    lines = ["| test suite of | captures | without a difference | frames without a difference | with one |"]
    lines.append("| --- " * 5 + "|")
    for name, suite in suites().items():
        differ = sum(frames for _, frames in suite["link types"].values())
        lines.append(f"| {name} | {suite['files']:,} | {suite['agree']:,} | {suite['frames']:,} | {differ:,} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page, with the tables as they are now."""
    text = PAGE.read_text()
    for name, content in (("link types", table()), ("captures compared", compared())):
        begin = f"<!-- {name}: written by docs/link_types.py -->\n"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{content}\n{END}{rest.partition(END)[2]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
