"""Verdicts on whole connections, carried out by the kernel: what happens to the later packets, at every hook."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import ArgumentError, Hook, Log, Packet, Queue, inet, rules

from .conftest import ADDRESS, QUIET, TIMEOUT, Net, collect, readable, wait_for
from .programs import is_bound, run, running

V4, V6 = socket.AF_INET, socket.AF_INET6
PORT = 7000
# Hooks that packets from the client to the server pass, and the host of each.
PLACES = {
    "output": "client",
    "postrouting": "client",
    "prerouting": "router",
    "forward": "router",
    "input": "server",
}
REJECTING = ("output", "prerouting", "forward", "input")
PROTOCOLS = {"tcp": {V4: "tcp", V6: "tcp"}, "udp": {V4: "udp", V6: "udp"}, "icmp": {V4: "icmp", V6: "icmpv6"}}


class Exchange:
    """A connection between client and server; `again` sends over it, and returns the outcome."""

    def __init__(self, net: Net, kind: str, family: int, number: int = 0) -> None:
        self.net, self.kind, self.family = net, kind, family
        self.ends: list[socket.socket] = []
        self.address = ADDRESS["server", family], PORT
        self.number = number
        self._count = 0

    def open(self, timeout: float = TIMEOUT) -> str:
        """ "ok", "refused", "timeout"."""
        net, family = self.net, self.family
        if self.kind == "tcp":
            server = net.at("server", lambda: socket.create_server(("", PORT), family=family, reuse_port=True))
            self.ends.append(server)
            client = net.open_socket("client", family, socket.SOCK_STREAM)
            self.ends.append(client)
            client.settimeout(timeout)
            result = said(lambda: client.connect(self.address))
            if result == "ok":
                server.settimeout(TIMEOUT)
                self.ends.append(server.accept()[0])
            return result
        if self.kind == "udp":
            self.ends = [net.receiver("server", family), net.open_socket("client", family)]
        else:
            protocol = socket.IPPROTO_ICMP if family == V4 else socket.IPPROTO_ICMPV6
            client = net.at("client", lambda: socket.socket(family, socket.SOCK_RAW, protocol))
            self.ends = [client, client]
        self.ends[1].connect(self.address)
        return self.again(timeout)

    def again(self, timeout: float = TIMEOUT) -> str:
        """Something from the client to the server, and back."""
        self._count += 1
        client = self.ends[1]
        if self.kind == "icmp":
            return said(lambda: self._ping(client, timeout))
        server = self.ends[2] if self.kind == "tcp" else self.ends[0]

        def talk() -> None:
            data = b"%d" % self._count
            client.settimeout(timeout)
            server.settimeout(timeout)
            client.send(data)
            wait_for(lambda: readable(server, 0) or readable(client, 0), timeout)
            if readable(client, 0):
                client.recv(100)  # raises the error that was sent back
            got, sender = server.recvfrom(100)
            assert got == data
            server.sendto(data, sender) if self.kind == "udp" else server.send(data)
            assert client.recv(100) == data

        return said(talk)

    def _ping(self, client: socket.socket, timeout: float) -> None:
        kind = 8 if self.family == V4 else 128
        message = struct.pack("!BBHHH", kind, 0, 0, 77 + self.number, self._count)
        if self.family == V4:
            message = message[:2] + inet.checksum(message).to_bytes(2, "big") + message[4:]
        client.send(message)
        deadline = time.monotonic() + timeout
        while True:
            client.settimeout(max(deadline - time.monotonic(), 0.001))
            got = client.recv(1000)
            answer = got[20:] if self.family == V4 else got
            if answer[:1] == (b"\0" if self.family == V4 else b"\x81") and answer[4:8] == message[4:8]:
                return

    def close(self) -> None:
        for end in self.ends:
            end.close()
        self.ends = []


def said(function: Callable[[], object]) -> str:
    try:
        function()
    except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
        return "refused"
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return f"refused ({errno.errorcode[error.errno or 0]})"
    return "ok"


class Deciding:
    """A queue whose handler decides with the given function, and stores the packets that it saw.

    A TCP segment that was not answered in time, on a busy machine, is sent again: its first copy is in ``seen``, all
    others are in ``repeated``.
    """

    def __init__(self, net: Net, hook: str, **options: Any) -> None:
        self.seen: list[Packet] = []
        self.repeated: list[Packet] = []
        self.came = self.decided = 0
        self.errors: list[Exception] = []
        self.decide: Callable[[Packet], object] = Packet.accept
        self.queue = Queue(1, netns=net.hosts[PLACES[hook]], **options)
        self._segments: set[object] = set()

    def _handle(self, packet: Packet) -> None:
        self.came += 1
        (self.repeated if self._is_repeated(packet) else self.seen).append(packet)
        try:
            self.decide(packet)
        except ArgumentError as error:
            self.errors.append(error)
            packet.accept()
        self.decided += 1

    def _is_repeated(self, packet: Packet) -> bool:
        if packet.tcp is None:
            return False
        segment = (packet.flow, packet.tcp.seq, packet.tcp.flags & inet.TcpFlag.SYN, bool(packet.tcp.data))
        known = segment in self._segments
        self._segments.add(segment)
        return known

    def wait_for_verdicts(self, count: int = 1) -> None:
        """Until so many packets were seen since the last `count`, and the kernel has the verdicts."""
        assert wait_for(lambda: len(self.seen) >= count and self.decided == self.came)
        self.queue.flush()

    def __enter__(self) -> Deciding:
        self.queue.open()
        self._thread = threading.Thread(target=self.queue.run, args=(self._handle,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.queue.close()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()

    def count(self) -> int:
        """How many packets were seen since the last time."""
        count = len(self.seen)
        self.seen.clear()
        return count


def remembering(net: Net, hook: str, **where: Any) -> rules.Rule:
    where = {"destination_port": PORT, "protocol": "tcp", **where}
    return rules.queue(1, hook=hook, netns=net.hosts[PLACES[hook]], remember=True, **where)


@contextlib.contextmanager
def exchange(net: Net, kind: str, family: int, number: int = 0) -> Iterator[Exchange]:
    talk = Exchange(net, kind, family, number)
    try:
        yield talk
    finally:
        talk.close()


WAYS = [(kind, family) for kind in PROTOCOLS for family in (V4, V6)]


@pytest.mark.feature("verdicts on connections: rules.queue")
@pytest.mark.parametrize("hook", PLACES)
def test_fates(net: Net, hook: str) -> None:
    """Accepted, dropped and rejected, at the first packet and later, by protocol and family."""
    protocols = ["tcp", "udp", "icmp", "icmpv6"]
    # Of ICMP only echoes, not the kernel's own messages to its neighbours.
    echo = {"icmp_type": ["echo-request"], "protocol": ["icmp", "icmpv6"]}
    to_server = [
        remembering(net, hook, protocol=[name for name in protocols if not name.startswith("icmp")]),
        remembering(net, hook, destination_port=None, **echo),
    ]
    with rules.install(*to_server), Deciding(net, hook) as queue:
        for kind, family in WAYS:
            what = f"{kind}, {family.name}"
            queue.decide = lambda packet: packet.accept(connection=True)
            with exchange(net, kind, family) as talk:
                assert talk.open() == "ok", what
                assert [talk.again() for _ in range(5)] == ["ok"] * 5, what
                flow = queue.seen[0].flow
                assert queue.count() == 1, what

                # It is queued again, and dropped.
                queue.decide = lambda packet: packet.drop(connection=True)
                assert flow is not None
                assert queue.queue.forget(flow), what
                # The sender gets an error if the kernel drops a packet at output, but not if a program does.
                later = "refused (EPERM)" if hook in ("output", "postrouting") and kind != "tcp" else "timeout"
                assert talk.again(QUIET) == "timeout", what
                queue.wait_for_verdicts()
                assert talk.again(QUIET) == later, what
                assert queue.count() == 1, what

            if hook in REJECTING:
                queue.decide = lambda packet: packet.reject(connection=True)
                with exchange(net, kind, family, 1) as talk:
                    assert talk.open().startswith("refused"), what
                    assert queue.count() == 1, what
                queue.decide = Packet.accept
                with exchange(net, kind, family, 2) as talk:
                    assert talk.open() == "ok", what
                    queue.count()
                    queue.decide = lambda packet: packet.reject(connection=True)
                    assert talk.again().startswith("refused"), what
                    assert queue.count() == 1, what
                    if kind != "tcp":
                        assert talk.again().startswith("refused"), what
                        assert queue.count() == 0, what
        assert not queue.errors


@pytest.mark.feature("verdicts on connections: rules.queue")
@pytest.mark.parametrize("hook", PLACES)
@pytest.mark.parametrize("family", [V4, V6], ids=["IPv4", "IPv6"])
def test_rejecting_one_packet(net: Net, hook: str, family: int) -> None:
    """By the kernel, or by injection at postrouting, where the kernel cannot; the next packet is queued again."""
    with remembering(net, hook, protocol=["tcp", "udp"]), Deciding(net, hook) as queue:
        queue.decide = Packet.reject

        def is_refused_at_once() -> bool:
            before = sent_again(net)
            with exchange(net, "tcp", family) as talk:
                assert talk.open() == "refused"
                assert queue.count() == 1
            return sent_again(net) == before

        # One repetition is possible: a busy machine can answer later than the sender waits.
        assert sum(is_refused_at_once() for _ in range(5)) >= 4
        with exchange(net, "udp", family) as talk:
            assert talk.open() == "refused"
            assert talk.again() == "refused"
            assert queue.count() == 2


def sent_again(net: Net) -> int:
    """How many segments the client's TCP has sent once more."""

    def read() -> int:
        with open("/proc/thread-self/net/snmp") as file:
            names, values = (line.split() for line in file if line.startswith("Tcp:"))
        return int(values[names.index("RetransSegs")])

    found: int = net.at("client", read)
    return found


