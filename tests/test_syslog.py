"""Syslog messages, read by a separate parser, and servers that fail. tests/live has real servers."""

from __future__ import annotations

import contextlib
import fcntl
import re
import socket
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfnet import ArgumentError, NfnetError, _ecs, collect
from nfnet.collect import Batch, OutputError, Session, _delivery, _rfc5424, _sending
from nfnet.collect._delivery import Delivery
from nfnet.collect._sending import StreamSender
from nfnet.collect._spool import Memory
from nfnet.collect.syslog import Syslog, SyslogUdp

from .collector import SESSION, batch, message
from .live.conftest import readable, wait_for

# --- the grammar of RFC 5424, section 6

_VALUE = r'(?:[^"\\\]\x00-\x1f\x7f]|\\["\\\]])*'
_NAME = r'(?:(?![=\]"])[!-~]){1,32}'
_PARAM = re.compile(rf' ({_NAME})="({_VALUE})"')
_MESSAGE = re.compile(
    r"<(?P<pri>0|[1-9][0-9]{0,2})>1"
    r" (?P<time>-|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d))"
    r" (?P<host>[!-~]{1,255}) (?P<app>[!-~]{1,48}) (?P<process>[!-~]{1,128}) (?P<kind>[!-~]{1,32})"
    rf" (?P<data>-|\[{_NAME}(?: {_NAME}=\"{_VALUE}\")*\])"
    r"(?: (?P<text>.*))?",
    re.DOTALL,
)


def parse(data: bytes) -> dict[str, Any]:
    found = _MESSAGE.fullmatch(data.decode("utf-8"))
    assert found, data
    values = [(name, re.sub(r"\\(.)", r"\1", value)) for name, value in _PARAM.findall(found["data"])]
    return {**found.groupdict(), "values": values}


TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
NASTY = st.one_of(
    TEXTS, st.sampled_from(['a"b', "a]b", "a\\", "\\]", "\n<13>1 forged", "\x00", "\x7f\x85\u2028\u202e", "ü"])
)
PREFIXES = st.one_of(
    NASTY.map(lambda text: text.replace("\0", "")),
    st.binary(max_size=20).map(lambda data: data.replace(b"\0", b"%").decode("utf-8", "surrogateescape")),
)


@given(PREFIXES, st.dictionaries(NASTY, NASTY, max_size=3), TEXTS, st.integers(480, 2000), st.integers(0, 5))
def test_every_message_is_one_of_the_grammar(
    prefix: str, labels: dict[str, str], host: str, most: int, lost: int
) -> None:
    output = collect.output("syslog+udp://host", {"max_size": most})
    assert isinstance(output, SyslogUdp)
    session = Session(host, "boot", 5, 1)
    try:
        one = message(3, prefix=prefix)
    except UnicodeEncodeError:  # no prefix contains a surrogate that represents no byte
        return
    found = output.encode(Batch(session, [one], lost, labels=labels))
    assert len(found) == 1 + bool(lost)
    for data in found:
        assert len(data) <= most
        parsed = parse(data)
        assert not re.search("[\x00-\x1f\x7f-\x9f]", data.decode())
        names = [name for name, _ in parsed["values"]]
        assert "source.ip" in names or parsed["kind"] == "messages-lost" or most < 600
    text = parse(found[-1])["text"]
    assert text.startswith("\ufeff") == (not text.isascii())


def test_values_are_those_of_the_json() -> None:
    one = message(3, prefix="drop: ", IFINDEX_INDEV=2, UID=7)
    (data,) = Syslog("/x").encode(Batch(SESSION, [one], labels={"site": "here"}))
    parsed = parse(data)
    expected = _ecs.fields(one, 0, {})
    values = dict(parsed["values"])
    assert values["observer.ingress.interface.name"] == "eth0"
    assert values["source.ip"] == expected["source"]["ip"]
    assert values["user.id"] == "7"
    assert (values["labels.site"], values["nfnet.session"]) == ("here", SESSION.id)
    assert parsed["pri"] == str(3 * 8 + 6)
    assert parsed["text"] == "drop: eth0 > - UDP 192.0.2.1.40000 > 192.0.2.2.9 38 bytes uid 7"


def test_names_of_fields_are_short_enough_and_differ() -> None:
    names = [path[-32:] for path, _ in _ecs._FIELDS]
    assert len(set(names)) == len(names)


def test_a_message_that_is_too_long_loses_its_end() -> None:
    whole = _rfc5424.message("<1>1 - h a p k", "x@1", [_rfc5424.parameter("n", "v" * 10)], "ü" * 20, 1000)
    for most in range(20, len(whole)):
        data = _rfc5424.message("<1>1 - h a p k", "x@1", [_rfc5424.parameter("n", "v" * 10)], "ü" * 20, most)
        assert len(data) <= most
        parsed = parse(data)
        assert bool(parsed["values"]) == (most >= 36)


