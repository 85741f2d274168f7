"""Text that somebody else has chosen: whoever sent a packet, wrote a rule, named an interface, a process or a file."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with nothing in it that a terminal would obey: such characters are shown as their bytes, ``[1b]``.

    These are control characters, line ends among them, what turns the direction of writing, and surrogates, which stand
    for bytes that are no UTF-8.
    """
    return "".join(c if c.isprintable() else _bytes_of(c).hex(" ").join("[]") for c in text)


def _bytes_of(character: str) -> bytes:
    try:
        return character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return character.encode("utf-8", "surrogatepass")