@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize("family", [V4, V6], ids=["IPv4", "IPv6"])
def test_the_kernel_is_told_of_a_connection_that_is_dropped_from_its_first_packet_on(
    net: Net, kind: str, family: int
) -> None:
    with remembering(net, "forward", protocol=kind), Deciding(net, "forward") as queue:
        queue.decide = lambda packet: packet.drop(connection=True)
        with exchange(net, kind, family) as talk:
            assert talk.open(QUIET) == "timeout"
            queue.wait_for_verdicts()
            came = queue.came
            if kind == "udp":
                assert talk.again(QUIET) == "timeout"
            else:  # the sender of a TCP segment sends it again
                before = sent_again(net)
                assert wait_for(lambda: sent_again(net) > before)
                assert not wait_for(lambda: queue.came > came, QUIET)
            assert queue.came == came
            assert queue.count() == 1
            assert queue.queue.counters.refused == {}
            assert queue.queue.forget_all() == 1


@pytest.mark.feature("verdicts on connections: rules.queue")
def test_marks(net: Net) -> None:
    """The program's mark leaves with the packet, ours does not; other chains see each packet once."""
    place = net.hosts["client"]
    log = Log(5, netns=place)
    logged = rules.log(5, hook="output", protocol="udp", destination_port=PORT, priority=10, netns=place)
    before = rules.log(6, hook="output", protocol="udp", destination_port=PORT, priority=-10, netns=place)
    with (
        remembering(net, "output", protocol="udp"),
        logged,
        before,
        log,
        Log(6, netns=place) as log_before,
        Deciding(net, "output") as queue,
    ):
        queue.decide = lambda packet: packet.accept(mark=0x71, connection=True)
        with exchange(net, "udp", V4) as talk:
            assert talk.open() == "ok"
            assert talk.again() == "ok"
            assert queue.count() == 1
        queue.decide = lambda packet: packet.accept(connection=True)
        with exchange(net, "udp", V6) as talk:
            assert talk.open() == "ok"
        assert [message.mark for message in collect(log, 3)] == [0x71, 0, 0]
        assert len(collect(log_before, 3)) == 3


