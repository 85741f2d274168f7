"""Functions that check values of arguments, and convert them to spans of numbers and back to text."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from .._arguments import check, check_choice, network_error, wrong_type
from .._io.system import group_number, user_number
from ..errors import ArgumentError

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")


class NoWordsError(Exception):
    """nft or iptables has no words for a part of a rule. The message names the part."""


def check_words(what: str, text: str, without: str = "") -> None:
    """Raise NoWordsError if ``text`` is not one line, or contains one of the characters in ``without``."""
    if not text.isprintable():
        raise NoWordsError(f"{what} with characters that cannot be printed")
    for character in without:
        if character in text:
            raise NoWordsError(f"{what} with {character} in it")


class Span(NamedTuple):
    """A range of values, as numbers."""

    first: int
    last: int
    version: int | None = None
    """4 or 6 if only packets of that IP version can have the values."""


Spans = tuple[Span, ...]


def read_list(name: str, value: Any, read: Callable[[str, Any], Iterable[Span]]) -> list[Span]:
    """Return the spans of a value or of an iterable of values, each converted by ``read``. Raises ArgumentError."""
    alone = (
        str,
        bytes,
        range,
        ipaddress.IPv4Network,
        ipaddress.IPv6Network,
    )  # single values, although they are iterable
    if isinstance(value, alone) or not isinstance(value, Iterable):
        return list(read(name, value))
    found = [span for one in value for span in read(name, one)]
    if not found:
        raise ArgumentError(f"{name} is empty, and must have at least one value; or leave it out")
    return found


def of_version(spans: Iterable[Span], version: int | None) -> list[Span]:
    """Return the spans that packets of an IP version can have; with None, those of both versions."""
    return [Span(first, last) for first, last, of in spans if version is None or of in (None, version)]


def joined(spans: Iterable[Span], merge_adjacent: bool) -> Spans:
    """Sort spans and merge those that overlap; with ``merge_adjacent`` also those without a gap between them."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.version or 0, span.first, span.last)):
        last = found[-1] if found else None
        if last is not None and last.version == span.version and span.first <= last.last + merge_adjacent:
            found[-1] = last._replace(last=max(last.last, span.last))
        else:
            found.append(span)
    return tuple(found)


def are_covered(spans: Iterable[Span], by: Sequence[Span]) -> bool:
    """Return True if each of the spans is inside one of the spans ``by``."""
    return all(any(other.first <= span.first and span.last <= other.last for other in by) for span in spans)


# --- numbers


def number_range(name: str, value: Any, most: int, what: str) -> Span:
    """Convert a number, a range, or text like "1024-2047". Raises ArgumentError."""
    if isinstance(value, str):
        first, dash, last = value.partition("-")
        if not _is_number(first) or not _is_number(last if dash else first):
            raise ArgumentError(f"{name} is {value!r} and must be {what}, or two like 1024-2047")
        if dash and int(first) > int(last):
            raise ArgumentError(f"{name} is {value!r}, which ends before it begins")
        value = range(int(first), int(last if dash else first) + 1)
    if not isinstance(value, range):
        value = check(name, value, 0, most, what=f"{what}, a range of them, text like '1024-2047', or a list of such")
        return Span(value, value)
    if value.step != 1 or not value:
        raise ArgumentError(f"{name} is {value} and must be {what}, or a range of them without gaps")
    return Span(check(name, value[0], 0, most), check(name, value[-1], 0, most))


def _is_number(text: str) -> bool:
    # Python refuses to read numbers of more than 4,300 digits.
    return text.isdecimal() and text.isascii() and len(text) < 20


def number(text: str) -> int:
    """Parse a number from the command line. Raises ArgumentError."""
    try:
        return int(text, 0)
    except ValueError:
        raise ArgumentError(f"{text!r} is no number") from None


def number_or_name(text: str) -> int | str:
    """Parse a number or a name from the command line."""
    return number(text) if text.isdecimal() else text


def span_text(first: int, last: int, separator: str = "-") -> str:
    """Return a number, or a range with the separator."""
    return str(first) if first == last else f"{first}{separator}{last}"


# --- addresses

Address = str | ipaddress.IPv4Address | ipaddress.IPv6Address | ipaddress.IPv4Network | ipaddress.IPv6Network
_KINDS = (ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network)


