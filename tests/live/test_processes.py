"""The processes that send and receive packets, on the real kernel, compared with known pids and with ss."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfnet import Log, Packet, Process, Queue, inet, netns, process_of, rules

from .conftest import ADDRESS, GLUE, TIMEOUT, Net, collect, in_child, kernel_lacks, lacking, readable, wait_for

V4, V6 = socket.AF_INET, socket.AF_INET6
PORT = 7000

_LOOP = """
import os, socket, sys
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Program:
    """A process on a host that executes Python, a line at a time."""

    def __init__(self, net: Net, host: str, *arguments: str) -> None:
        command = [sys.executable, "-S", "-E", "-c", _LOOP, *arguments]
        self._process: subprocess.Popen[str] = net.at(
            host, lambda: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        self.pid = self._process.pid

    def begin(self, code: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(code + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """Return what it has printed, after it has executed all lines."""
        assert self._process.stdout is not None
        lines = []
        while (line := self._process.stdout.readline()) != "done\n":
            assert line, "the program has ended"
            lines.append(line)
        return "".join(lines)

    def do(self, code: str) -> str:
        self.begin(code)
        return self.answer()

    def end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.kill()
        self._process.wait()


@pytest.fixture
def run(net: Net) -> Iterator[Callable[..., Program]]:
    with contextlib.ExitStack() as stack:

        def start(host: str, *arguments: str) -> Program:
            program = Program(net, host, *arguments)
            stack.callback(program.end)
            return program

        yield start


@contextlib.contextmanager
def queueing(
    net: Net, host: str, hook: str, number: int = 1, priority: int | None = None, **criteria: Any
) -> Iterator[Queue]:
    where = net.hosts[host]
    options = {"conntrack": criteria.pop("conntrack")} if "conntrack" in criteria else {}
    more = {} if priority is None else {"priority": priority}
    with (
        rules.queue(number, hook=hook, netns=where, **more, **criteria),
        Queue(number, netns=where, **options) as queue,
    ):
        yield queue


def get(queue: Queue) -> Packet:
    """The next packet, undecided."""
    return collect(queue, 1)[0]


def ss(net: Net, host: str, protocol: str) -> dict[int, set[int]]:
    """Return the processes by local port, according to ss."""
    if shutil.which("ss") is None:
        pytest.skip("there is no ss on this machine")
    flag = {"tcp": "-t", "udp": "-u"}[protocol]
    done = net.at(host, lambda: subprocess.run(["ss", flag, "-anpH"], capture_output=True, text=True, check=True))
    found: dict[int, set[int]] = {}
    for line in done.stdout.splitlines():
        port = int(line.split()[3].rpartition(":")[2])
        found.setdefault(port, set()).update(map(int, re.findall(r"pid=(\d+)", line)))
    return found


@pytest.fixture(params=[V4, V6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def made(kind: str, family: int) -> str:
    """Code that makes a socket."""
    return f"s = socket.socket({family}, socket.SOCK_{'STREAM' if kind == 'tcp' else 'DGRAM'})"


@pytest.mark.feature("processes")
@pytest.mark.parametrize("hook", ["output", "postrouting"])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_sender(net: Net, run: Callable[..., Program], kind: str, family: int, hook: str) -> None:
    others = [run("client"), run("server")]
    program = run("client", "one", "two words")
    others.append(run("client"))
    with queueing(net, "client", hook, protocol=kind, destination_port=PORT) as queue:
        address = (ADDRESS["server", family], PORT)
        program.do(made(kind, family) + "; s.setblocking(False)")
        if kind == "tcp":
            program.do(f"s.connect_ex({address})")
        else:
            program.do(f"s.sendto(b'x', {address})")  # not connected, bound to the wildcard by that
        packet = get(queue)
        process = packet.process
        assert process is not None
        assert process.pid == program.pid
        assert process.name == Path(f"/proc/{program.pid}/comm").read_text().strip()
        assert process.executable == os.path.realpath(sys.executable)
        assert process.command_line is not None
        assert process.command_line[-2:] == ("one", "two words")
        assert process.uid == os.geteuid()
        groups = Path(f"/proc/{program.pid}/cgroup").read_text()  # empty where no hierarchy is mounted
        assert process.cgroup in groups if process.cgroup else not groups
        assert packet.flow is not None
        assert packet.flow.source_port is not None
        assert ss(net, "client", kind)[packet.flow.source_port] == {program.pid}
        assert process_of(packet.flow, netns=net.hosts["client"]) == process
        assert process_of(packet.flow, netns=net.hosts["server"]) is None
        assert packet.process == process


@pytest.mark.feature("processes")
@pytest.mark.parametrize("hook", ["input", "prerouting"])
@pytest.mark.parametrize("bound", ["wildcard", "address", "dual-stack"])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_receiver(net: Net, run: Callable[..., Program], kind: str, bound: str, hook: str, family: int) -> None:
    program, other = run("server"), run("server")
    if bound == "dual-stack":
        program.do(
            made(kind, V6) + f"; s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0); s.bind(('::', {PORT}))"
        )
    else:
        address = ADDRESS["server", family] if bound == "address" else ("::" if family == V6 else "0.0.0.0")
        program.do(made(kind, family) + f"; s.bind(({address!r}, {PORT}))")
    if kind == "tcp":
        program.do("s.listen()")
    other.do(made(kind, family) + f"; s.bind(('', {PORT + 1}))")
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    with queueing(net, "server", hook, protocol=kind, destination_port=PORT) as queue:
        sender = net.open_socket("client", family, kinds[kind])
        sender.setblocking(False)
        sender.connect_ex((ADDRESS["server", family], PORT))
        if kind == "udp":
            sender.send(b"x")
        packet = get(queue)
        process = packet.process
        assert process is not None
        assert process.pid == program.pid
        assert ss(net, "server", kind)[PORT] == {program.pid}
        assert packet.flow is not None
        assert process_of(packet.flow, netns=net.hosts["server"]) == process


def test_connection_before_and_after_it_is_accepted(net: Net, run: Callable[..., Program]) -> None:
    """The one that listens, and then the one that has accepted it: its child."""
    program = run("server")
    program.do(f"l = socket.create_server(('', {PORT})); r, w = os.pipe(); told, tell = os.pipe()")
    accepting = (
        "os.close(w), os.read(r, 1), globals().update(a=l.accept()), os.write(tell, b'x'), os.read(r, 1), os._exit(0)"
    )
    child = int(program.do(f"child = os.fork(); child or ({accepting}); print(child)"))
    seen = []

    def look(queue: Queue) -> None:
        packet = get(queue)
        seen.append(packet.process and packet.process.pid)
        packet.accept()
        queue.flush()

    with queueing(net, "server", "input", protocol="tcp", destination_port=PORT) as queue:
        client = net.open_socket("client", V4, socket.SOCK_STREAM)
        client.setblocking(False)
        client.connect_ex((ADDRESS["server", V4], PORT))
        look(queue)
        look(queue)
        client.send(b"before")
        look(queue)
        program.do("_ = os.write(w, b'x'), os.read(told, 1)")
        client.send(b"after")
        look(queue)
    assert seen == [program.pid, program.pid, program.pid, child]


def test_sender_of_answers(net: Net, run: Callable[..., Program], family: int) -> None:
    """SYN and ACK of a server, and its data."""
    program = run("server")
    program.do(f"s = socket.create_server(({ADDRESS['server', family]!r}, {PORT}), family={family})")
    with queueing(net, "server", "output", protocol="tcp", source_port=PORT) as queue:
        client = net.open_socket("client", family, socket.SOCK_STREAM)
        client.setblocking(False)
        client.connect_ex((ADDRESS["server", family], PORT))
        packet = get(queue)
        assert packet.tcp is not None
        assert packet.tcp.flags == inet.TcpFlag.SYN | inet.TcpFlag.ACK
        assert packet.process is not None
        assert packet.process.pid == program.pid
        packet.accept()
        queue.flush()
        program.do("a, _ = s.accept()")
        program.do("a.send(b'hello')")
        packet = get(queue)
        assert packet.process is not None
        assert packet.process.pid == program.pid


def test_of_several_with_one_socket_it_is_the_ancestor(net: Net, run: Callable[..., Program]) -> None:
    net.receiver("server", port=PORT)
    program = run("client")
    program.do(made("udp", V4) + f"; s.connect({(ADDRESS['server', V4], PORT)})")
    # The child has the higher pid, and sends.
    sending = (
        "os.close(w), os.read(r, 1), s.send(b'by it'), os.read(r, 1), s.send(b'again'), os.read(r, 1), os._exit(0)"
    )
    program.do(f"r, w = os.pipe(); child = os.fork(); child or ({sending})")
    child = int(program.do("print(child)"))
    with queueing(net, "client", "output", protocol="udp", destination_port=PORT) as queue:
        program.do("_ = os.write(w, b'x')")
        packet = get(queue)
        assert ss(net, "client", "udp").popitem()[1] == {program.pid, child}
        assert packet.process is not None
        assert packet.process.pid == program.pid
        packet.accept()
        program.do("s.close()")  # now it is the child's alone
        assert packet.process is not None
        assert packet.process.pid == child
        program.do("_ = os.write(w, b'x')")
        later = get(queue)
        assert later.process is not None
        assert later.process.pid == child
        later.accept()


def test_of_several_sockets_it_is_the_one_that_gets_the_packet(net: Net, run: Callable[..., Program]) -> None:
    programs = [run("server") for _ in range(4)]
    for program in programs:
        program.do(made("udp", V4) + "; s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)")
        program.do(f"s.bind(('', {PORT})); s.setblocking(False)")
    expected: dict[int, int] = dict.fromkeys((program.pid for program in programs), 0)
    with queueing(net, "server", "input", protocol="udp", destination_port=PORT) as queue:
        for _ in range(16):
            net.open_socket("client").sendto(b"x", (ADDRESS["server", V4], PORT))
            packet = get(queue)
            assert packet.process is not None
            expected[packet.process.pid] += 1
            packet.accept()
            queue.flush()
        barrier = programs[0]
    counting = "n = 0\\nwhile True:\\n try: s.recv(1)\\n except BlockingIOError: break\\n n += 1\\nprint(n)"
    got = {program.pid: int(program.do(f"exec('{counting}')")) for program in programs}
    assert barrier
    assert got == expected
    assert sum(got.values()) == 16


def test_connected_socket_goes_before_the_wildcard(net: Net, run: Callable[..., Program]) -> None:
    wild, connected = run("client"), run("client")
    reuse = made("udp", V4) + "; s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)"
    wild.do(reuse + f"; s.bind(('', {PORT}))")
    connected.do(reuse + f"; s.bind(('', {PORT})); s.connect({(ADDRESS['server', V4], PORT)})")
    with queueing(net, "client", "output", protocol="udp", source_port=PORT) as queue:
        connected.do("s.send(b'x')")
        first = get(queue)
        wild.do(f"s.sendto(b'x', {(ADDRESS['router', V4], PORT)})")
        second = get(queue)
        assert [packet.process and packet.process.pid for packet in (first, second)] == [connected.pid, wild.pid]


def test_port_that_is_used_again(net: Net, run: Callable[..., Program]) -> None:
    first, second = run("client"), run("client")
    with queueing(net, "client", "output", protocol="udp", destination_port=PORT) as queue:
        for program in (first, second, first):
            program.do(made("udp", V4) + f"; s.bind(('', {PORT})); s.sendto(b'x', {(ADDRESS['server', V4], PORT)})")
            packet = get(queue)
            assert packet.process is not None
            assert packet.process.pid == program.pid
            program.do("s.close()")
            assert packet.process is None
            packet.accept()


def test_descriptor_that_is_used_again(net: Net, run: Callable[..., Program]) -> None:
    """The process still has that descriptor, but it is something else."""
    program, heir = run("client"), run("client")
    with queueing(net, "client", "output", protocol="udp", destination_port=PORT) as queue:
        program.do(made("udp", V4) + f"; s.connect({(ADDRESS['server', V4], PORT)}); s.send(b'x')")
        packet = get(queue)
        assert packet.process is not None
        assert packet.process.pid == program.pid
        path = f"\0nfnet-{program.pid}"
        heir.do(f"u = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); u.bind({path!r})")
        program.do(f"u = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); u.connect({path!r})")
        program.do("_ = socket.send_fds(u, [b'x'], [s.fileno()]); n = s.detach(); os.dup2(u.fileno(), n)")
        heir.do("_, fds, _, _ = socket.recv_fds(u, 1, 1)")
        assert packet.process is not None
        assert packet.process.pid == heir.pid


def test_program_that_becomes_another(net: Net, run: Callable[..., Program]) -> None:
    program = run("client")
    with queueing(net, "client", "output", protocol="udp", destination_port=PORT) as queue:
        program.do(
            made("udp", V4) + f"; s.connect({(ADDRESS['server', V4], PORT)}); s.send(b'x'); s.set_inheritable(True)"
        )
        packet = get(queue)
        before = packet.process
        assert before is not None
        program.begin("os.execvp('sleep', ['sleep', '1000'])")
        # The kernel sets the name first and the arguments later.
        assert wait_for(lambda: Path(f"/proc/{program.pid}/cmdline").read_bytes() == b"sleep\x001000\x00")
        process = packet.process
        assert process is not None
        assert (process.pid, process.name, process.command_line) == (program.pid, "sleep", ("sleep", "1000"))
        assert process.executable != before.executable


def test_process_that_has_ended(net: Net, run: Callable[..., Program]) -> None:
    program = run("client")
    with queueing(net, "client", "output", protocol="udp", destination_port=PORT) as queue:
        program.do(made("udp", V4) + f"; s.sendto(b'x', {(ADDRESS['server', V4], PORT)})")
        packet = get(queue)
        assert packet.process is not None
        program.end()
        assert packet.process is None
        assert packet.flow is not None
        assert process_of(packet.flow, netns=net.hosts["client"]) is None


def test_what_is_sent_when_the_program_has_ended(net: Net, run: Callable[..., Program]) -> None:
    """It closes a connection while its data are in the kernel: they are still its own, if it was seen before."""
    server = net.open_socket("server", V4, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    server.bind(("", PORT))
    server.listen()
    program = run("client")
    with queueing(net, "client", "output", protocol="tcp", destination_port=PORT) as queue:
        program.begin(made("tcp", V4) + f"; s.connect({(ADDRESS['server', V4], PORT)})")
        first = get(queue)
        process = first.process
        assert process is not None
        assert process.pid == program.pid
        first.accept()
        get(queue).accept()
        queue.flush()
        program.answer()
        program.do("s.setblocking(False); s.send(bytes(100000))")
        # A segment that was not answered at once was sent again, and arrives before it.
        while not ((data := get(queue)).tcp and data.tcp.data):
            data.accept()
        program.end()
        assert not Path(f"/proc/{program.pid}").exists()
        assert data.process == process


def test_what_goes_through_is_nobodys(net: Net, run: Callable[..., Program]) -> None:
    """Even if a program on the way has a socket that would accept it, or the sender's port."""
    programs = [run("router"), run("router")]
    for program, port in zip(programs, (PORT, PORT + 1)):
        program.do(made("udp", V4) + f"; s.bind(('', {port}))")
    sender = net.receiver("client", port=PORT + 1)
    for hook in ("prerouting", "forward", "postrouting"):
        with queueing(net, "router", hook, protocol="udp", destination_port=PORT) as queue:
            sender.sendto(b"x", (ADDRESS["server", V4], PORT))
            packet = get(queue)
            assert packet.process is None, hook
            assert packet.flow is not None
            assert process_of(packet.flow, netns=net.hosts["router"]) is None
    with queueing(net, "router", "prerouting", protocol="udp", destination_port=PORT) as queue:
        sender.sendto(b"x", (ADDRESS["router", V4], PORT))
        packet = get(queue)
        assert packet.process is not None
        assert packet.process.pid == programs[0].pid


@pytest.mark.feature("processes")
@pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
def test_ping(net: Net, run: Callable[..., Program], family: int) -> None:
    def allow() -> None:
        Path("/proc/sys/net/ipv4/ping_group_range").write_text(f"0 {os.getegid()}")

    net.at("client", allow)
    program, other = run("client"), run("client")
    protocol, request = (socket.IPPROTO_ICMP, 8) if family == V4 else (socket.IPPROTO_ICMPV6, 128)
    for each in (other, program):
        each.do(f"s = socket.socket({family}, socket.SOCK_DGRAM, {protocol})")
        each.do(f"s.connect(({ADDRESS['server', family]!r}, 0))")
    name = "icmp" if family == V4 else "icmpv6"
    for hook in ("output", "input"):
        with queueing(net, "client", hook, protocol=name) as queue:
            program.do(f"s.send(bytes([{request}]) + bytes(7) + b'ping')")
            while (packet := get(queue)).icmp is not None and packet.icmp.type not in (
                request,
                request + (1 if family == V6 else -8),
            ):
                packet.accept()
            assert packet.process is not None
            assert packet.process.pid == program.pid
            packet.accept()
            queue.flush()


def test_ping_that_the_kernel_answers(net: Net, run: Callable[..., Program]) -> None:
    """The identifier is that of a ping socket here, and also of another host's request."""
    for host in ("client", "server"):
        net.at(host, lambda: Path("/proc/sys/net/ipv4/ping_group_range").write_text(f"0 {os.getegid()}"))
    make = f"s = socket.socket({V4}, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)"
    make += "; s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)"
    local, remote, elsewhere = run("server"), run("client"), run("client")
    local.do(make + "; s.bind(('', 77))")
    remote.do(make + f"; s.bind(({ADDRESS['client', V4]!r}, 77)); s.connect(({ADDRESS['server', V4]!r}, 0))")
    elsewhere.do(make + "; s.bind(('127.0.0.1', 77))")
    with (
        queueing(net, "client", "output", protocol="icmp") as outgoing,
        queueing(net, "server", "input", 2, protocol="icmp") as incoming,
        queueing(net, "server", "output", 3, protocol="icmp") as answers,
    ):
        remote.do("s.send(bytes([8]) + bytes(7))")
        seen = []
        for queue in (outgoing, incoming, answers):
            packet = get(queue)
            assert packet.icmp is not None
            assert packet.icmp.rest[:2] == (77).to_bytes(2, "big")
            seen.append(packet.process and packet.process.pid)
            packet.accept()
            queue.flush()
        assert seen == [remote.pid, None, None]


def test_logged_packets(net: Net, run: Callable[..., Program]) -> None:
    program = run("client")
    with (
        rules.log(5, hook="output", protocol="udp", netns=net.hosts["client"]),
        Log(5, netns=net.hosts["client"], threshold=1) as log,
    ):
        program.do(made("udp", V4) + f"; s.sendto(b'x', {(ADDRESS['server', V4], PORT)})")
        message = next(iter(log))
        assert message.process is not None
        assert message.process.pid == program.pid


@pytest.mark.feature("processes behind translated addresses")
def test_address_that_was_translated(net: Net, run: Callable[..., Program]) -> None:
    """The rule is after DNAT; the socket has another destination than the packet."""
    if shutil.which("nft") is None:
        pytest.skip("there is no nft on this machine")
    chain = f"type nat hook output priority -100; ip daddr 192.0.2.9 dnat to {ADDRESS['server', V4]};"
    nat = f"table ip nat {{ chain output {{ {chain} }}; }}"
    done = net.at("client", lambda: subprocess.run(["nft", nat], capture_output=True, text=True, check=False))
    if done.returncode:
        kernel_lacks("NAT", option="CONFIG_NFT_NAT")
    if lacking(Queue(1, netns=net.hosts["client"], conntrack=True)):
        kernel_lacks(**GLUE)
    program = run("client")
    with queueing(net, "client", "output", protocol="tcp", destination_port=PORT, conntrack=True) as queue:
        program.do(made("tcp", V4) + f"; s.setblocking(False); s.connect_ex(('192.0.2.9', {PORT}))")
        packet = get(queue)
        assert packet.ip is not None
        assert packet.ip.destination == ADDRESS["server", V4]
        assert packet.process is not None
        assert packet.process.pid == program.pid


def test_socket_that_is_bound_to_an_interface(net: Net, run: Callable[..., Program]) -> None:
    program = run("server")
    program.do(made("tcp", V4) + "; s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'to-router')")
    program.do(f"s.bind(('', {PORT})); s.listen()")
    with queueing(net, "server", "input", protocol="tcp", destination_port=PORT) as queue:
        client = net.open_socket("client", V4, socket.SOCK_STREAM)
        client.setblocking(False)
        client.connect_ex((ADDRESS["server", V4], PORT))
        packet = get(queue)
        assert packet.process is not None
        assert packet.process.pid == program.pid


def test_in_the_namespace_of_the_program_itself(net: Net) -> None:
    """It need not enter a namespace, for which it has no privilege any more; it can see its own sockets."""

    def child() -> None:
        netns.enter(net.hosts["client"])
        with rules.queue(1, hook="output", protocol="udp"), Queue(1) as queue:
            keep_capabilities(1 << CAP_NET_ADMIN)
            with socket.socket(V4, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"x", (ADDRESS["server", V4], PORT))
                packet = get(queue)
                assert packet.process is not None
                assert packet.process.pid == os.getpid()
                packet.accept()
            assert packet.process is None
            os.kill(os.getpid(), signal.SIGCONT)
        assert packet.process is None

    assert in_child(child) == 0


CAP_NET_ADMIN, CAP_SYS_PTRACE = 12, 19


def keep_capabilities(mask: int) -> None:
    """Give up all other capabilities of this process, for good."""
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    data = struct.pack("=6I", mask, mask, 0, 0, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())


@pytest.mark.parametrize(
    ("mask", "seen"),
    [(0, False), (1 << CAP_NET_ADMIN, False), (1 << CAP_NET_ADMIN | 1 << CAP_SYS_PTRACE, True)],
    ids=["none", "CAP_NET_ADMIN", "CAP_SYS_PTRACE"],
)
def test_without_privileges_others_are_nobody(net: Net, run: Callable[..., Program], mask: int, seen: bool) -> None:
    """The files of a program with more capabilities cannot be read."""
    program = run("client")

    def child() -> None:
        netns.enter(net.hosts["client"])
        with rules.queue(1, hook="output", protocol="udp"), Queue(1) as queue:
            program.do(made("udp", V4) + f"; s.sendto(b'x', {(ADDRESS['server', V4], PORT)})")
            packet = get(queue)
            assert packet.flow is not None
            assert packet.process is not None
            keep_capabilities(mask)
            for process in (packet.process, process_of(packet.flow)):
                assert (process and process.pid) == (program.pid if seen else None)
            os._exit(0)

    assert in_child(child) == 0


def test_process_in_a_pid_namespace_that_cannot_be_seen(net: Net, run: Callable[..., Program]) -> None:
    program = run("client")
    program.do(made("udp", V4) + f"; s.bind(({ADDRESS['client', V4]!r}, {PORT}))")
    flow = inet.Flow(17, ADDRESS["client", V4], PORT, ADDRESS["server", V4], PORT)
    process = process_of(flow, netns=net.hosts["client"])
    assert process is not None
    assert process.pid == program.pid
    code = f"import nfnet; print(nfnet.process_of(nfnet.inet.Flow(*{tuple(flow)})))"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    done = net.at(
        "client", lambda: subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    )
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(done.stderr)
    assert (done.stdout, done.stderr) == ("None\n", "")


def test_many_threads_ask_at_once(net: Net, run: Callable[..., Program]) -> None:
    import threading

    programs = [run("client") for _ in range(4)]
    packets = []
    with queueing(net, "client", "output", protocol="udp", destination_port=PORT) as queue:
        for program in programs:
            program.do(made("udp", V4) + f"; s.sendto(b'x', {(ADDRESS['server', V4], PORT)})")
            packets.append(get(queue))
        wrong: list[Any] = []

        def ask(packet: Packet, pid: int) -> None:
            for _ in range(300):
                process = packet.process
                if process is None or process.pid != pid:
                    wrong.append((pid, process))

        threads = [
            threading.Thread(target=ask, args=pair)
            for pair in zip(packets, [p.pid for p in programs])
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_child_of_the_program_asks(net: Net, run: Callable[..., Program]) -> None:
    """The netlink sockets of parent and child are not the same, so that neither gets the other's answers."""
    program = run("client")
    program.do(made("udp", V4) + f"; s.bind(({ADDRESS['client', V4]!r}, {PORT}))")
    flow = inet.Flow(17, ADDRESS["client", V4], PORT, ADDRESS["server", V4], PORT)
    with queueing(net, "client", "output", protocol="udp", destination_port=PORT) as queue:
        program.do(f"s.sendto(b'x', {(ADDRESS['server', V4], PORT)})")
        packet = get(queue)
        assert packet.process is not None

        def child() -> None:
            assert packet.process is None  # it has no part in the queue
            process = process_of(flow, netns=net.hosts["client"])
            assert process is not None
            assert process.pid == program.pid

        assert in_child(child) == 0
        assert isinstance(packet.process, Process)
        assert not readable(queue, 0)