@pytest.mark.parametrize("family", [V4, V6], ids=["IPv4", "IPv6"])
def test_a_reset_does_not_get_our_bits(net: Net, family: int) -> None:
    """Where the kernel copies the mark of a packet to its answer. A reset with these bits would be rejected."""
    path = f"/proc/sys/net/{'ipv4' if family == V4 else 'ipv6'}/fwmark_reflect"

    def reflect() -> None:
        with open(path, "w") as file:
            file.write("1")

    net.at("server", reflect)
    here = net.hosts["server"]
    resets = rules.queue(1, hook="output", protocol="tcp", source_port=PORT, remember=True, netns=here)
    with remembering(net, "input"), resets, Deciding(net, "input") as queue:
        queue.decide = Packet.reject
        with exchange(net, "tcp", family) as talk:
            assert talk.open() == "refused"
            assert [(packet.hook, packet.mark) for packet in queue.seen] == [(Hook.INPUT, 0)]
        assert not queue.errors


@pytest.mark.parametrize("whole", [False, True], ids=["packet", "connection"])
def test_nobody_is_asked_about_the_reset_that_rejects(net: Net, whole: bool) -> None:
    """On its way from this machine to this machine it passes the same hook."""
    with remembering(net, "output", destination_port=None), Deciding(net, "output") as queue:
        queue.decide = lambda packet: packet.reject(connection=whole)
        client = net.open_socket("client", V4, socket.SOCK_STREAM)
        assert said(lambda: client.connect(("127.0.0.1", PORT))) == "refused"
        (packet,) = queue.seen
        assert packet.tcp is not None
        assert packet.tcp.destination_port == PORT