def read_addresses(name: str, value: Any) -> Iterator[Span]:
    """Convert an address, a network, or text like "192.0.2.1-192.0.2.9". Raises ArgumentError."""
    what = f"{name} must be an address, a network, or two addresses with - between them"
    if not isinstance(value, (str, *_KINDS)):
        raise wrong_type(name, value, "an address or a network, as text or of the module ipaddress, or a list of such")
    if "%" in str(value):
        raise ArgumentError(f"{what}, without a zone: name the interface by in_interface or out_interface")
    start, dash, end = str(value).partition("-")
    try:
        if not dash:
            network = ipaddress.ip_network(value)
            yield Span(int(network[0]), int(network[-1]), network.version)
            return
        first, last = ipaddress.ip_address(start.strip()), ipaddress.ip_address(end.strip())
    except ValueError as error:
        raise ArgumentError(f"{what}: {str(error) if dash else network_error(value, error)}") from None
    if first.version != last.version or int(first) > int(last):
        raise ArgumentError(f"{name} is {value!r}, which ends before it begins")
    yield Span(int(first), int(last), first.version)


def address(value: int, version: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the address with a number in an IP version."""
    return ipaddress.IPv4Address(value) if version == 4 else ipaddress.IPv6Address(value)


def prefix_length(span: Span, version: int) -> int | None:
    """Return the prefix length if the span is a network; None if it is not."""
    bits = 32 if version == 4 else 128
    size = span.last - span.first + 1
    if size & (size - 1) or span.first % size:
        return None
    return bits - (size.bit_length() - 1)


def addresses_text(span: Span, version: int) -> str:
    """Return an address, a network, or two addresses with - between them, as text."""
    length = prefix_length(span, version)
    first = address(span.first, version)
    if length is None:
        return f"{first}-{address(span.last, version)}"
    return str(first) if span.first == span.last else f"{first}/{length}"


# --- interfaces

INTERFACE = "the name of an interface"
IFNAMSIZ = 16
# The kernel allows none of these bytes (dev_valid_name in net/core/dev.c): NUL, white space of Latin-1, "/" and ":".
_NEVER_IN_NAMES = b"\0\t\n\v\f\r \xa0/:"


def read_interface(name: str, value: Any) -> Iterator[Span]:
    """Convert the name of an interface, or the beginning of names. Raises ArgumentError."""
    if not isinstance(value, str):
        raise wrong_type(name, value, f"{INTERFACE}, or a list of such")
    try:
        data = os.fsencode(value)
    except UnicodeEncodeError:  # surrogates that `os.fsdecode` does not make
        data = b""
    if not 0 < len(data) < IFNAMSIZ or value in ("*", ".", "..") or any(byte in _NEVER_IN_NAMES for byte in data):
        raise ArgumentError(
            f"{name} is {value!r} and must be the name of an interface, at most 15 bytes, or begin one: eth*"
        )
    if data.endswith(b"*"):
        first, last = (int.from_bytes(data[:-1].ljust(IFNAMSIZ, filler), "big") for filler in (b"\0", b"\xff"))
    else:
        first = last = int.from_bytes(data.ljust(IFNAMSIZ, b"\0"), "big")
    yield Span(first, last)


def interface_text(span: Span) -> str:
    """Return the name of an interface, or the beginning of names with * at the end."""
    data = span.first.to_bytes(IFNAMSIZ, "big").rstrip(b"\0")
    return os.fsdecode(data if span.first == span.last else data + b"*")


def nft_interface(name: str) -> str:
    """Quote the name of an interface, or the beginning of names, for nft. Raises NoWordsError."""
    check_words(INTERFACE, name, '"')
    if name.endswith("\\*"):
        raise NoWordsError("names of interfaces that begin with a name that ends in \\, because \\* means a literal *")
    return f'"{name}"'


# --- users and groups


def read_user(name: str, value: Any) -> Iterator[Span]:
    """Convert a user's number or name, or a range of numbers. Raises ArgumentError."""
    return _read_account(name, value, "user", user_number)


def read_group(name: str, value: Any) -> Iterator[Span]:
    """Convert a group's number or name, or a range of numbers. Raises ArgumentError."""
    return _read_account(name, value, "group", group_number)


def _read_account(name: str, value: Any, what: str, find: Callable[[str], int]) -> Iterator[Span]:
    first, _, last = value.partition("-") if isinstance(value, str) else ("", "", "")
    if isinstance(value, str) and not (_is_number(first) and _is_number(last)):
        try:
            value = find(value)
        except (KeyError, ValueError):  # ValueError: the name has a NUL or a surrogate
            raise ArgumentError(f"{name} is {value!r}, and there is no {what} of that name") from None
    yield number_range(name, value, 0xFFFFFFFE, f"the number of a {what}, or the name")


# --- choices


def read_choice(name: str, value: Any, choices: dict[str, Span]) -> Span:
    """Return the span of one of ``choices``. Raises ArgumentError."""
    check_choice(name, value, tuple(choices))
    return choices[value]