def test_a_loss_is_a_warning_of_its_own() -> None:
    first, second = Syslog("/x", severity=7).encode(batch(9, lost=4))
    assert parse(first)["pri"] == str(3 * 8 + 4)
    assert dict(parse(first)["values"])["nfnet.lost"] == "4"
    assert parse(first)["text"] == "4 messages of group 5 lost"
    assert parse(second)["pri"] == str(3 * 8 + 7)


def test_the_local_format() -> None:
    (data,) = collect.output("syslog:").encode(batch(9))  # type: ignore[attr-defined]
    assert re.fullmatch(rb"<30>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d nfnet\[\d+\]: 9: .*38 bytes", data)


# --- what cannot be right


@pytest.mark.parametrize(
    ("to", "settings", "text"),
    [
        ("syslog:relative", {}, "path of a socket"),
        ("syslog://host", {}, "syslog+udp://HOST"),
        ("syslog+udp:", {}, "does not say where to"),
        ("syslog+udp:host", {}, "the host is missing"),
        ("syslog+udp://:514", {}, "the host is missing"),
        ("syslog+tcp://host:99999", {}, "Port out of range"),
        ("syslog+tcp://host:x", {}, "Port could not be cast"),
        ("syslog+tcp://host:0", {}, "port 0 is none"),
        ("syslog+tcp://host/path", {}, "behind the port"),
        ("syslog+tcp://[::1", {}, "Invalid IPv6 URL"),
        ("syslog+tcp://me:secret@host", {}, "neither user names nor passwords"),
        ("syslog+tcp://host?ca=x", {}, "no setting 'ca'"),
        ("syslog+tcp://host?facility=x", {}, "'x' is no facility"),
        ("syslog+tls://host?ca=", {}, "'' is no text"),
        ("syslog+tls://host", {"verify": "maybe"}, "neither yes nor no"),
        ("syslog:", {"severity": "bad"}, "'bad' is no severity; there is emerg"),
        ("syslog:", {"app_name": "two words"}, "no name of a program"),
        ("syslog:", {"sd_id": "nfnet"}, "is not NAME@NUMBER"),
        ("syslog:", {"max_size": "100"}, "not within 480 and 65507"),
        ("syslog:", {"format": "bsd"}, "neither rfc5424 nor local"),
        ("syslog:", {"facilty": "user"}, "did you mean 'facility'"),
        ("syslgo:", {}, "did you mean 'syslog'"),
        ("journal:relative", {}, "path of a socket"),
        ("journal:", {"identifier": "a b"}, "no name of a program"),
    ],
)
def test_what_cannot_be_right(to: str, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(text)) as caught:
        collect._outputs.describe(to, settings)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("syslog:", "syslog:/dev/log"),
        ("syslog:/run/x", "syslog:/run/x"),
        ("syslog+udp://Host", "syslog+udp://host:514"),
        ("syslog+tcp://host", "syslog+tcp://host:601"),
        ("syslog+tls://[::1]?facility=user", "syslog+tls://[::1]:6514"),
        ("journal:", "journal:/run/systemd/journal/socket"),
    ],
)
def test_names(to: str, name: str) -> None:
    assert collect.output(to).name == name


def test_what_is_said_twice_is_refused() -> None:
    with pytest.raises(ArgumentError, match="facility is given twice"):
        collect.output("syslog+tcp://host?facility=user", {"facility": "mail"})
    with pytest.raises(ArgumentError, match="key without cert"):
        collect.output("syslog+tls://host", {"key": __file__})
    with pytest.raises(ArgumentError, match="verify=no turns off"):
        collect.output("syslog+tls://host", {"ca": __file__, "verify": False})
    with pytest.raises(TypeError, match="no setting 'colour'"):
        Syslog("/x", colour="red")


def test_files_of_tls_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NfnetError, match="syslog.tls://host:6514: ca /nowhere: No such file or directory"):
        collect.output("syslog+tls://host", {"ca": "/nowhere"})
    with pytest.raises(NfnetError, match="ca .*: TLS: no certificate or crl found"):
        collect.output("syslog+tls://host", {"ca": __file__})
    with pytest.raises(NfnetError, match="cert .*: TLS: "):
        collect.output("syslog+tls://host", {"cert": __file__})
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-subj", "/CN=x", "-passout", "pass:secret"]
    files = {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    try:
        subprocess.run([*made, "-out", files["cert"], "-keyout", files["key"]], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    with pytest.raises(NfnetError, match="the key has a password"):
        collect.output("syslog+tls://host", files)


# --- servers


def numbers(data: bytes) -> list[int]:
    """Of messages in octet counting."""
    found = []
    while data:
        size, _, rest = data.partition(b" ")
        assert len(rest) >= int(size)
        found.append(int(dict(parse(rest[: int(size)])["values"])["event.sequence"]))
        data = rest[int(size) :]
    return found


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(10)
        yield sock


def tcp_output(listener: socket.socket) -> collect.Output:
    output = collect.output(f"syslog+tcp://127.0.0.1:{listener.getsockname()[1]}")
    output.begin()
    return output


def queued(sock: socket.socket) -> int:
    """Return the number of bytes that a socket has received and the program has not read."""
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0])


