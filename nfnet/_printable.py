"""Text for people; also what somebody else has chosen, who sent a packet, say, or named an interface or a process."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with nothing in it that a terminal would obey: such characters are shown as their bytes, ``[1b]``.

    These are control characters, line ends among them, what turns the direction of writing, and surrogates, which stand
    for bytes that are no UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _bytes_of(c).hex(" ").join("[]") for c in text)


def _bytes_of(character: str) -> bytes:
    try:
        return character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return character.encode("utf-8", "surrogatepass")


def counted(count: int, what: str) -> str:
    """1 packet, 2 packets."""
    return f"{count} {what}{'' if count == 1 else 's'}"
