"""Syslog: how a real rsyslogd reads the collector's messages, and what happens while it is stopped."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfnet import collect
from nfnet.collect import OutputError, syslog

from ..collector import batch
from .collecting import burst, collecting, finish, sending
from .conftest import TIMEOUT, said, wait_for
from .syslog_servers import TCP, TLS, UDP, Rsyslogd, directory, make_certificates
from .traffic import Way, logging


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("certificates")
    make_certificates(where)
    return where


Start = Callable[..., Rsyslogd]


@pytest.fixture
def start(net: Any, certificates: Path) -> Iterator[Start]:
    """Starts rsyslogd on the router."""
    with directory() as where:
        for file in certificates.iterdir():
            (where / file.name).write_bytes(file.read_bytes())
        started = []

        def start(**options: Any) -> Rsyslogd:
            started.append(Rsyslogd(where, lambda function: net.at("router", function), **options))
            started[-1].start()
            return started[-1]

        yield start
        for each in started:
            each.stop()


def url(how: str, server: Rsyslogd) -> str:
    return {
        "unix": f"syslog:{server.path}",
        "udp": f"syslog+udp://127.0.0.1:{UDP}",
        "tcp": f"syslog+tcp://127.0.0.1:{TCP}",
        "tls": f"syslog+tls://localhost:{TLS}?ca={server.where}/ca.pem",
    }[how]


HOWS = ["unix", "udp", "tcp", "tls"]


@pytest.mark.parametrize("how", HOWS)
def test_rsyslog_reads_what_is_sent(way: Way, start: Start, how: str) -> None:
    server = start(tls="anon")
    settings = ("facility=local3", "severity=notice", "app_name=wall")
    with logging(way.net), collecting(way, "--to", url(how, server), *settings, "--label", 'site=a"]\\b') as process:
        burst(way, 20)
        assert wait_for(lambda: len(server.messages()) == 20), server.complaints()
        assert finish(process) == "20 messages\n"
    assert server.numbers() == list(range(20))
    first, data = server.messages()[0], server.data()[0]
    assert (first["syslogfacility"], first["syslogseverity"]) == ("19", "5")
    assert (first["app-name"], first["procid"], first["msgid"]) == ("wall", str(process.pid), "packet")
    assert first["hostname"] == socket.gethostname()
    assert first["protocol-version"] == "1"
    assert first["msg"].startswith("said: to-client > to-server UDP 10.81.1.1.")
    assert data["source.ip"] == "10.81.1.1"
    assert data["destination.port"] == "7000"
    assert data["nfnet.prefix"] == "said: "
    assert data["labels.site"].replace("\\", "") == 'a"]b'  # rsyslog can keep the escape characters
    assert data["observer.ingress.interface.name"] == "to-client"


def test_the_local_format_is_what_programs_at_dev_log_expect(way: Way, start: Start) -> None:
    server = start()
    with logging(way.net), collecting(way, "--to", f"syslog:{server.local}", "format=local") as process:
        burst(way, 3)
        assert wait_for(lambda: len(server.messages()) == 3)
        finish(process)
    for message in server.messages():
        assert message["programname"] == "nfnet"
        assert message["syslogtag"] == f"nfnet[{process.pid}]:"
        assert message["msg"].strip().startswith("said: to-client > to-server UDP 10.81.1.1.")
        assert (message["syslogfacility"], message["syslogseverity"]) == ("3", "6")


@pytest.mark.parametrize("how", ["unix", "tcp", "tls"])
def test_a_server_that_is_stopped_and_started_gets_all(way: Way, start: Start, how: str, tmp_path: Path) -> None:
    """At least once: messages that were being sent when it stopped can be repeated, with the same numbers."""
    server = start(tls="anon")
    arguments = ("--to", url(how, server), "--spool", tmp_path / "spool")
    with logging(way.net), collecting(way, *arguments) as process:
        assert process.stderr is not None
        burst(way, 10)
        assert wait_for(lambda: set(server.numbers()) == set(range(10)))
        server.stop()
        burst(way, 10)
        line = process.stderr.readline()
        while "the receive buffer" in line:  # of an ordinary user
            line = process.stderr.readline()
        assert line.endswith("; messages are kept, to be stored later\n")
        burst(way, 10)
        server.start()
        assert wait_for(lambda: set(server.numbers()) >= set(range(30))), (line, server.complaints())
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors
    assert said(errors).endswith("30 messages\n")


def test_over_udp_it_is_noticed_that_nobody_listens(way: Way, start: Start) -> None:
    """Messages sent meanwhile can be lost."""
    server = start()
    with logging(way.net), collecting(way, "--to", url("udp", server)) as process:
        assert process.stderr is not None
        burst(way, 1)
        assert wait_for(lambda: server.numbers() == [0])
        server.stop()
        with sending(way):
            while not (line := process.stderr.readline()).endswith("; messages are kept, to be stored later\n"):
                assert line, "the collector has ended"
            assert "Connection refused" in line
            before = len(server.messages())
            server.start()
            assert wait_for(lambda: len(server.messages()) > before)
        process.kill()
        process.wait(TIMEOUT)


@pytest.mark.parametrize("how", ["unix", "tcp", "tls"])
def test_a_server_that_is_away_from_the_beginning_gets_all(way: Way, start: Start, how: str, tmp_path: Path) -> None:
    server = start(tls="anon")
    server.stop()
    arguments = ("--to", url(how, server), "--spool", tmp_path / "spool")
    with logging(way.net):
        with collecting(way, *arguments) as process:
            burst(way, 10)
            errors = finish(process)
        assert "10 messages in the spool, to be stored the next time" in errors
        server.start()
        with collecting(way, *arguments) as process:
            assert wait_for(lambda: server.numbers() == list(range(10)))
            finish(process)


REFUSED = {
    "unknown authority": ("anon", "ca={}/other-ca.pem", "is not accepted: "),
    "another name": ("anon", "ca={}/ca.pem&server_name=example.net", "is not accepted: Hostname mismatch"),
    "no certificate of ours": ("x509/name", "ca={}/ca.pem", ""),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_tls_refuses_is_said_and_nothing_is_lost(way: Way, start: Start, why: str, tmp_path: Path) -> None:
    mode, query, text = REFUSED[why]
    server = start(tls=mode)
    spool = ("--spool", tmp_path / "spool")
    wrong = f"syslog+tls://localhost:{TLS}?{query.format(server.where)}"
    right = f"syslog+tls://localhost:{TLS}?ca={server.where}/ca.pem&cert={server.where}/client.pem"
    right += f"&key={server.where}/client.key"
    with logging(way.net):
        with collecting(way, "--to", wrong, *spool) as process:
            burst(way, 5)
            errors = finish(process)
        assert f"nfnet collect: syslog+tls://localhost:{TLS}: " in errors
        assert text in errors
        assert "5 messages in the spool" in errors
        assert server.messages() == []
        with collecting(way, "--to", right, *spool) as process:
            assert wait_for(lambda: server.numbers() == list(range(5))), server.complaints()
            finish(process)


def test_a_refusal_after_the_handshake_loses_nothing(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In TLS 1.3 the client is through before the server has seen its certificate, or that it has none."""
    monkeypatch.setattr(syslog, "_SETTLING", TIMEOUT)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.load_verify_locations(certificates / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    outcome: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        target = f"syslog+tls://127.0.0.1:{port}?server_name=localhost&ca={certificates}/ca.pem"
        output = collect.output(target)

        def write() -> None:
            try:
                outcome.append(output.write(batch(1)))
            except OutputError as error:
                outcome.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        sock, _ = listener.accept()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = context.wrap_bio(incoming, outgoing, server_side=True)
        flights = 0
        with sock:
            while True:
                incoming.write(sock.recv(1 << 16))
                flights += 1
                if flights == 2:
                    thread.join(0.2)  # a client that does not wait has sent its messages by then, and is content
                try:
                    server.do_handshake()
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                except ssl.SSLError:
                    sock.sendall(outgoing.read())  # the alert
                    break
            thread.join(TIMEOUT)
    (error,) = outcome
    assert isinstance(error, OutputError), "it was taken for stored"
    assert "certificate required" in str(error)


def test_without_verifying_any_certificate_will_do(way: Way, start: Start) -> None:
    server = start(tls="anon")
    with logging(way.net), collecting(way, "--to", f"syslog+tls://127.0.0.1:{TLS}?verify=no") as process:
        burst(way, 5)
        assert wait_for(lambda: server.numbers() == list(range(5)))
        finish(process)


def test_a_host_that_does_not_resolve_is_said(way: Way, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    arguments = ("--to", "syslog+tcp://nowhere.invalid", "--to", file, "--spool", tmp_path / "spool")
    with logging(way.net), collecting(way, *arguments) as process:
        burst(way, 5)
        assert wait_for(lambda: file.exists() and file.read_bytes().count(b"\n") == 5)  # no other output is delayed
        assert process.stderr is not None
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=TIMEOUT)
    assert "syslog+tcp://nowhere.invalid:601: " in errors
    assert "5 messages in the spool" in errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("syslog:/x", "facility=lokal"), "'lokal' is no facility; there is kern, user"),
        (("syslog+tcp://me:secret@host",), "neither user names nor passwords"),
        (("syslog+tls://host?ca=/nowhere",), "ca /nowhere: No such file or directory"),
        (("syslog://host",), "syslog+udp://HOST"),
    ],
)
def test_what_cannot_be_right_is_one_line(way: Way, arguments: tuple[str, ...], text: str) -> None:
    command = [sys.executable, "-m", "nfnet", "collect", "--group", "5", "--to", *arguments]
    done = way.net.at("router", lambda: subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT))
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1
    assert text in done.stderr
    assert "secret" not in done.stderr