def test_octet_counting(listener: socket.socket) -> None:
    output = tcp_output(listener)
    output.write(batch(1, 2, 3))
    output.write(batch(4))
    output.close()
    with listener.accept()[0] as server:
        assert numbers(server.makefile("rb").read()) == [1, 2, 3, 4]


def test_what_the_server_did_not_get_is_sent_again(listener: socket.socket) -> None:
    """The server's socket accepts a part of a batch, which is in the buffers of both sockets when it is closed."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    output, many = tcp_output(listener), batch(*range(200))
    outcome: list[Any] = []

    def write() -> None:
        try:
            outcome.append(output.write(many))
        except OutputError as error:
            outcome.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    server, _ = listener.accept()
    assert wait_for(lambda: queued(server) > 0, 10)
    server.close()  # with something unread: a reset
    thread.join(10)
    (error,) = outcome
    assert isinstance(error, OutputError), "it was taken for stored"
    assert not error.lasting
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    thread = threading.Thread(target=write)
    thread.start()
    with listener.accept()[0] as server:
        data = b""
        while thread.is_alive() or queued(server):
            server.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                data += server.recv(1 << 16)
    output.close()
    assert outcome[1] is None
    assert numbers(data) == list(range(200))


def test_a_server_that_was_started_anew_is_noticed_before_anything_is_sent(listener: socket.socket) -> None:
    output = tcp_output(listener)
    output.write(batch(1))
    listener.accept()[0].close()
    assert isinstance(output, StreamSender)
    sock = output._socket
    assert wait_for(lambda: readable(sock, 0), 10)
    output.write(batch(2))  # no error: it connects anew
    output.close()
    with listener.accept()[0] as server:
        assert numbers(server.makefile("rb").read()) == [2]


def test_a_server_that_does_not_read_is_given_up(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sending, "_PATIENCE", 0.2)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    output = tcp_output(listener)
    with pytest.raises(OutputError, match="acknowledged nothing|timed out"):
        output.write(batch(*range(1000)))
    output.close()


def test_udp_notices_that_nobody_listens() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    output = collect.output(f"syslog+udp://127.0.0.1:{port}")
    output.begin()

    def is_refused() -> bool:  # the other side's error can arrive some time after the last datagram was sent
        try:
            output.write(batch(1, 2, 3))
        except OutputError as error:
            assert str(error) == "Connection refused"  # noqa: PT017
            return True
        return False

    assert wait_for(is_refused, 10)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.settimeout(10)
        server.bind(("127.0.0.1", port))
        output.write(batch(1, 2, 3))
        found = [int(dict(parse(server.recv(9999))["values"])["event.sequence"]) for _ in range(3)]
    assert found == [1, 2, 3]
    output.close()


def test_udp_tries_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """``localhost`` is ::1 first, and the server can listen only on 127.0.0.1."""
    real = socket.getaddrinfo
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.2", 0))
        port = server.getsockname()[1]

        def two(host: str, port: int, **options: Any) -> Any:
            return [*real("127.0.0.3", port, **options), *real("127.0.0.2", port, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", two)
        output = collect.output(f"syslog+udp://localhost:{port}")

        def comes() -> bool:
            with contextlib.suppress(OutputError):
                output.write(batch(1, 2, 3))
            return readable(server, 0)

        assert wait_for(comes, 10)
        output.close()


def test_a_full_queue_makes_nothing_come_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sending, "CONNECT_PATIENCE", 0.1)
    length = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    path, count = str(tmp_path / "log"), min(3 * length, 1000)  # the send buffer has room for less than 1000
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        output, many = collect.output(f"syslog:{path}"), batch(*range(count))
        output.begin()
        found: list[int] = []

        def read() -> None:
            server.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    found.append(int(dict(parse(server.recv(9999))["values"])["event.sequence"]))

        errors = 0
        while True:
            try:
                output.write(many)
                break
            except OutputError as error:
                assert "queue has been full" in str(error)  # noqa: PT017
                errors += 1
                assert errors < count
                read()
        read()
        output.close()
    assert errors > 0
    assert found == list(range(count))


def test_each_trouble_is_said_also_if_nothing_came_meanwhile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_delivery, "_AGAIN", 0.0)
    path = tmp_path / "log"
    said: list[str] = []
    delivery = Delivery(collect.output(f"syslog:{path}"), Memory(1 << 20), said.append)

    def turn() -> None:
        delivery._idled = 0.0
        delivery.flush()

    for number in (1, 2):
        turn()
        turn()
        assert len(said) == number
        assert said[-1].startswith(f"syslog:{path}: ")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind(str(path))
            turn()
        path.unlink()
        delivery.output.close()
    delivery.close()
