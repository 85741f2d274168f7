"""What may be asked for of packets, as the user gives it: read, checked, and made into spans of numbers."""

from __future__ import annotations

import grp
import ipaddress
import os
import pwd
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from .._arguments import check, check_choice, wrong_type
from ..errors import ArgumentError

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")


class NoWordsError(Exception):
    """A program has no words for something; the message says for what."""


def check_words(what: str, text: str, without: str = "") -> None:
    """Raises NoWordsError if ``text`` is not one line, or has one of the characters ``without``."""
    if not text.isprintable():
        raise NoWordsError(f"{what} with characters that cannot be printed")
    for character in without:
        if character in text:
            raise NoWordsError(f"{what} with {character} in it")


class Span(NamedTuple):
    """Values in a row, as numbers."""

    first: int
    last: int
    version: int | None = None
    """4 or 6 if packets of the other one cannot have them."""


Spans = tuple[Span, ...]


def read_list(name: str, value: Any, read: Callable[[str, Any], Iterable[Span]]) -> list[Span]:
    """The spans of a value, or of several values in a list or the like. Raises ArgumentError."""
    alone = (str, bytes, range, ipaddress.IPv4Network, ipaddress.IPv6Network)  # which can be iterated over, too
    if isinstance(value, alone) or not isinstance(value, Iterable):
        return list(read(name, value))
    found = [span for one in value for span in read(name, one)]
    if not found:
        raise ArgumentError(f"{name} is empty, and must have at least one value; or leave it out")
    return found


def of_version(spans: Iterable[Span], version: int | None) -> list[Span]:
    """Those that packets of an IP version can have; of those of both, if that is None."""
    return [Span(first, last) for first, last, of in spans if version is None or of in (None, version)]


def joined(spans: Iterable[Span], touching: bool) -> Spans:
    """The same, sorted; those that overlap become one, and so do those that touch, if that is said."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.version or 0, span.first, span.last)):
        last = found[-1] if found else None
        if last is not None and last.version == span.version and span.first <= last.last + touching:
            found[-1] = last._replace(last=max(last.last, span.last))
        else:
            found.append(span)
    return tuple(found)


def are_covered(spans: Iterable[Span], by: Sequence[Span]) -> bool:
    """Whether all of these values are among those."""
    return all(any(other.first <= span.first and span.last <= other.last for other in by) for span in spans)


# --- numbers


def number_range(name: str, value: Any, most: int, what: str) -> Span:
    """A number, a range of them, or text like "1024-2047". Raises ArgumentError."""
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
    """A number on a command line. Raises ArgumentError."""
    try:
        return int(text, 0)
    except ValueError:
        raise ArgumentError(f"{text!r} is no number") from None


def number_or_name(text: str) -> int | str:
    """Either on a command line."""
    return number(text) if text.isdecimal() else text


def span_text(first: int, last: int, separator: str = "-") -> str:
    """Numbers in a row."""
    return str(first) if first == last else f"{first}{separator}{last}"


# --- addresses

Address = str | ipaddress.IPv4Address | ipaddress.IPv6Address | ipaddress.IPv4Network | ipaddress.IPv6Network
_KINDS = (ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network)


def read_addresses(name: str, value: Any) -> Iterator[Span]:
    """An address, a network, or text like "192.0.2.1-192.0.2.9". Raises ArgumentError."""
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
        raise ArgumentError(f"{what}: {error}") from None
    if first.version != last.version or int(first) > int(last):
        raise ArgumentError(f"{name} is {value!r}, which ends before it begins")
    yield Span(int(first), int(last), first.version)


def address(value: int, version: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """One of its version, of which 1.0.0.1 has higher numbers than ::1."""
    return ipaddress.IPv4Address(value) if version == 4 else ipaddress.IPv6Address(value)


def prefix_length(span: Span, version: int) -> int | None:
    """If the span is a network, the length of its prefix."""
    bits = 32 if version == 4 else 128
    size = span.last - span.first + 1
    if size & (size - 1) or span.first % size:
        return None
    return bits - (size.bit_length() - 1)


def addresses_text(span: Span, version: int) -> str:
    """An address, a network, or two addresses with - between them."""
    length = prefix_length(span, version)
    first = address(span.first, version)
    if length is None:
        return f"{first}-{address(span.last, version)}"
    return str(first) if span.first == span.last else f"{first}/{length}"


# --- interfaces

INTERFACE = "the name of an interface"
IFNAMSIZ = 16
# No name has these (dev_valid_name in net/core/dev.c): white space, which for the kernel is Latin-1, and two others.
_NEVER_IN_NAMES = b"\0\t\n\v\f\r \xa0/:"


def read_interface(name: str, value: Any) -> Iterator[Span]:
    """A name, or the beginning of some. Raises ArgumentError."""
    if not isinstance(value, str):
        raise wrong_type(name, value, f"{INTERFACE}, or a list of such")
    try:
        data = os.fsencode(value)
    except UnicodeEncodeError:  # surrogates that no file name gives
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
    """The name, or how it begins, with * at the end."""
    data = span.first.to_bytes(IFNAMSIZ, "big").rstrip(b"\0")
    return os.fsdecode(data if span.first == span.last else data + b"*")


def nft_interface(name: str) -> str:
    """The name of an interface, or how it begins, for nft, where \\* is a letter. Raises NoWordsError."""
    check_words(INTERFACE, name, '"')
    if name.endswith("\\*"):
        raise NoWordsError("names of interfaces that begin so, for \\* is a letter there")
    return f'"{name}"'


# --- users and groups


def read_user(name: str, value: Any) -> Iterator[Span]:
    """A user's number or name, or a range of numbers. Raises ArgumentError."""
    return _read_account(name, value, "user", lambda text: pwd.getpwnam(text).pw_uid)


def read_group(name: str, value: Any) -> Iterator[Span]:
    """A group's number or name, or a range of numbers. Raises ArgumentError."""
    return _read_account(name, value, "group", lambda text: grp.getgrnam(text).gr_gid)


def _read_account(name: str, value: Any, what: str, find: Callable[[str], int]) -> Iterator[Span]:
    first, _, last = value.partition("-") if isinstance(value, str) else ("", "", "")
    if isinstance(value, str) and not (_is_number(first) and _is_number(last)):
        try:
            value = find(value)
        except (KeyError, ValueError):  # ValueError: a NUL or a surrogate in it
            raise ArgumentError(f"{name} is {value!r}, and there is no {what} of that name") from None
    yield number_range(name, value, 0xFFFFFFFE, f"the number of a {what}, or the name")


# --- choices


def read_choice(name: str, value: Any, choices: dict[str, Span]) -> Span:
    """One of some words. Raises ArgumentError."""
    check_choice(name, value, tuple(choices))
    return choices[value]