@pytest.mark.parametrize("gso", [False, True], ids=["segments", "super-packets"])
@pytest.mark.parametrize("hook", ["output", "forward", "input"])
def test_a_stream_that_is_let_go_in_its_middle(net: Net, hook: str, gso: bool) -> None:
    """No data are lost or repeated, and Python sees few of the later packets."""
    sent = os.urandom(4_000_000)
    with remembering(net, hook), Deciding(net, hook, gso=gso, max_len=10_000) as queue:
        queue.decide = lambda packet: packet.accept(connection=packet.id > 20)
        with exchange(net, "tcp", V4) as talk:
            assert talk.open() == "ok"
            client, server = talk.ends[1:]
            thread = threading.Thread(target=client.sendall, args=(sent,))
            thread.start()
            received = bytearray()
            while len(received) < len(sent):
                received += server.recv(1 << 20)
            thread.join(TIMEOUT)
            assert received == sent
        assert queue.count() < (1000 if gso else 2000)  # of 2800 segments, or of the super-packets made of them
        counters = queue.queue.counters
        assert (counters.lost, counters.refused) == (0, {})


def test_what_is_recorded(net: Net, tmp_path: Path) -> None:
    """Messages to connection tracking are not taken for packets of the queue, neither in a replay."""
    path = tmp_path / "session.pcapng"
    with remembering(net, "output", protocol="udp"), Deciding(net, "output", record=path) as queue:
        queue.decide = lambda packet: packet.drop(connection=True)
        for family in (V4, V6):
            with exchange(net, "udp", family) as talk:
                assert talk.open(QUIET) == "timeout"
        queue.wait_for_verdicts(2)
        assert queue.count() == 2
    replay = nfnet.replay(path)
    with Queue(1, transport=replay) as again:
        again.run(lambda packet: packet.drop(connection=True))
    assert replay.verdicts == replay.recorded
    assert list(replay.recorded.values()) == [nfnet.GivenVerdict(nfnet.Verdict.DROP, connection=True)] * 2
    assert again.counters.malformed == 0


def test_untracked_packets_are_decided_one_by_one(net: Net) -> None:
    """There is no connection to remember by; they must not be queued again and again."""
    chain = "add table inet t; add chain inet t c { type filter hook output priority raw; }"
    run(net, "client", "nft", f"{chain}; add rule inet t c udp dport {PORT} notrack")
    with remembering(net, "output", protocol="udp"), Deciding(net, "output") as queue:
        queue.decide = lambda packet: packet.accept(connection=True)
        with exchange(net, "udp", V4) as talk:
            assert talk.open() == "ok"
            assert [talk.again() for _ in range(2)] == ["ok"] * 2
            assert [packet.mark for packet in queue.seen] == [0, 0, 0]
            queue.decide = Packet.reject
            assert talk.again() == "refused"
            queue.decide = lambda packet: packet.drop(connection=True)
            assert talk.again(QUIET) == "timeout"
        assert not queue.errors


