"""The process behind a packet: how it is found and remembered, and in tests and recordings."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nfnet
from nfnet import ArgumentError, Log, LogMessage, Packet, Process, _processes, inet, process_of
from nfnet._core.origin import Origin
from nfnet.protocol import netlink, rtnetlink, sock_diag
from nfnet.testing import FedQueue, log_message, open_replay, packet_message, tcp

from .conftest import FIXTURES
from .test_log import LogKernel

ROWS = json.loads((FIXTURES / "sockets.json").read_text())
CURL = Process(4711, "curl", "/usr/bin/curl", ("curl", "https://example.org"), 1000, "/user.slice/session-3.scope")
IDENTIFIER = "0123456789abcdef" * 4

little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="recorded on a little-endian machine")


# --- the layouts


def by_schema(datagram: bytes) -> sock_diag.Socket:
    found = sock_diag.message.parse(datagram[netlink.HEADER_SIZE :])
    source = found.id.source[:4] if found.family == socket.AF_INET else found.id.source
    return sock_diag.Socket(found.state, source, found.id.cookie, found.uid, found.inode)


def question(row: dict[str, Any]) -> tuple[int, bytes, int, bytes, int]:
    protocol, local, local_port, remote, remote_port = row["question"]
    family = socket.AF_INET6 if ":" in local else socket.AF_INET
    return protocol, socket.inet_pton(family, local), local_port, socket.inet_pton(family, remote), remote_port


SOCKETS = [row for row in ROWS if "question" in row]
ADDRESSES = [row for row in ROWS if "address" in row]


@little_endian
@pytest.mark.parametrize("row", SOCKETS, ids=lambda row: row["about"])
def test_what_the_kernel_said_of_a_socket(row: dict[str, Any]) -> None:
    answer = bytes.fromhex(row["answer"])
    found = sock_diag.parse_socket(answer)
    if row["expected"] is None:
        assert found is None
        return
    assert found is not None
    assert found == by_schema(answer)
    assert [found.state, found.source.hex(), found.uid, found.inode] == row["expected"]


@little_endian
@pytest.mark.parametrize("row", SOCKETS, ids=lambda row: row["about"])
def test_question_is_the_one_that_the_kernel_took(row: dict[str, Any]) -> None:
    assert sock_diag.build_request(*question(row)).hex() == row["request"]


ADDRESS = st.sampled_from([4, 16]).flatmap(lambda size: st.binary(min_size=size, max_size=size))
PORT = st.integers(0, 0xFFFF)


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16), PORT, PORT, st.integers(0, 0xFFFFFFFF))
def test_question_is_as_the_schema_builds_it(local: bytes, local_port: int, remote_port: int, interface: int) -> None:
    remote = bytes(reversed(local))
    tcp_ends = {
        "source": local.ljust(16, b"\0"),
        "source_port": local_port,
        "destination": remote.ljust(16, b"\0"),
        "destination_port": remote_port,
    }
    udp_ends = {
        "source": tcp_ends["destination"],
        "source_port": remote_port,
        "destination": tcp_ends["source"],
        "destination_port": local_port,
    }
    for protocol, ends in ((6, tcp_ends), (132, tcp_ends), (17, udp_ends), (136, udp_ends)):
        built = sock_diag.build_request(protocol, local, local_port, remote, remote_port, interface)
        family = socket.AF_INET if len(local) == 4 else socket.AF_INET6
        body = sock_diag.request.build({"family": family, "protocol": protocol, "id": {**ends, "interface": interface}})
        assert built == netlink.build_message(sock_diag.SOCK_DIAG_BY_FAMILY, netlink.Flag.REQUEST, 0, body)


@given(st.binary(min_size=72, max_size=200))
def test_answer_is_read_as_the_schema_reads_it(body: bytes) -> None:
    answer = netlink.build_message(sock_diag.SOCK_DIAG_BY_FAMILY, 0, 0, body)
    assert sock_diag.parse_socket(answer) == by_schema(answer)


@given(st.binary(max_size=87))
def test_answer_that_is_cut_short(data: bytes) -> None:
    for read in (sock_diag.parse_socket, rtnetlink.is_local):
        if read is rtnetlink.is_local and len(data) >= 28:
            continue
        with contextlib.suppress(nfnet.DecodeError):
            assert not read(data)


@little_endian
@pytest.mark.parametrize("row", ADDRESSES, ids=lambda row: row["address"])
def test_what_the_kernel_said_of_an_address(row: dict[str, Any]) -> None:
    family = socket.AF_INET6 if ":" in row["address"] else socket.AF_INET
    assert rtnetlink.build_request(socket.inet_pton(family, row["address"])).hex() == row["request"]
    assert rtnetlink.is_local(bytes.fromhex(row["answer"])) is row["expected"]


# --- what a control group says


@pytest.mark.parametrize(
    ("cgroup", "unit", "container"),
    [
        (None, None, None),
        ("/", None, None),
        ("/system.slice/ssh.service", "ssh.service", None),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope", None),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-firefox-12.scope", "app-firefox-12.scope", None),
        ("/system.slice/delegated.service/its/own", "delegated.service", None),
        ("/system.slice", None, None),
        (f"/docker/{IDENTIFIER}", None, IDENTIFIER),
        (f"/system.slice/docker-{IDENTIFIER}.scope", f"docker-{IDENTIFIER}.scope", IDENTIFIER),
        (f"/machine.slice/libpod-{IDENTIFIER}.scope/container", f"libpod-{IDENTIFIER}.scope", IDENTIFIER),
        (f"/machine.slice/libpod-conmon-{IDENTIFIER}.scope", f"libpod-conmon-{IDENTIFIER}.scope", None),
        (f"/kubepods/besteffort/pod1/{IDENTIFIER}", None, IDENTIFIER),
        (f"/kubepods.slice/cri-containerd-{IDENTIFIER}.scope", f"cri-containerd-{IDENTIFIER}.scope", IDENTIFIER),
        (f"/docker/{IDENTIFIER}0", None, None),
    ],
)
def test_unit_and_container(cgroup: str | None, unit: str | None, container: str | None) -> None:
    process = Process(1, "init", cgroup=cgroup)
    assert (process.unit, process.container) == (unit, container)


def test_a_process_without_arguments() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as program:
        stat = Path(f"/proc/{program.pid}/stat")
        while ") Z " not in stat.read_text():  # until the block ends
            time.sleep(0.001)
        process = _processes._read(program.pid, 0)
    assert process is not None
    assert process.command_line == ()


def test_a_process_is_shown_with_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    """A process can choose its name, and so can the owner of the program file."""
    assert str(CURL) == "curl (process 4711, /usr/bin/curl)"
    assert str(Process(80, "cron")) == "cron (process 80)"
    path = os.fsencode(tmp_path) + b"/\x1b[2J\xff"
    os.symlink(shutil.which("sleep") or "", path)  # the name is that by which it was called, the executable is not
    with subprocess.Popen([path, "1000"]) as program:
        try:
            while (process := _processes.process_with_id(program.pid)) and process.name != "\x1b[2J\udcff":
                time.sleep(0.001)  # Popen returns before the kernel has set it
        finally:
            program.kill()
    assert process is not None
    assert str(process).startswith(f"[1b][2J[ff] (process {program.pid}, /")
    named = process._replace(executable="/tmp/\u202egame\n")
    assert str(named) == f"[1b][2J[ff] (process {program.pid}, /tmp/[e2 80 ae]game[0a])"
    assert repr(named).isprintable()


@pytest.mark.parametrize(
    ("lines", "path"),
    [
        (["0::/system.slice/a:b.service"], "/system.slice/a:b.service"),
        (["1:name=systemd:/system.slice/a.service", "0::/"], "/system.slice/a.service"),
        (["2:cpu,cpuacct:/x", "1:name=systemd:/a"], "/a"),
        (["2:cpu:/x", "0::/y"], "/y"),
        (["0::/"], "/"),
        ([], None),
    ],
)
def test_control_group_of_either_version(lines: list[str], path: str | None) -> None:
    assert _processes._cgroup(lines) == path


# --- who has a socket


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def test_process_that_has_a_socket() -> None:
    with socket.socket() as sock:
        process = _processes._Holders().process(inode(sock), 7)
    assert process is not None
    assert process.pid == os.getpid()
    assert process.name == Path("/proc/self/comm").read_text().strip()
    assert process.executable == os.readlink("/proc/self/exe")
    assert process.command_line == tuple(Path("/proc/self/cmdline").read_text().split("\0")[:-1])
    assert process.uid == 7
    assert process.cgroup is not None
    assert f":{process.cgroup}\n" in Path("/proc/self/cgroup").read_text()


def test_what_is_remembered_is_not_believed_unseen() -> None:
    holders = _processes._Holders()
    with socket.socket() as first:
        number, descriptor = inode(first), first.fileno()
        assert holders.process(number, 0)
        elsewhere = os.dup(descriptor)
    try:
        with socket.socket() as other:
            assert other.fileno() == descriptor
            process = holders.process(number, 0)
            assert process is not None  # at its other descriptor
            assert holders._found[number] == (os.getpid(), elsewhere)
    finally:
        os.close(elsewhere)
    assert holders.process(number, 0) is None


def test_search_that_found_nothing_is_not_repeated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    holders = _processes._Holders()
    searched: list[int] = []
    monkeypatch.setattr(holders, "_search", searched.append)
    now = 100.0

    def clock() -> float:
        nonlocal now
        now += 0.25  # each search takes the same time
        return now

    monkeypatch.setattr(time, "monotonic", clock)
    for _ in range(20):
        assert holders.process(1, 0) is None
    assert searched == [1, 1]
    assert holders.process(2, 0) is None
    assert searched == [1, 1, 2]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_MOST_SOCKETS", "_MOST_MISSING"):
        monkeypatch.setattr(_processes, name, 4)
    holders = _processes._Holders()
    kept = [socket.socket() for _ in range(20)]
    try:
        for sock in kept:
            assert holders.process(inode(sock), 0)
            assert len(holders._found) <= 4
        # A search reads the sockets of at most one more process.
        assert len(holders._seen) <= 4 + len(os.listdir("/proc/self/fd"))
    finally:
        for sock in kept:
            sock.close()
    monkeypatch.setattr(holders, "_search", lambda _: None)
    for number in range(20):
        holders.process(number, 0)
    assert len(holders._missing) <= 4


def test_ancestor_goes_before_its_children() -> None:
    with socket.socket() as sock:
        sock.set_inheritable(True)
        child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
        try:
            holders = _processes._Holders()
            holders._recent = [child.pid]  # so that it is found first
            process = holders.process(inode(sock), 0)
            assert process is not None
            assert process.pid == os.getpid()
        finally:
            child.communicate(b"\n")


# --- what is asked


FLOW = inet.Flow(6, "127.0.0.1", 1, "127.0.0.1", 2)


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (tuple(FLOW), r"flow must be a nfnet.inet.Flow, not tuple"),
        (FLOW._replace(protocol=256), "protocol is 256"),
        (FLOW._replace(source_port=65536), "source_port is 65536"),
        (FLOW._replace(destination_port=-1), "destination_port is -1"),
        (FLOW._replace(source="localhost"), "'localhost' and '127.0.0.1' must be IPv4 or IPv6 addresses"),
        (FLOW._replace(source=7), "must be IPv4 or IPv6 addresses"),
        (FLOW._replace(source="::1"), "must be of the same IP version"),
    ],
)
def test_what_is_no_flow(flow: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        process_of(flow)


def test_addresses_of_ipv4_as_sockets_of_ipv6_write_them() -> None:
    assert _processes._packed("::ffff:192.0.2.1") == _processes._packed("192.0.2.1") == bytes([192, 0, 2, 1])
    assert len(_processes._packed("::1")) == 16


def test_what_fails_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        raise nfnet.NotPermittedError("asking for the network namespace", errno.EPERM)

    processes = _processes.Processes(refuse)
    assert [processes.find(FLOW, sends=True) for _ in range(3)] == [None] * 3
    (record,) = caplog.records
    assert "asking for the network namespace" in record.getMessage()
    processes.close()
    assert processes.find(FLOW, sends=True) is None


ORIGINAL = ("192.0.2.1", "192.0.2.2", 1000, 80)
REPLY = ("198.51.100.7", "203.0.113.9", 8080, 2000)


@pytest.mark.parametrize(
    ("hook", "info", "expected"),
    [
        (nfnet.Hook.OUTPUT, nfnet.CtInfo.NEW, ORIGINAL),
        (nfnet.Hook.INPUT, nfnet.CtInfo.ESTABLISHED_REPLY, ORIGINAL),
        (nfnet.Hook.INPUT, nfnet.CtInfo.ESTABLISHED, REPLY),
        (nfnet.Hook.OUTPUT, nfnet.CtInfo.ESTABLISHED_REPLY, REPLY),
    ],
)
def test_connection_as_the_socket_knows_it(hook: nfnet.Hook, info: nfnet.CtInfo, expected: tuple[Any, ...]) -> None:
    """Addresses changed by NAT are looked up again as they were before, or as in the answer."""

    def ends(source: str, destination: str, source_port: int, destination_port: int) -> dict[int, Any]:
        addresses = {1: socket.inet_aton(source), 2: socket.inet_aton(destination)}
        return {1: addresses, 2: {1: 6, 2: source_port, 3: destination_port}}

    asked: list[tuple[inet.Flow, bool]] = []

    class Processes(_processes.Processes):
        def find(self, flow: inet.Flow, *, sends: bool, **_: Any) -> Process | None:
            asked.append((flow, sends))
            return CURL if len(asked) == 2 else None

    connection = {1: ends(*ORIGINAL), 2: ends(*REPLY)}
    message = packet_message(
        1, tcp(source="192.0.2.5", destination="192.0.2.6"), hook=hook, CT=connection, CT_INFO=info
    )
    packet = Packet.from_bytes(message)
    packet._origin = Origin(lambda _: None, Processes(lambda: None))
    assert packet.process == CURL
    source, destination, source_port, destination_port = expected
    assert asked == [
        (packet.flow, hook == nfnet.Hook.OUTPUT),
        (inet.Flow(6, source, source_port, destination, destination_port), True),
    ]


def test_no_such_namespace() -> None:
    with pytest.raises(ArgumentError):
        process_of(FLOW, netns="")
    with pytest.raises(nfnet.KernelError, match="/nowhere/at/all"):
        process_of(FLOW, netns="/nowhere/at/all")


def test_flow_without_ports_is_nobodys() -> None:
    assert process_of(inet.Flow(6, "127.0.0.1", None, "127.0.0.1", None)) is None


# --- tests and recordings


@pytest.fixture
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(_processes, "new_socket", refuse)
    monkeypatch.setattr(os, "listdir", refuse)


def test_process_of_a_fed_packet_is_what_the_test_says(nobody_is_asked: None) -> None:
    fed = FedQueue()
    fed.feed(tcp(b"x"), process=CURL)
    fed.feed(tcp(b"x"))
    seen: list[Process | None] = []

    def handle(packet: Packet) -> None:
        seen.append(packet.process)
        packet.drop()

    fed.run(handle)
    fed.close()
    assert seen == [CURL, None]


def test_process_of_a_lone_fed_packet(nobody_is_asked: None) -> None:
    fed = FedQueue()
    fed.feed(tcp(b"x"), process=CURL)
    (packet,) = fed.queue
    assert packet.process == CURL
    fed.close()


def test_process_of_a_fed_message(nobody_is_asked: None) -> None:
    kernel = LogKernel(ends=True)
    with Log(5, transport=kernel) as log:
        kernel.deliver(log_message(tcp(b"x"), process=CURL))
        kernel.deliver(log_message(tcp(b"x")))
        assert [message.process for message in log] == [CURL, None]


def test_message_keeps_its_process(nobody_is_asked: None) -> None:
    message = LogMessage.from_bytes(log_message(tcp(b"x"), process=CURL))
    assert message.process == CURL
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(message, protocol)).process == CURL
    assert Packet.from_bytes(packet_message(1, tcp(b"x"), process=CURL)).process == CURL
    assert Packet.from_bytes(packet_message(1, tcp(b"x"))).process is None


def test_what_is_no_process() -> None:
    with pytest.raises(nfnet.ArgumentTypeError, match=r"process must be an nfnet.Process, not int"):
        FedQueue().feed(process=4711)


def test_nobody_is_asked_in_a_replay(nobody_is_asked: None) -> None:
    """The connections of the machine on which it runs are others."""
    with contextlib.closing(open_replay(FIXTURES / "queue-output-ipv4.pcapng")) as queue:
        packets = list(queue)
        assert packets
        assert {packet.process for packet in packets if isinstance(packet, Packet)} == {None}


def test_size_of_a_request() -> None:
    assert struct.calcsize("=IHHII") + sock_diag.request.sizeof() == 72  # sizeof(struct inet_diag_req_v2) is 56


@pytest.mark.parametrize(
    "alarm", [TimeoutError("a second has passed"), OSError(errno.ENOENT, "No such file")], ids=repr
)
def test_os_error_of_a_signal_handler_reaches_the_program(alarm: OSError, caplog: pytest.LogCaptureFixture) -> None:
    """Other errors of a look-up are logged instead of raised."""

    def open_netns() -> Any:
        raise alarm

    flow = inet.Flow(17, "192.0.2.1", 1, "192.0.2.2", 2)
    with pytest.raises(OSError, match="second|No such file") as caught:
        _processes.Processes(open_netns).find(flow, sends=True)
    assert caught.value is alarm
    assert not caplog.text
