"""``nfnet demo``: show a handler at work on real packets, in network namespaces of its own."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import select
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import nfnet
from nfnet import KernelError, Verdict, collect, inet, netns, rules
from nfnet._printable import printable
from nfnet.collect._queries import ask
from nfnet.stats import find_log

from .colours import paint
from .tables import table

_SENDER_MAC, _RECEIVER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
_SENDER: dict[int, str] = {socket.AF_INET: "10.77.0.1", socket.AF_INET6: "fd77::1"}
_RECEIVER: dict[int, str] = {socket.AF_INET: "10.77.0.2", socket.AF_INET6: "fd77::2"}
_PORT = 7777
_TIMEOUT = 2.0  # seconds, for anything to arrive
_START = 10.0  # seconds, for another program to begin

_ARRIVED = "arrived: "
_COLLECTED = 6  # the group that is collected
_QUESTIONS = ("top ports", "SELECT prefix, indev, source FROM messages WHERE tcp_flags = 2")
_COLOURS = {"accept": "green", "drop": "red", "accept, rewritten": "yellow", "mark 1, repeat": "magenta"}
RECORDING = Path(__file__).with_name("demo.pcapng")


def handle(packet: nfnet.Packet) -> None:
    data = packet.udp.data if packet.udp else b""
    if b"secret" in data:
        packet.drop()
    elif b"cat" in data:
        packet.accept(payload=packet.rewrite(data=data.replace(b"cat", b"elephant")))
    elif b"mark me" in data:
        packet.repeat(mark=1)
    else:
        packet.accept()


def script() -> str:
    """Return a complete program with the handler."""
    return f"""\
import nfnet


{inspect.getsource(handle)}

with nfnet.rules.queue(1, hook="output", protocol="udp", destination_port=7777, not_mark=1):
    with nfnet.Queue(1) as queue:
        queue.run(handle)
"""


EPILOG = """\
Makes two network namespaces, sends a few packets from one to the other, and
shows what a short handler does with them. Changes nothing outside of these
namespaces, and needs no privileges if users are permitted to make namespaces.
If they are not, it prints what is missing and replays a recording.

    nfnet demo

In a terminal it uses colours, unless the variable NO_COLOR is set.

exit status: 0 if all packets were handled as expected, else 1
"""


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "demo",
        help="show packets being accepted, dropped, rewritten and marked",
        description=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the demonstration, and return the exit status."""
    try:
        sender, receiver = _namespaces()
    except KernelError as error:
        return _not_possible(error, "namespaces of its own")
    try:
        with sender, receiver, _Demo(sender, receiver) as demo:
            demo.show()
            return 0 if demo.summary() else 1
    except KernelError as error:
        return _not_possible(error, "NFQUEUE in them")


def _not_possible(error: KernelError, what: str) -> int:
    print(f"nfnet demo needs {what}, and this machine refuses:\n  {error}\n", file=sys.stderr)
    _print_heading("This is a recording of the demonstration instead, which the same handler decides again.\n")
    return _replay()


def _replay() -> int:
    """Show the recording that comes with the package."""
    replay = nfnet.replay(RECORDING)
    with nfnet.Queue(1, transport=replay) as queue:
        for packet in queue:
            _handle_and_show(packet)
        counters = queue.counters
    _print_heading("\nWhat the rule at the other end logged:")
    with nfnet.Log(5, transport=nfnet.replay(RECORDING)) as log:
        for message in log:
            _show_message(message)
    with tempfile.TemporaryDirectory() as directory:
        output = collect.output(f"sqlite:{directory}/firewall.db")
        output.begin()
        with nfnet.Log(5, transport=nfnet.replay(RECORDING)) as log:
            output.write(collect.Batch(collect.Session.begin(5), [*log]))
        output.close()
        _print_heading("\nThe same in a database of nfnet collect:")
        _show_answers(output.target)
    same = replay.verdicts == replay.recorded
    print(f"\n{counters.received} packets; the verdicts are {'those' if same else 'NOT those'} of the recording")
    return 0 if same else 1


def _namespaces() -> tuple[BinaryIO, BinaryIO]:
    try:
        first = netns.create()
    except KernelError:
        netns.become_root()
        first = netns.create()
    return first, netns.create()