@pytest.mark.feature("verdicts on connections: rules.queue")
def test_forgetting_one(net: Net) -> None:
    with remembering(net, "forward", protocol=["tcp", "udp"]), Deciding(net, "forward") as queue:
        queue.decide = lambda packet: packet.accept(connection=True)
        with exchange(net, "udp", V4) as first, exchange(net, "tcp", V6) as second:
            assert (first.open(), second.open()) == ("ok", "ok")
            flows = [packet.flow for packet in queue.seen]
            queue.count()
            assert all(flows)
            assert queue.queue.forget(flows[0])  # type: ignore[arg-type]
            assert not queue.queue.forget(flows[0])  # type: ignore[arg-type]
            assert (first.again(), second.again()) == ("ok", "ok")
            assert [packet.flow for packet in queue.seen] == [flows[0]]
            queue.count()
            answer = inet.Flow(
                flows[1].protocol,
                flows[1].destination,
                flows[1].destination_port,
                flows[1].source,
                flows[1].source_port,
            )
            assert queue.queue.forget(answer)
            assert second.again() == "ok"
            assert queue.count() == 1
            assert queue.queue.forget_all() == 2
            assert not queue.queue.forget(inet.Flow(17, "10.81.1.1", 1, "10.81.2.2", 2))


def test_forgetting_a_connection_with_translated_addresses(net: Net) -> None:
    """The addresses of its packets at this place are those of neither direction of the entry."""
    run(
        net,
        "router",
        "nft",
        "add table ip n; add chain ip n d { type nat hook prerouting priority dstnat; };"
        f"add rule ip n d udp dport 7777 dnat to 10.81.2.2:{PORT};"
        "add chain ip n s { type nat hook postrouting priority srcnat; }; add rule ip n s udp dport 7000 masquerade",
    )
    with remembering(net, "forward", protocol="udp"), Deciding(net, "forward") as queue:
        queue.decide = lambda packet: packet.accept(connection=True)
        with exchange(net, "udp", V4) as talk:
            talk.address = ADDRESS["router", V4], 7777
            assert talk.open() == "ok"
            (packet,) = queue.seen
            assert packet.flow is not None
            assert (packet.flow.source, packet.flow.destination) == ("10.81.1.1", "10.81.2.2")
            queue.count()
            assert talk.again() == "ok"
            assert queue.count() == 0
            assert queue.queue.forget(packet.flow)
            assert talk.again() == "ok"
            assert queue.count() == 1


@pytest.mark.feature("first=N")
@pytest.mark.parametrize("family", [V4, V6], ids=["IPv4", "IPv6"])
def test_first(net: Net, family: int) -> None:
    """Only so many packets of each direction; the kernel is made to count."""
    here = net.hosts["router"]
    with (
        rules.queue(1, hook="forward", protocol="udp", first=3, netns=here),
        Deciding(net, "forward") as queue,
        exchange(net, "udp", family) as talk,
    ):
        assert net.at("router", accounting) == "1"
        assert talk.open() == "ok"
        assert [talk.again() for _ in range(5)] == ["ok"] * 5
        directions = [packet.udp is not None and packet.udp.destination_port == PORT for packet in queue.seen]
        assert directions == [True, False] * 3


def accounting() -> str:
    with open("/proc/sys/net/netfilter/nf_conntrack_acct") as file:
        return file.read().strip()


def test_a_verdict_that_nobody_would_carry_out(net: Net) -> None:
    """It raises an error, and the packet still waits; rules that are installed later are found."""
    here = net.hosts["client"]
    where = {"hook": "output", "protocol": "udp", "destination_port": PORT, "netns": here}
    with Queue(1, netns=here) as queue:
        with rules.queue(1, **where):  # type: ignore[arg-type]
            net.receiver("server")
            net.open_socket("client").sendto(b"1", (ADDRESS["server", V4], PORT))
            (packet,) = collect(queue, 1)
            for verdict in (packet.accept, packet.drop, packet.reject):
                with pytest.raises(ArgumentError, match="no rule .* at the hook output for queue 1.*remember=True"):
                    verdict(connection=True)
            assert packet.decided is None
            packet.accept()
        with rules.queue(1, remember=True, **where):  # type: ignore[arg-type]
            net.open_socket("client").sendto(b"2", (ADDRESS["server", V4], PORT))
            (packet,) = collect(queue, 1)

            def accepted() -> bool:
                try:
                    packet.accept(connection=True)
                except ArgumentError:
                    return False
                return True

            assert wait_for(accepted)
        assert queue.counters.accepted == 2


