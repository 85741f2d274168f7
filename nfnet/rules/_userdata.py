"""The data that the kernel stores with a rule: a comment for nft, or the rule of this library to which it belongs.

Userdata is a list of items: a type, a length and data (libnftnl/udata.h).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT
_RULE = 0xF0  # a type of our own, which nft does not show
_MAX_SIZE = 254  # of the data of one item: the kernel keeps 256 bytes


def comment(text: str) -> bytes:
    """Pack a comment, which nft shows."""
    data = text.encode() + b"\0"
    return bytes([_COMMENT, len(data)]) + data


def comments(userdata: bytes) -> Iterator[str]:
    """Yield the comments in the userdata of any rule."""
    while len(userdata) >= 2:
        kind, size = userdata[:2]
        if kind == _COMMENT:
            yield userdata[2 : 2 + size].rstrip(b"\0").decode("utf-8", "replace")
        userdata = userdata[2 + size :]


def pack(number: int, words: str) -> bytes:
    """Pack the number of a rule in its set, from 0 on, and its words on the command line; see `fitted`."""
    data = f"{number} {words}".encode("utf-8", "surrogateescape")
    return bytes([_RULE, len(data)]) + data


def unpack(userdata: bytes) -> tuple[int, str] | None:
    """Return the number and the words that `pack` packed; None for rules of other programs."""
    if len(userdata) < 2 or userdata[0] != _RULE or userdata[1] != len(userdata) - 2:
        return None
    number, _, words = userdata[2:].decode("utf-8", "surrogateescape").partition(" ")
    return (int(number), words) if number.isdecimal() and number.isascii() else None


def fitted(words: Sequence[str]) -> str:
    """Join words so that they fit into the data of `pack`; if necessary, shorten the longest lists of values."""
    room = _MAX_SIZE - 5  # after the number of the rule
    every = [word.split(",") for word in words]
    kept = [values[:room] for values in every]  # more cannot fit

    def text() -> bytes:
        parts = []
        for values, shown in zip(every, kept, strict=True):
            more = [f"({len(values) - len(shown)} more)"] if len(shown) < len(values) else []
            parts.append(",".join([*shown, *more]))
        return " ".join(parts).encode("utf-8", "surrogateescape")

    while len(text()) > room:
        longest = max(kept, key=len)
        if len(longest) == 1:
            return text()[: room - 4].decode("utf-8", "ignore") + " ..."
        longest.pop()
    return text().decode("utf-8", "surrogateescape")
