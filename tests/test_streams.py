"""Beginnings of TCP streams, and the server names in them; OpenSSL writes the messages, and tshark reads them, too."""

from __future__ import annotations

import contextlib
import random
import ssl
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfnet import inet
from nfnet.captures import LinkType, Writer
from nfnet.errors import ArgumentError
from nfnet.inet import INCOMPLETE, Beginnings, TcpFlag, server_name
from nfnet.inet._tls import MAX_HELLO
from nfnet.testing import tcp, udp

from .memory import traced
from .test_tshark import tshark

__all__ = ["tshark"]

SYN, ACK, FIN, RST = (int(flag) for flag in (TcpFlag.SYN, TcpFlag.ACK, TcpFlag.FIN, TcpFlag.RST))
NAME = "www.example.com"


# --- streams


def syn(seq: int = 999, **more: Any) -> bytes:
    return tcp(flags=SYN, seq=seq, **more)


def began(**limits: int) -> Beginnings:
    """Collect a stream whose first byte has number 1000."""
    beginnings = Beginnings(**limits)
    assert beginnings.add(syn()) == b""
    return beginnings


@st.composite
def segmented(draw: st.DrawFn) -> tuple[bytes, int, list[tuple[int, int]]]:
    """Data, the number of their first byte, and segments in any order that cover them, some of it several times."""
    data = draw(st.binary(min_size=1, max_size=300))
    start = draw(st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(-300, 300).map(lambda n: n & 0xFFFFFFFF)))
    places = st.integers(0, len(data))
    segments = list(pairwise(sorted({0, len(data), *draw(st.lists(places, max_size=20))})))
    segments += draw(st.lists(st.tuples(places, places).map(lambda pair: (min(pair), max(pair))), max_size=10))
    return data, start, draw(st.permutations(segments))


def of(data: bytes, start: int, segment: tuple[int, int], **more: Any) -> bytes:
    return tcp(data[slice(*segment)], seq=(start + segment[0]) & 0xFFFFFFFF, **more)


@given(segmented(), st.integers(1, 400), st.sampled_from([{}, {"source": "fd00::1", "destination": "fd00::2"}]))
def test_any_cut_and_any_order_give_the_same_beginning(
    what: tuple[bytes, int, list[tuple[int, int]]], limit: int, ends: dict[str, str]
) -> None:
    data, start, segments = what
    beginnings = Beginnings(max_bytes=limit)
    assert beginnings.add(syn((start - 1) & 0xFFFFFFFF, **ends)) == b""
    there: set[int] = set()
    for segment in segments:
        there |= set(range(*segment))
        expected = next((place for place in range(limit) if place not in there), limit)
        assert beginnings.add(of(data, start, segment, **ends)) == data[:expected]
    assert beginnings.add(of(data, start, (0, 0), **ends)) == data[:limit]


@given(segmented(), st.randoms(use_true_random=False))
def test_of_bytes_that_differ_the_first_count(
    what: tuple[bytes, int, list[tuple[int, int]]], chance: random.Random
) -> None:
    size, start, segments = len(what[0]), what[1], what[2]
    beginnings = Beginnings()
    beginnings.add(syn((start - 1) & 0xFFFFFFFF))
    first: dict[int, int] = {}
    for segment in segments:
        data = chance.randbytes(size)
        for place in range(*segment):
            first.setdefault(place, data[place])
        beginnings.add(of(data, start, segment))
    assert beginnings.add(of(b"", start, (0, 0))) == bytes(first[place] for place in range(size))


def test_what_a_handler_sees() -> None:
    beginnings = began()
    assert beginnings.add(tcp(b"world", seq=1006)) == b""
    assert beginnings.add(tcp(b"hello ", seq=1000)) == b"hello world"
    assert beginnings.add(tcp(b"!", seq=1011)) == b"hello world!"
    assert beginnings.add(tcp(b"hello ", seq=1000)) == b"hello world!", "sent once more"
    assert beginnings.add(tcp(b"", seq=1012)) == b"hello world!", "an acknowledgement"
    assert beginnings.add(tcp(b"\0", seq=999)) == b"hello world!", "a keep-alive of one byte"


def test_data_in_the_syn() -> None:
    """TCP Fast Open; a server that did not accept the data gets them again."""
    beginnings = Beginnings()
    first = tcp(b"hello", flags=SYN, seq=0xFFFFFFFF)
    assert beginnings.add(first) == b"hello"
    assert beginnings.add(syn(0xFFFFFFFF)) == b"hello", "the same SYN without data"
    assert beginnings.add(tcp(b"hello world", seq=0)) == b"hello world"
    assert beginnings.add(first) == b"hello world"


