"""``nfnet demo``: real packets, in namespaces of its own."""

from __future__ import annotations

import argparse
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from .. import Packet, Queue, inet, netns, rules
from ..errors import KernelError

_SENDER_MAC, _RECEIVER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
_SENDER: dict[int, str] = {socket.AF_INET: "10.77.0.1", socket.AF_INET6: "fd77::1"}
_RECEIVER: dict[int, str] = {socket.AF_INET: "10.77.0.2", socket.AF_INET6: "fd77::2"}
_PORT = 7777
_TIMEOUT = 2.0  # seconds, for anything to arrive
_TCP_FLAGS = ((0x02, "SYN"), (0x10, "ACK"), (0x08, "PSH"), (0x01, "FIN"), (0x04, "RST"))

SCRIPT = """\
import nfnet
from nfnet import inet

def handle(packet):
    data = inet.get_data(packet.payload)
    if data and b"secret" in data:
        packet.drop()
    elif data and b"cat" in data:
        packet.accept(payload=inet.replace_data(packet.payload, data.replace(b"cat", b"elephant")))
    else:
        packet.accept()

with nfnet.rules.queue(1, hook="output", protocol="udp", destination_port=7777):
    with nfnet.Queue(1) as queue:
        queue.run(handle)
"""

EPILOG = """\
Makes two network namespaces of its own, sends a few packets from one to the other, and shows what a short handler
does with them. Needs no privileges where users may make namespaces, and touches nothing outside of them.

exit status: 0 if all went as it should, 1 if not, or if this machine does not allow it
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
    """Show it, and return the exit status."""
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
    print(f"nfnet demo needs {what}, and this machine refuses:\n  {error}", file=sys.stderr)
    print("A recording to show instead does not come with this version.", file=sys.stderr)
    return 1


def _namespaces() -> tuple[BinaryIO, BinaryIO]:
    try:
        first = netns.create()
    except KernelError:
        netns.become_root()
        first = netns.create()
    return first, netns.create()


def handle(packet: Packet) -> str:
    """The handler; says what it did."""
    data = inet.get_data(packet.payload) or b""
    if b"secret" in data:
        packet.drop()
        return "drop"
    if b"cat" in data:
        packet.accept(payload=inet.replace_data(packet.payload, data.replace(b"cat", b"elephant")))
        return "accept, rewritten"
    if b"mark me" in data:
        packet.repeat(mark=1)
        return "mark 1, repeat"
    packet.accept()
    return "accept"


class _Demo:
    """Two namespaces with a cable between them, and a queue in the first."""

    def __init__(self, sender: BinaryIO, receiver: BinaryIO) -> None:
        self._sender, self._receiver = sender, receiver
        self._queue = Queue(1, netns=sender)
        self._rule = rules.queue(1, hook="output", not_mark=1, netns=sender)
        self._right = True

    def __enter__(self) -> _Demo:
        netns.call_in(self._sender, lambda: _make_cable(self._receiver))
        netns.call_in(self._receiver, lambda: _configure("right", _RECEIVER, _SENDER, _SENDER_MAC))
        self._rule.__enter__()
        try:
            self._queue.open()
        except BaseException:
            self._rule.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *details: Any) -> None:
        self._queue.close()
        self._rule.__exit__(None, None, None)

    def show(self) -> None:
        print("Two network namespaces, with a cable between them. In the first, this rule:")
        print("    output: mark != 1 -> queue 1        (put there without iptables or nft)\n")
        for family in (socket.AF_INET, socket.AF_INET6):
            self._udp(family, b"hello", b"hello")
            self._udp(family, b"this is secret", None)
            self._udp(family, b"the cat", b"the elephant")
            self._udp(family, b"mark me", b"mark me")
            self._tcp(family)
            self._ping(family)

    def summary(self) -> bool:
        """Print the counters and the script; whether everything was as it should be."""
        counters = self._queue.counters
        verdicts = counters.accepted + counters.dropped + counters.repeated + counters.requeued
        print(f"\nreceived {counters.received} = {counters.accepted} accepted + {counters.dropped} dropped", end="")
        print(f" + {counters.repeated} repeated + {counters.pending} pending; lost {counters.lost}")
        balanced = counters.received == verdicts + counters.pending and counters.pending == counters.lost == 0
        if not balanced or not self._right:
            print("\nThat is not what should have happened. Please report it.", file=sys.stderr)
            return False
        print("\nA script to begin with; run it as root:\n")
        print("".join(f"    {line}\n" if line else "\n" for line in SCRIPT.splitlines()), end="")
        return True

    def _handle(self, packet: Packet) -> None:
        print(f"{packet.id:3}  {_describe(packet.payload):<58}  {handle(packet)}")

    def _run_until(self, done: Callable[[], bool], timeout: float = _TIMEOUT) -> bool:
        """Let the queue work until ``done``; whether that came about in time."""
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
        print(f"       {what}" + ("" if right else "   <- WRONG"))

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
                return
            self._run_until(lambda: _readable(server))
            got = server.recv(100) if _readable(server) else None
            self._report(f"the receiver got {_quote(got)}", got == expected)

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

    def _ping(self, family: int) -> None:
        protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
        request, reply = (8, 0) if family == socket.AF_INET else (128, 129)
        with self._socket(self._sender, family, socket.SOCK_RAW, protocol) as sock:
            message = struct.pack("!BBHHH", request, 0, 0, 1, 1) + b"ping"
            if family == socket.AF_INET:  # for ICMPv6 the kernel fills it in
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
            # Known neighbours: no ARP and no neighbour discovery among the packets to be seen.
            ip.neigh("replace", dst=others[family], lladdr=other_mac, ifindex=index, state=0x80)  # NUD_PERMANENT


def _readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def _quote(data: bytes | None) -> str:
    return "nothing" if data is None else repr(data.decode("ascii", "replace"))


def _describe(packet: bytes) -> str:
    family = socket.AF_INET if packet[0] >> 4 == 4 else socket.AF_INET6
    if family == socket.AF_INET:
        raw, protocol = (packet[12:16], packet[16:20]), packet[9]
    else:
        raw, protocol = (packet[8:24], packet[24:40]), packet[6]
    source, destination = (socket.inet_ntop(family, address) for address in raw)
    where = inet.transport(packet)
    if where is None:
        kind = {socket.IPPROTO_ICMP: "ICMP", socket.IPPROTO_ICMPV6: "ICMPv6"}.get(protocol, "IPv6")
        return f"{kind:<6} {source} > {destination}"
    ports = struct.unpack_from("!HH", packet, where.header)
    text = f"{ports[0]} > {destination} {ports[1]}"
    data = packet[where.data :]
    if where.protocol == socket.IPPROTO_TCP:
        flags = packet[where.header + 13]
        names = " ".join(name for bit, name in _TCP_FLAGS if flags & bit)
        return f"TCP    {source} {text} {_quote(data) if data else names}"
    return f"UDP    {source} {text} {_quote(data)}"