def test_a_chain_beside_it_that_does_not_remember(net: Net) -> None:
    """It is unknown which of them queued the packet."""
    here = net.hosts["client"]
    other = rules.queue(1, hook="output", protocol="icmp", priority=5, netns=here)
    with remembering(net, "output", protocol="udp"), other, Deciding(net, "output") as queue:
        queue.decide = lambda packet: packet.accept(connection=True)
        with exchange(net, "udp", V4) as talk:
            assert talk.open() == "ok"
        assert len(queue.errors) == 1


def test_a_packet_that_comes_back_is_noticed(net: Net) -> None:
    """If the rules differ from the given bits: no loop, but an error."""
    here = net.hosts["client"]
    plain = rules.queue(1, hook="output", protocol="udp", destination_port=PORT, netns=here)
    with plain, Deciding(net, "output", bits=0x700) as queue:
        queue.decide = lambda packet: packet.accept(connection=True)
        with exchange(net, "udp", V4) as talk:
            assert talk.open() == "ok"
        assert [packet.mark for packet in queue.seen] == [0, 0x500]
        assert len(queue.errors) == 1
        assert "0x500" in str(queue.errors[0])


def test_other_bits(net: Net) -> None:
    with remembering(net, "output", protocol="udp", bits=0x700), Deciding(net, "output") as queue:
        queue.decide = lambda packet: packet.accept(mark=0x0E000001, connection=True)
        with exchange(net, "udp", V4) as talk:
            assert talk.open() == "ok"
            assert talk.again() == "ok"
        assert queue.count() == 1
        assert not queue.errors


# --- rules of others


@pytest.mark.feature("verdicts on connections: chains of iptables")
@pytest.mark.parametrize("hook", ["output", "input", "forward"])
def test_pasted_iptables(net: Net, hook: str) -> None:
    rule = remembering(net, hook, protocol=["tcp", "udp"])
    for line in rule.describe().splitlines():
        if line.startswith(("iptables", "ip6tables")):
            run(net, PLACES[hook], "sh", "-c", line)
    with Deciding(net, hook) as queue:
        for family in (V4, V6):
            for kind in ("tcp", "udp"):
                queue.decide = lambda packet: packet.accept(connection=True)
                with exchange(net, kind, family) as talk:
                    assert talk.open() == "ok"
                    assert talk.again() == "ok"
                    (packet,) = queue.seen
                    assert packet.flow is not None
                    queue.count()
                    queue.decide = lambda packet: packet.reject(connection=True)
                    assert queue.queue.forget(packet.flow)
                    assert talk.again() == "refused"
                    assert queue.count() == 1
                queue.decide = lambda packet: packet.drop(connection=True)
                with exchange(net, kind, family, 1) as talk:
                    assert talk.open(QUIET) == "timeout"
                    queue.wait_for_verdicts()
                    assert queue.count() == 1
        assert not queue.errors


@pytest.mark.feature("verdicts on connections: chains of nft")
@pytest.mark.parametrize("hook", PLACES)
@pytest.mark.parametrize("family", ["inet", "ip", "ip6"])
def test_pasted_nft(net: Net, hook: str, family: str) -> None:
    """nft makes the same of our words as we install, but for the rule that queues where it has no words for that."""
    place = PLACES[hook]
    rule = remembering(net, hook, protocol="udp", family=family)
    *lines, _ = [line for line in rule.describe().splitlines() if line.startswith("nft")]
    for line in lines:
        run(net, place, "sh", "-c", line)
    pasted = chains_of(net, place, family, "nfnet")
    run(net, place, "nft", f"delete table {family} nfnet")
    with rule:
        (installed,) = rules.installed(net.hosts[place])
        ours = chains_of(net, place, family, installed.table)
    assert ours.keys() == pasted.keys()
    for name, words in ours.items():
        if name == hook:
            # That of iptables, or nft's own expression, where the kernel has it.
            assert re.search(" queue (num 1 bypass|flags bypass to 1)", words.pop())
        assert pasted[name] == words, name