def test_sequence_numbers_that_wrap() -> None:
    for first in (0, 1, 3, 0xFFFFFFFF, 0xFFFFFFFE):
        beginnings = Beginnings()
        beginnings.add(syn((first - 1) & 0xFFFFFFFF))
        assert beginnings.add(tcp(b"world", seq=(first + 6) & 0xFFFFFFFF)) == b""
        assert beginnings.add(tcp(b"12345hello", seq=(first - 5) & 0xFFFFFFFF)) == b"hello"
        assert beginnings.add(tcp(b" ", seq=(first + 5) & 0xFFFFFFFF)) == b"hello world"


def test_what_is_far_away_takes_no_room() -> None:
    beginnings = began(max_bytes=100)
    beginnings.add(tcp(b"lo", seq=1003))
    with traced() as memory:
        for seq in (1100, 1 << 28, (1 << 31) + 999, 996, 990, 0, 0xF0000000):
            for data in (b"", b"x", b"1234"):
                assert beginnings.add(tcp(data, seq=seq)) == b""
        assert beginnings.add(tcp(b"hel", seq=1000)) == b"hello"
        assert memory()[1] < 1 << 20


def test_the_two_directions_are_two_streams() -> None:
    back: dict[str, Any] = {
        "source": "192.0.2.2", "destination": "192.0.2.1", "source_port": 80, "destination_port": 40000,
    }  # fmt: skip
    beginnings = began()
    assert beginnings.add(tcp(flags=SYN | ACK, seq=5, **back)) == b""
    assert beginnings.add(tcp(b"question", seq=1000)) == b"question"
    assert beginnings.add(tcp(b"answer", seq=6, **back)) == b"answer"
    assert len(beginnings) == 2


@pytest.mark.parametrize(
    "end", [{"source": "192.0.2.9"}, {"destination": "192.0.2.9"}, {"source_port": 9}, {"destination_port": 9}], ids=str
)
def test_each_address_and_port_tells_streams_apart(end: dict[str, Any]) -> None:
    beginnings = began()
    assert beginnings.add(tcp(b"x", seq=1000, **end)) is None
    assert beginnings.add(syn(**end)) == b""
    assert beginnings.add(tcp(b"other", seq=1000, **end)) == b"other"
    assert beginnings.add(tcp(seq=1000)) == b""


