"""Text for people, made safe: senders of packets, and other programs, choose parts of it."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return the text with each character that controls a terminal replaced by its bytes, such as ``[1b]``.

    These are control characters, including line ends, characters that change the direction of writing, and surrogates,
    which stand for bytes that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _bytes_of(c).hex(" ").join("[]") for c in text)


def _bytes_of(character: str) -> bytes:
    try:
        return character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that does not stand for a byte
        return character.encode("utf-8", "surrogatepass")


def counted(count: int, what: str) -> str:
    """Return a count with its noun: "1 packet", "2 packets"."""
    return f"{count} {what}{'' if count == 1 else 's'}"