class _Demo:
    """Two namespaces with a cable between them, and a queue in the first."""

    def __init__(self, sender: BinaryIO, receiver: BinaryIO) -> None:
        self._sender, self._receiver = sender, receiver
        self._queue = nfnet.Queue(1, netns=sender, rcvbuf=200_000)  # a size that needs no privileges
        self._log = nfnet.Log(5, threshold=1, netns=receiver)
        self._database = ""
        self._stack = contextlib.ExitStack()
        self._right = True
        self._housekeeping = 0

    def __enter__(self) -> _Demo:
        netns.call_in(self._sender, lambda: _make_cable(self._receiver))
        netns.call_in(self._receiver, lambda: _configure("right", _RECEIVER, _SENDER, _SENDER_MAC))
        with contextlib.ExitStack() as stack:
            self._database = str(Path(stack.enter_context(tempfile.TemporaryDirectory()), "firewall.db"))
            self._collecting = stack.enter_context(_collecting(self._receiver, self._database))
            stack.enter_context(rules.queue(1, hook="output", not_mark=1, netns=self._sender))
            for group in (5, _COLLECTED):
                stack.enter_context(rules.log(group, prefix=_ARRIVED, hook="input", netns=self._receiver))
            stack.enter_context(self._queue)
            stack.enter_context(self._log)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *details: Any) -> None:
        self._stack.close()

    def show(self) -> None:
        _print_heading(
            "Two network namespaces with a cable between them, and two rules, put there without iptables or nft:"
        )
        print("    in the first     output: mark != 1 -> queue 1")
        print(f'    in the second    input: log "{_ARRIVED}" -> group 5\n')
        for family in (socket.AF_INET, socket.AF_INET6):
            self._udp(family, b"hello", b"hello")
            self._udp(family, b"this is secret", None)
            self._udp(family, b"the cat", b"the elephant")
            self._udp(family, b"mark me", b"mark me")
            self._tcp(family)
            self._ping(family)

    def summary(self) -> bool:
        """Print the counters and the script; return whether all results are as expected."""
        counters = self._queue.counters
        verdicts = counters.accepted + counters.dropped + counters.repeated + counters.requeued
        verdicts_of = f"{counters.accepted} accepted + {counters.dropped} dropped + {counters.repeated} repeated"
        _print_heading(
            f"\nreceived {counters.received} = {verdicts_of} + {counters.pending} pending; lost {counters.lost}"
        )
        if self._housekeeping:
            print(f"(among the accepted, and not shown above: {self._housekeeping} packets that IPv6 itself sent)")
        balanced = counters.received == verdicts + counters.pending and counters.pending == counters.lost == 0
        self._collecting.terminate()
        complete = self._collecting.wait(_START) == 0
        _print_heading(
            f"\nMeanwhile the rule in the second logged to group {_COLLECTED}, too. Collected in a database:"
        )
        print(f"\n    $ nfnet collect --group {_COLLECTED} --to firewall.db")
        _show_answers(self._database)
        if not balanced or not self._right or not complete:
            print("\nThat is not what should have happened. Please report it.", file=sys.stderr)
            return False
        _print_heading("\nThe handler that did it, in a script that you can copy and run as root:\n")
        print(textwrap.indent(script(), "    "), end="")
        return True

    def _handle(self, packet: nfnet.Packet) -> None:
        self._housekeeping += not _handle_and_show(packet)

    def _show_log(self, expected: bool) -> None:
        """Show what the rule at the other end logged, except packets without data."""
        seen = 0

        def show(message: nfnet.LogMessage) -> None:
            nonlocal seen
            seen += _show_message(message)

        self._run_until(lambda: self._log.process(show) == 0 and seen > 0, _TIMEOUT if expected else 0)
        self._right &= bool(seen) == expected

    def _run_until(self, done: Callable[[], bool], timeout: float = _TIMEOUT) -> bool:
        """Process packets until ``done`` returns True; return whether it did within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            select.select([self._queue], [], [], min(left, 0.01))
            self._queue.process(self._handle)
        return True

    def _socket(self, where: BinaryIO, family: int, kind: int, protocol: int = 0) -> socket.socket:
        sock = netns.call_in(where, lambda: socket.socket(family, kind, protocol))
        sock.setblocking(False)
        return sock

    def _report(self, what: str, right: bool) -> None:
        self._right &= right
        print(f"       {what}" + ("" if right else paint("   <- WRONG", "red")))

    def _udp(self, family: int, data: bytes, expected: bytes | None) -> None:
        with (
            self._socket(self._sender, family, socket.SOCK_DGRAM) as client,
            self._socket(self._receiver, family, socket.SOCK_DGRAM) as server,
        ):
            server.bind((_RECEIVER[family], _PORT))
            before = self._queue.counters.received
            client.sendto(data, (_RECEIVER[family], _PORT))
            self._run_until(lambda: self._queue.counters.received > before and not self._queue.pending)
            if expected is None:
                arrived = self._run_until(lambda: _readable(server), 0.2)
                self._report("the receiver got nothing", not arrived)
                self._show_log(False)
                return
            self._run_until(lambda: _readable(server))
            got = server.recv(100) if _readable(server) else None
            self._report(f"the receiver got {_quote(got)}", got == expected)
            self._show_log(True)

    def _tcp(self, family: int) -> None:
        with (
            self._socket(self._sender, family, socket.SOCK_STREAM) as client,
            self._socket(self._receiver, family, socket.SOCK_STREAM) as listener,
        ):
            listener.bind((_RECEIVER[family], _PORT))
            listener.listen()
            client.connect_ex((_RECEIVER[family], _PORT))
            if not self._run_until(lambda: _readable(listener)):
                self._report("no TCP connection came about", False)
                return
            server = listener.accept()[0]
            with server:
                client.send(b"over TCP")
                self._run_until(lambda: _readable(server))
                got = server.recv(100) if _readable(server) else None
                self._report(f"the receiver got {_quote(got)}", got == b"over TCP")
                self._show_log(True)

    def _ping(self, family: int) -> None:
        protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
        request, reply = (8, 0) if family == socket.AF_INET else (128, 129)
        with self._socket(self._sender, family, socket.SOCK_RAW, protocol) as sock:
            message = struct.pack("!BBHHH", request, 0, 0, 1, 1) + b"ping"
            if family == socket.AF_INET:  # for ICMPv6 the kernel fills in the checksum
                message = message[:2] + inet.checksum(message).to_bytes(2, "big") + message[4:]
            sock.sendto(message, (_RECEIVER[family], 0))

            def answered() -> bool:
                while _readable(sock):
                    answer = sock.recv(1000)
                    if answer[20 if family == socket.AF_INET else 0] == reply:
                        return True
                return False

            right = self._run_until(answered)
            self._report("the receiver answered the ping" if right else "no answer to the ping", right)
            self._show_log(True)


def _print_heading(text: str) -> None:
    print(paint(text, "bold"))


def _handle_and_show(packet: nfnet.Packet) -> bool:
    """Let the handler decide, and print its verdict, unless the packet is not one of the demonstration."""
    handle(packet)
    if not _between_the_two(packet.payload):
        return False
    accepted = "accept, rewritten" if packet.changed else "accept"
    verdict = {Verdict.ACCEPT: accepted, Verdict.DROP: "drop", None: "?"}.get(packet.decided, "mark 1, repeat")
    print(f"{packet.id:3}  {_describe(packet.payload):<58}  {paint(verdict, _COLOURS.get(verdict, 'red'))}")
    return True


def _show_message(message: nfnet.LogMessage) -> bool:
    """Print a logged packet, unless it is not one of the demonstration, or contains no data."""
    if not _between_the_two(message.payload) or inet.get_data(message.payload) == b"":
        return False
    what = " ".join(_describe(message.payload).split())
    print(f"       log: {printable(message.prefix)}{what}, in by {message.indev_name or f'interface {message.indev}'}")
    return True


@contextlib.contextmanager
def _collecting(where: BinaryIO, database: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``nfnet collect`` in a namespace."""
    fd = where.fileno()
    command = [sys.executable, "-m", "nfnet", "collect", "--group", str(_COLLECTED), "--to", database]
    command += ["--netns", f"/proc/self/fd/{fd}"]
    with subprocess.Popen(command, pass_fds=[fd], stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + _START
            while find_log(_COLLECTED, where) is None and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def _show_answers(database: str) -> None:
    """Print the answers of ``nfnet query``."""
    for question in _QUESTIONS:
        print(f'\n    $ nfnet query firewall.db "{question}"')
        for answer in ask(database, question):
            print(textwrap.indent("\n".join(table(answer.columns, answer.rows)), "    "))


def _make_cable(receiver: BinaryIO) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        peer = {"ifname": "right", "net_ns_fd": receiver.fileno(), "address": _RECEIVER_MAC}
        ip.link("add", ifname="left", kind="veth", address=_SENDER_MAC, peer=peer)
    _configure("left", _SENDER, _RECEIVER, _RECEIVER_MAC)


def _configure(name: str, addresses: dict[int, str], others: dict[int, str], other_mac: str) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        index = ip.link_lookup(ifname=name)[0]
        ip.link("set", index=index, state="up")
        for family, address in addresses.items():
            prefix = 24 if family == socket.AF_INET else 64
            no_duplicates = {"flags": 0x02} if family == socket.AF_INET6 else {}  # IFA_F_NODAD: usable at once
            ip.addr("add", index=index, address=address, prefixlen=prefix, **no_duplicates)
            # Permanent neighbours, so that no ARP or neighbour discovery appears among the packets.
            ip.neigh("replace", dst=others[family], lladdr=other_mac, ifindex=index, state=0x80)  # NUD_PERMANENT


def _between_the_two(packet: bytes) -> bool:
    ip = inet.ip(packet)
    return ip is not None and ip.source in _SENDER.values() and ip.destination in _RECEIVER.values()


def _readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def _quote(data: bytes | None) -> str:
    return "nothing" if data is None else repr(data.decode("ascii", "replace"))


def _describe(packet: bytes) -> str:
    ip, tcp, udp = inet.ip(packet), inet.tcp(packet), inet.udp(packet)
    if ip is None:
        return "?"
    upper = tcp or udp
    if upper is None:
        return f"{'ICMP' if ip.version == 4 else 'ICMPv6':<6} {ip.source} > {ip.destination}"
    name, content = "UDP", _quote(upper.data)
    if tcp is not None:
        name = "TCP"
        content = content if tcp.data else " ".join(flag.name or "" for flag in inet.TcpFlag if flag in tcp.flags)
    return f"{name:<6} {ip.source} {upper.source_port} > {ip.destination} {upper.destination_port} {content}"