def chains_of(net: Net, host: str, family: str, table: str) -> dict[str, list[str]]:
    listed = run(net, host, "nft", "list", "table", family, table)
    found: dict[str, list[str]] = {}
    for name, body in re.findall(r"chain (\S+) \{(.*?)\n\t\}", listed, re.DOTALL):
        found[name] = [line.strip() for line in body.splitlines() if line.strip() and "type filter hook" not in line]
    return found


SCRIPT = """\
import nfnet
with nfnet.rules.queue(1, hook="forward", protocol="udp", remember=True), nfnet.Queue(1) as queue:
    print("up", flush=True)
    queue.run(lambda packet: packet.accept(connection=True))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind(net: Net, number: signal.Signals) -> None:
    """The next program does not inherit the verdicts."""
    with exchange(net, "udp", V4) as talk:
        with running(net, [sys.executable, "-c", SCRIPT]) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            assert wait_for(lambda: is_bound(net, queue=1))
            assert talk.open() == "ok"
            process.send_signal(number)
            process.wait(TIMEOUT)
        assert wait_for(lambda: not rules.clean(net.hosts["router"]) and not rules.installed(net.hosts["router"]))
        assert talk.again() == "ok"


# --- a program


def test_a_firewall_that_asks_once(net: Net) -> None:
    """examples/ask_once.py: a question for each server, and none for later packets and connections."""
    script = Path(__file__).parents[2] / "examples" / "ask_once.py"
    with (
        running(net, [sys.executable, str(script)], "client", stdin=subprocess.PIPE) as program,
        exchange(net, "udp", V4) as allowed,
        exchange(net, "udp", V6) as refused,
        exchange(net, "tcp", V4) as third,
    ):
        stdin, stdout = program.stdin, program.stdout
        assert stdin is not None
        assert stdout is not None
        assert stdout.readline() == "asking\n"

        def asked(function: Callable[[], str], *answers: str) -> tuple[list[str], str]:
            """Return the requests sent during the call of a function, and its result."""
            results: list[str] = []
            thread = threading.Thread(target=lambda: results.append(function()))
            thread.start()
            lines = []
            for answer in answers:
                lines.append(stdout.readline())
                stdin.write(f"{answer}\n")
                stdin.flush()
            thread.join(TIMEOUT)
            return lines, results[0]

        (question,), result = asked(allowed.open, "y")
        assert (result, allowed.again()) == ("ok", "ok")
        assert question.startswith(f"{os.path.realpath(sys.executable)!r} opens ")
        assert re.search(r"opens UDP 10\.81\.1\.1\.\d+ > 10\.81\.2\.2\.7000: y or n\?", question)
        (question,), result = asked(refused.open, "n")
        assert (result, refused.again()) == ("refused", "refused (EPERM)")
        assert "> fd81:2::2.7000" in question
        (question,), result = asked(third.open, "y")
        assert "opens TCP" in question
        assert (result, third.again()) == ("ok", "ok")
        # No requests are sent about other connections to the same servers, and those of other programs.
        third.close()  # whose server would accept connections of the next one
        with exchange(net, "tcp", V4) as fourth, exchange(net, "udp", V6) as fifth:
            assert (fourth.open(), fifth.open()) == ("ok", "refused")
        with (
            net.at("client", lambda: socket.create_server(("", PORT))) as door,
            net.open_socket("server", kind=socket.SOCK_STREAM) as sock,
        ):
            sock.settimeout(TIMEOUT)
            sock.connect((ADDRESS["client", V4], PORT))
            with door.accept()[0] as connection:
                connection.sendall(b"an answer")
                assert sock.recv(100) == b"an answer"
        program.kill()
        assert stdout.read() == ""