UNKNOWN = {
    "another stream, whose SYN was not seen": tcp(b"x", seq=1000, source_port=40001),
    "a FIN of such a stream": tcp(b"x", seq=1000, source_port=40001, flags=FIN | ACK),
    "a SYN that is a reset, too": tcp(flags=SYN | RST, source_port=40001),
    "UDP": udp(b"x"),
    "no packet": b"",
    "a first fragment": tcp(b"x", seq=1000)[:6] + b"\x20" + tcp(b"x", seq=1000)[7:],
    "a later fragment": tcp(b"x", seq=1000)[:7] + b"\x01" + tcp(b"x", seq=1000)[8:],
    "half a header": tcp(b"x", seq=1000)[:30],
    "half of the data": tcp(b"0123456789", seq=1000)[:-5],
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_beginning(name: str) -> None:
    beginnings = began()
    assert beginnings.add(UNKNOWN[name]) is None
    assert len(beginnings) == 1
    assert beginnings.add(tcp(b"hello", seq=1000)) == b"hello", "and the others are what they were"


def test_only_what_is_missing_of_the_beginning_matters() -> None:
    """For instance a super-packet with a small copy_range."""
    beginnings = began(max_bytes=5)
    packet = tcp(b"0123456789", seq=1000)
    assert beginnings.add(packet[:-6]) is None
    assert beginnings.add(packet[:-5]) == b"01234"
    assert beginnings.add(tcp(b"0123456789", seq=1010)[:-6]) == b"01234"


def test_a_new_connection_between_the_same_ports() -> None:
    beginnings = began()
    assert beginnings.add(tcp(b"old", seq=1000)) == b"old"
    assert beginnings.add(syn(70000)) == b""
    assert beginnings.add(tcp(b"new", seq=70001)) == b"new"
    assert len(beginnings) == 1


@pytest.mark.parametrize("flags", [FIN | ACK, RST])
def test_an_ended_stream(flags: int) -> None:
    """Retransmitted data are recognized; afterwards the stream is the first to be forgotten."""
    beginnings = began(max_streams=2)
    assert beginnings.add(tcp(b"hello", seq=1000)) == b"hello"
    assert beginnings.add(syn(source_port=40001)) == b""
    assert beginnings.add(tcp(b" you", seq=1005, flags=flags)) == b"hello you"
    assert beginnings.add(tcp(b"hello", seq=1000)) == b"hello you"
    assert len(beginnings) == 2
    beginnings.add(syn(source_port=40002))
    assert (len(beginnings), beginnings.forgotten) == (2, 0)
    assert beginnings.add(tcp(b"hello", seq=1000)) is None
    assert beginnings.add(tcp(b"x", seq=1000, source_port=40001)) == b"x"


def test_an_ended_stream_that_begins_anew_is_open() -> None:
    beginnings = began(max_streams=2)
    beginnings.add(tcp(seq=1000, flags=RST))
    beginnings.add(syn(7))
    assert len(beginnings) == 1
    beginnings.add(syn(source_port=40001))
    assert (len(beginnings), beginnings.forgotten) == (2, 0)
    beginnings.add(syn(source_port=40002))
    assert (len(beginnings), beginnings.forgotten) == (2, 1)


def test_the_stream_that_has_been_silent_longest_is_forgotten() -> None:
    beginnings = Beginnings(max_streams=3)
    for port in (1, 2, 3):
        beginnings.add(syn(source_port=port))
    beginnings.add(tcp(b"x", seq=1000, source_port=1))
    beginnings.add(syn(source_port=4))
    assert (len(beginnings), beginnings.forgotten) == (3, 1)
    known = [port for port in (1, 2, 3, 4) if beginnings.add(tcp(b"x", seq=1000, source_port=port)) is not None]
    assert known == [1, 3, 4]


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_streams": 0}, {"max_bytes": 1 << 25}, {"max_streams": 1.5}])
def test_limits_that_cannot_be(limits: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="max_"):
        Beginnings(**limits)


def in_gaps(count: int) -> list[bytes]:
    """Single bytes with a gap before each, and then as many times all of it."""
    whole = tcp(bytes(count), seq=1000)
    return [tcp(b"x", seq=1000 + place) for place in range(1, count, 2)] + [whole] * (count // 2)


def backwards(count: int) -> list[bytes]:
    return [tcp(b"x", seq=1000 + place) for place in reversed(range(count))]


HOSTILE: dict[str, Callable[[int], list[bytes]]] = {
    "byte by byte, backwards": backwards,
    "a gap before each byte, and then many wholes": in_gaps,
    "wholes that lack the first byte": lambda count: [tcp(bytes(count - 1), seq=1001)] * count,
}


def lines(function: Callable[[], object], within: tuple[str, ...]) -> int:
    """Count the executed lines of these functions: a measure of their time without C code."""
    count = 0

    def trace(frame: Any, event: str, argument: object) -> Any:
        nonlocal count
        if frame.f_code.co_name not in within:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("name", HOSTILE)
def test_a_segment_costs_the_same_however_the_sender_cuts(name: str) -> None:
    packets, beginnings = HOSTILE[name](2000), began()
    executed = lines(lambda: [beginnings.add(packet) for packet in packets], ("put",))
    assert len(packets) < executed <= 30 * len(packets)


def test_memory_is_bounded_as_documented() -> None:
    """Memory that senders could use: all but the first byte of each stream."""
    packets = [tcp(bytes(1400), seq=1001 + place) for place in range(0, 16_384, 1400)]
    with traced() as memory:
        beginnings = Beginnings(max_streams=64)
        before = memory()[0]
        for port in range(300):
            beginnings.add(syn(source_port=port))
            for packet in packets:
                beginnings.add(packet[:20] + port.to_bytes(2, "big") + packet[22:])
        used = memory()[0] - before
    assert len(beginnings) == 64
    assert used * 4096 / 64 < 150 << 20


# --- server names


def client_hello(name: str | None = NAME, **settings: Any) -> bytes:
    """Return the first message that Python's ssl sends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    for key, value in settings.items():
        setattr(context, key, value)
    if not settings:
        context.set_alpn_protocols(["h2", "http/1.1"])
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def vector(data: bytes, size: int = 2) -> bytes:
    return len(data).to_bytes(size, "big") + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(data)


def sni(name: bytes) -> bytes:
    return extension(0, vector(b"\0" + vector(name)))


def record(data: bytes) -> bytes:
    return b"\x16\x03\x01" + vector(data)


def message(*extensions: bytes, kind: int = 1, tail: bytes | None = None) -> bytes:
    body = b"\x03\x03" + bytes(32) + vector(bytes(32), 1) + vector(b"\x13\x01") + vector(b"\0", 1)
    body += vector(b"".join(extensions)) if tail is None else tail
    return bytes([kind]) + vector(body, 3)


def made(*extensions: bytes, **more: Any) -> bytes:
    return record(message(*extensions, **more))


GREASE = extension(0x0A0A, b"") + extension(0xDADA, b"\0")
KEY_SHARE = extension(51, vector(b"\x11\xec" + vector(bytes(1216))))  # X25519MLKEM768
ECH = extension(0xFE0D, b"\0\0\1\0\1\x07" + vector(bytes(32)) + vector(bytes(240)))

NAMED = {
    "OpenSSL's": (client_hello(), NAME),
    "of TLS 1.2": (client_hello(maximum_version=ssl.TLSVersion.TLSv1_2), NAME),
    "and what follows it": (client_hello() + b"\x14\x03\x03\0\1\1\x17\x03\x03", NAME),
    "in upper case": (client_hello("WWW.Example.COM"), NAME),
    "international": (client_hello("bücher.example"), "xn--bcher-kva.example"),
    "greased": (made(GREASE, sni(b"a.example"), GREASE), "a.example"),
    "post-quantum": (made(GREASE, KEY_SHARE, sni(b"a.example")), "a.example"),
    "the outer name of ECH": (made(ECH, sni(b"operator.example")), "operator.example"),
    "a dot at its end": (made(sni(b"a.example.")), "a.example"),
    "bytes that are not ASCII": (made(sni(b"b\xc3\xbccher.example")), "b[c3][bc]cher.example"),
    "bytes that a terminal obeys": (made(sni(b"a\x1b[2J\0\n.example")), "a[1b][2j[00][0a].example"),
    "behind a name of another type": (made(extension(0, vector(b"\7\0\1x\0" + vector(b"a.example")))), "a.example"),
    "an address": (made(sni(b"192.0.2.1")), "192.0.2.1"),
    "a byte a record": (b"".join(record(message(sni(b"a"))[place : place + 2]) for place in range(0, 120, 2)), "a"),
    "an empty record before it": (record(b"") + made(sni(b"a.example")), "a.example"),
    "and what is no TLS after it": (record(message(sni(b"a.example"), GREASE)[:-3]) + b"HTTP", "a.example"),
    "in front of a long rest": (made(sni(b"a.example"), extension(21, bytes(17_000))), "a.example"),
}
NAMELESS = {
    "no name": client_hello(None),
    "an address, which OpenSSL does not name": client_hello("192.0.2.1"),
    "a hello without extensions": made(tail=b""),
    "an empty list of extensions": made(),
    "an empty extension": made(extension(0, b"")),
    "an empty list of names": made(extension(0, vector(b""))),
    "an empty name": made(sni(b"")),
    "a dot": made(sni(b".")),
    "a name of another type": made(extension(0, vector(b"\7" + vector(b"a.example")))),
    "a name longer than its extension": made(extension(0, b"\0\x0c\0\0\x0aa"), extension(9, b"a.example")),
    "a second extension": made(extension(0, vector(b"")), sni(b"a.example")),
    "extensions that end in the next message": record(message(tail=b"\0\x40") + sni(b"a.example") + GREASE),
    "an extension longer than the hello": made(tail=vector(b"\0\0\0\x80\0\x0c\0\0\x09a.example")),
    "the hello of a server": made(sni(b"a.example"), kind=2),
    "application data between records": record(message(sni(b"a"))[:9]) + b"\x17\x03\x03\0\1x",
    "an SSL 2.0 hello": bytes.fromhex("802e0103010015000000100100800300800700c0060040020080040080") + bytes(20),
    "an alert": b"\x15\x03\x01\0\2\2\x28",
    "HTTP": b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    "zeros": bytes(100),
    "too far behind": made(extension(21, bytes(MAX_HELLO)), sni(b"a.example")),
    "longer than is read": b"\x16\x03\x01\x40\0\1\0\xff\xff" + bytes(MAX_HELLO),
    "extensions without end": made(*[extension(9, b"")] * 1000, sni(b"a.example")),
    "records without end": record(b"") * 1000 + made(sni(b"a.example")),
    "names without end": made(extension(0, vector(b"\7\0\0" * 1000 + b"\0" + vector(b"a.example")))),
}
HELLOS = {**{name: row[0] for name, row in NAMED.items()}, **NAMELESS}


@pytest.mark.parametrize("name", NAMED)
def test_server_name(name: str) -> None:
    data, expected = NAMED[name]
    assert server_name(data) == expected


@pytest.mark.parametrize("name", NAMELESS)
def test_no_server_name(name: str) -> None:
    assert server_name(NAMELESS[name]) is None


@pytest.mark.parametrize("name", HELLOS)
def test_an_answer_stands(name: str) -> None:
    """Each beginning of a stream is incomplete, or has the answer of the whole; from 16 KiB on it has one."""
    data = HELLOS[name]
    answers = [server_name(data[:end]) for end in range(min(len(data), 3000))] + [server_name(data)]
    first = next(place for place, answer in enumerate(answers) if answer is not INCOMPLETE)
    assert set(answers[:first]) <= {INCOMPLETE}
    assert set(answers[first:]) == {answers[-1]}
    assert first > 0
    assert server_name(data + bytes(MAX_HELLO)) == answers[-1]


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(0, 200), st.integers(0, 255), st.integers(0, 400))
def test_an_answer_stands_in_damaged_hellos(parts: list[bytes], place: int, value: int, end: int) -> None:
    data = bytearray(made(*(sni(part) for part in parts), ECH))
    data[place % len(data)] = value
    answer, whole = server_name(bytes(data[:end])), server_name(bytes(data))
    assert answer is INCOMPLETE or answer == whole


@given(st.lists(st.integers(1, 700), min_size=0, max_size=20))
def test_any_cut_into_records(sizes: list[int]) -> None:
    whole, parts = message(GREASE, KEY_SHARE, sni(b"a.example"), ECH), []
    rest = whole
    for size in sizes:
        parts.append(record(rest[:size]))
        rest = rest[size:]
        if not rest:
            break
    assert server_name(b"".join(parts) + (record(rest) if rest else b"")) == "a.example"


def test_incomplete_is_false_as_none_is() -> None:
    assert not INCOMPLETE
    assert server_name(b"") is INCOMPLETE


def test_an_unknown_beginning_has_no_name() -> None:
    assert server_name(None) is None


@pytest.mark.parametrize("data", [NAME, 7, tcp(b"x").__class__, inet.tcp(tcp(b"x"))])
def test_what_is_no_data(data: Any) -> None:
    with pytest.raises(TypeError):
        server_name(data)


def test_names_of_hellos_in_segments() -> None:
    """As a handler does it: incomplete until the segment with the last byte that is needed."""
    hello = made(GREASE, KEY_SHARE, ECH, sni(b"blocked.example"))
    beginnings = began()
    packets = [tcp(hello[place : place + 536], seq=1000 + place) for place in range(0, len(hello), 536)]
    assert len(packets) == 4
    for order in ((0, 2, 3), (1,)):
        answers = [server_name(beginnings.add(packets[number])) for number in order]
        assert answers == ([INCOMPLETE] * 3 if len(order) == 3 else ["blocked.example"])
    assert server_name(beginnings.add(packets[2])) == "blocked.example", "sent once more"


@pytest.mark.parametrize("name", HELLOS)
def test_a_hello_takes_as_long_as_a_hello(name: str) -> None:
    """No data that a sender can choose takes many times as long to read."""
    inside = ("server_name", "_first_message", "_host_name", "_fields", "_number", "printable", "<genexpr>")
    usual = lines(lambda: server_name(made(*[GREASE] * 6, sni(NAME.encode()))), inside)
    assert usual > 50
    assert lines(lambda: server_name(HELLOS[name]), inside) < 6 * usual


# tshark shows bytes otherwise, and no hello that is not whole.
OTHERWISE = ("bytes that a terminal obeys", "bytes that are not ASCII", "and what is no TLS after it")
WITNESSED = [name for name in NAMED if name not in OTHERWISE]


def test_tshark_reads_the_same_names(tshark: str, tmp_path: Path) -> None:
    """Each hello in its own connection, in segments of 300 bytes, which tshark puts together, too."""
    path = tmp_path / "hellos.pcap"
    names = [*WITNESSED, "no name", "an empty list of extensions", "HTTP"]
    with contextlib.closing(Writer(path, LinkType.RAW)) as writer:
        for number, name in enumerate(names):
            ends: dict[str, Any] = {"source_port": 5000 + number, "destination_port": 443}
            data = HELLOS[name]
            writer.write(0, syn(**ends))
            for place in range(0, len(data), 300):
                writer.write(0, tcp(data[place : place + 300], seq=1000 + place, **ends))
    fields = ("tcp.srcport", "tls.handshake.extensions_server_name")
    command = [tshark, "-r", str(path), "-Y", fields[1], "-T", "fields", *(f"-e{field}" for field in fields)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {port: text.split(",")[-1] for port, text in (line.split("\t") for line in done.stdout.splitlines())}
    theirs = {name: found.get(str(5000 + number), "").lower().rstrip(".") for number, name in enumerate(names)}
    assert theirs == {name: NAMED[name][1] if name in NAMED else "" for name in names}
