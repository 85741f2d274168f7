"""Rules on the real kernel: which packets they match, how nft lists them, and that they are removed."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import nfnet
from nfnet import Log, NetlinkSocket, Queue, inet, rules
from nfnet.protocol import nfqnl
from nfnet.protocol.layout import build_attribute
from nfnet.protocol.netlink import Flag
from nfnet.protocol.nfnetlink import build_message
from nfnet.rules import _installation
from nfnet.rules import _nftables as nftables
from nfnet.rules._actions import queues_of

from .conftest import (
    ADDRESS,
    NFT_QUEUE,
    QUIET,
    TIMEOUT,
    UID,
    Net,
    collect,
    featured,
    in_child,
    kernel_lacks,
    lacking,
    only,
    readable,
    wait_for,
)
from .programs import is_bound, run, running
from .test_process import drop_capabilities

V4, V6 = socket.AF_INET, socket.AF_INET6
SO_MARK = 36
PORT = 7000

# Conditions of a rule; a packet that matches, and packets that do not match.
# A packet: IP version, and where it differs from UDP from port 5000 to port 7000 of the server.
Sent = tuple[int, dict[str, Any]]
MATCHES: dict[str, tuple[dict[str, Any], Sent, list[Sent]]] = {
    "protocol": ({"protocol": "udp"}, (V4, {}), [(V4, {"protocol": "icmp"})]),
    "protocol number": ({"protocol": 17}, (V6, {}), []),
    "family ip": ({"family": "ip"}, (V4, {}), [(V6, {})]),
    "family ip6": ({"family": "ip6", "protocol": "udp"}, (V6, {}), [(V4, {})]),
    "source": ({"source": "10.81.1.1"}, (V4, {}), [(V6, {})]),
    "other source": ({"source": "10.81.1.7", "family": "ip"}, (V4, {"source": "10.81.1.7"}), [(V4, {})]),
    "source network": ({"source": "10.81.1.0/30"}, (V4, {}), [(V4, {"source": "10.81.1.7"})]),
    "odd network": ({"source": "10.81.0.0/23"}, (V4, {}), []),
    "destination": ({"destination": "10.81.2.2"}, (V4, {}), [(V6, {})]),
    "destination network": ({"destination": "fd81:2::/64"}, (V6, {}), [(V4, {})]),
    "destination 6": ({"destination": "fd81:2::2", "protocol": "udp"}, (V6, {}), [(V4, {})]),
    "source port": ({"protocol": "udp", "source_port": 5001}, (V4, {"source_port": 5001}), [(V4, {})]),
    "destination port": ({"protocol": "udp", "destination_port": 7001}, (V6, {"port": 7001}), [(V6, {}), (V4, {})]),
    "ports": (
        {"protocol": "udp", "destination_port": range(7001, 7003)},
        (V4, {"port": 7002}),
        [(V4, {}), (V4, {"port": 7003})],
    ),
    "source ports": (
        {"protocol": "udp", "source_port": "5001-5002"},
        (V4, {"source_port": 5002}),
        [(V4, {}), (V4, {"source_port": 5003})],
    ),
    "in interface": ({"in_interface": "to-client", "protocol": "udp"}, (V4, {}), []),
    "not that interface": ({"in_interface": "to-server", "protocol": "udp"}, (V4, {"back": True}), [(V4, {})]),
    "out interface": ({"out_interface": "to-ser*", "protocol": "udp"}, (V4, {}), [(V4, {"back": True})]),
    "mark": ({"mark": 7}, (V4, {"mark": 7}), [(V4, {}), (V4, {"mark": 8})]),
    "not mark": ({"not_mark": 7, "protocol": "udp"}, (V4, {"mark": 8}), [(V4, {"mark": 7})]),
    "state": ({"state": "new", "protocol": "udp"}, (V4, {}), [(V4, {"again": True})]),
    "states": ({"state": ["established", "related"]}, (V4, {"again": True}), []),
    "uid": ({"uid": UID, "protocol": "udp"}, (V4, {}), []),
    "not that uid": ({"uid": 77, "protocol": "udp"}, (V4, {"uid": 77}), [(V4, {})]),
}
LOCAL = ("mark", "not mark", "uid", "not that uid")  # properties that do not travel: the rule is on the client


class Traffic:
    """Packets of all sorts from the client to the server, or back."""

    def __init__(self, net: Net) -> None:
        self.net = net

    def send(self, family: int, data: bytes, options: dict[str, Any]) -> None:
        here, there = ("server", "client") if options.get("back") else ("client", "server")
        if options.get("protocol") == "icmp":
            self._ping(here, there, data)
            return
        source = options.get("source")
        if source is not None:
            self._add_address(here, source)
        with self.net.at(here, lambda: self._socket_of(family, options.get("uid", UID))) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((source or ("0.0.0.0" if family == V4 else "::"), options.get("source_port", 5000)))
            if "mark" in options:
                sock.setsockopt(socket.SOL_SOCKET, SO_MARK, options["mark"])
            port = options.get("port", PORT)
            sock.sendto(data, (ADDRESS[there, family], port))

    @staticmethod
    def _socket_of(family: int, uid: int) -> socket.socket:
        """Return a socket of a user; the process has this user's id while it creates the socket."""
        if uid == UID:
            return socket.socket(family, socket.SOCK_DGRAM)
        os.seteuid(uid)
        try:
            return socket.socket(family, socket.SOCK_DGRAM)
        finally:
            os.seteuid(UID)

    def _ping(self, here: str, there: str, data: bytes) -> None:
        with self.net.at(here, lambda: socket.socket(V4, socket.SOCK_RAW, socket.IPPROTO_ICMP)) as sock:
            message = b"\x08\0\0\0\0\1\0\1" + data
            message = message[:2] + inet.checksum(message).to_bytes(2, "big") + message[4:]
            sock.sendto(message, (ADDRESS[there, V4], 0))

    def _add_address(self, host: str, address: str) -> None:
        from pyroute2 import IPRoute

        def add() -> None:
            with IPRoute() as ip:
                index = ip.link_lookup(ifname="to-router")[0]
                ip.addr("replace", index=index, address=address, prefixlen=24)

        self.net.at(host, add)


def data_of(payload: bytes) -> bytes | None:
    icmp = inet.icmp(payload)
    return inet.get_data(payload) if icmp is None or icmp.type != 8 else icmp.data


@pytest.mark.parametrize(
    "case",
    [featured("state (connection tracking)", case) if "state" in case else case for case in MATCHES],
)
def test_matches(net: Net, case: str) -> None:
    options, good, bad = MATCHES[case]
    if "uid" in good[1] and UID:
        pytest.skip("an ordinary user has no other user's id to send with")
    if options.get("uid") == UID:  # which is another number in a user namespace of ours
        options = {**options, "uid": os.geteuid()}
    where = "client" if case in LOCAL else "router"
    here = net.hosts[where]
    hook = "output" if case in LOCAL else "forward"
    traffic = Traffic(net)
    with rules.queue(1, hook=hook, netns=here, **options), Queue(1, netns=here) as queue:
        for number, (family, packet) in enumerate(bad):
            if not packet.get("again"):
                traffic.send(family, f"bad {number}".encode(), packet)
        if good[1].get("again") or any(packet.get("again") for _, packet in bad):
            # A connection that is answered is established: both ends know the ports.
            server = net.receiver("server", V4, PORT)
            client = net.open_socket("client")
            client.bind(("0.0.0.0", 5000))
            client.sendto(b"good" if "again" not in good[1] else b"first", (ADDRESS["server", V4], PORT))
            if "again" in good[1]:
                _, address = server.recvfrom(100)
                server.sendto(b"good", address)
        else:
            traffic.send(good[0], b"good", good[1])
        packets = []
        while b"good" not in [data_of(packet.payload) for packet in packets]:
            packets += collect(queue, 1)
        assert [data_of(packet.payload) for packet in packets if data_of(packet.payload)] == [b"good"]
        for packet in packets:
            packet.accept()
        if case == "state":
            _, address = server.recvfrom(100)
            server.sendto(b"answer", address)
            assert client.recv(100) == b"answer", "it did not wait in the queue"
            assert not readable(queue, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("hook", ["prerouting", "input", "forward", "output", "postrouting"])
@pytest.mark.parametrize("kind", ["queue", "log"])
def test_hooks(net: Net, hook: str, kind: str) -> None:
    host, target = {"input": ("server", "server"), "output": ("client", "server")}.get(hook, ("router", "server"))
    here = net.hosts[host]
    receiver = net.receiver(target, V4, PORT)
    if kind == "queue":
        with rules.queue(1, hook=hook, protocol="udp", netns=here), Queue(1, netns=here) as queue:
            Traffic(net).send(V4, b"data", {})
            (packet,) = collect(queue, 1)
            assert packet.hook.name.lower() == hook
            packet.accept()
            assert receiver.recv(100) == b"data"
    else:
        with rules.log(5, hook=hook, protocol="udp", netns=here), Log(5, threshold=1, netns=here) as log:
            Traffic(net).send(V4, b"data", {})
            (message,) = collect(log, 1)
            assert nfnet.Hook(message.hook).name.lower() == hook
            assert receiver.recv(100) == b"data"


@pytest.mark.parametrize(
    "family",
    [featured(f"log: ingress, family {family}", family) for family in ("netdev", "inet")],
)
def test_ingress(net: Net, family: str) -> None:
    here = net.hosts["server"]
    rule = rules.log(5, hook="ingress", family=family, in_interface="to-router", protocol="udp", netns=here)
    if family == "inet" and lacking(rule):
        kernel_lacks("the hook ingress in the family inet", since=(5, 10))
    with rule, Log(5, threshold=1, netns=here) as log:
        Traffic(net).send(V4, b"data", {})
        (message,) = collect(log, 1)
        assert message.indev_name == "to-router"


def installable(way: str, rule: rules.Rule) -> rules.Rule:
    """Restrict a rule to one kind of expression, if the kernel has it."""
    if lacking(only(way, rule)):
        assert way == "nft", "this one should be everywhere"
        kernel_lacks(**NFT_QUEUE)
    return rule


@pytest.mark.parametrize(
    ("way", "family"),
    [
        *(featured(f"queue: nft, family {family}", "nft", family) for family in ("ip", "ip6", "inet")),
        *(featured("queue: xt_NFQUEUE", "xtables", family) for family in ("ip", "ip6", "inet")),
    ],
)
def test_ways_into_a_queue(net: Net, way: str, family: str) -> None:
    """Queueing by nft's expression, and by the target of iptables."""
    here = net.hosts["router"]
    rule = installable(way, rules.queue(1, hook="forward", family=family, protocol="udp", netns=here))
    with rule, Queue(1, netns=here) as queue:
        for version in {"ip": [V4], "ip6": [V6], "inet": [V4, V6]}[family]:
            receiver = net.receiver("server", version, PORT)
            Traffic(net).send(version, b"data", {})
            (packet,) = collect(queue, 1)
            assert (packet.family, inet.get_data(packet.payload)) == (version, b"data")
            packet.accept()
            assert receiver.recv(100) == b"data"
            receiver.close()


# --- several queues


@pytest.mark.parametrize(
    "way",
    [
        featured("fan-out by addresses: nft", "nft"),
        featured("fan-out by addresses: xt_NFQUEUE", "xtables"),
    ],
)
def test_fan_out_by_addresses_keeps_connections_together(net: Net, way: str) -> None:
    here = net.hosts["client"]
    traffic = Traffic(net)
    seen: dict[str, set[int]] = {}
    with installable(way, rules.queue(range(3, 5), hook="output", protocol="udp", netns=here)):
        queues = [Queue(number, netns=here) for number in (3, 4)]
        for queue in queues:
            queue.open()
        for number in range(2, 42):
            source = f"10.81.1.{number + 10}"
            for _ in range(2):
                traffic.send(V4, b"x", {"source": source})
        for queue in queues:
            queue.process(lambda p, queue=queue: (seen.setdefault(p.ip.source, set()).add(queue.num), p.accept()))
            queue.close()
    assert len(seen) == 40
    assert all(len(numbers) == 1 for numbers in seen.values())
    assert set.union(*seen.values()) == {3, 4}, "by chance all in one: 2^-39"


@pytest.mark.parametrize(
    "way",
    [
        featured("fan-out by CPU: nft", "nft"),
        featured("fan-out by CPU: xt_NFQUEUE", "xtables"),
    ],
)
def test_fan_out_by_cpu(net: Net, way: str) -> None:
    here = net.hosts["client"]
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("this takes two CPUs")
    with installable(way, rules.queue(range(3, 5), balance="cpu", hook="output", protocol="udp", netns=here)):
        queues = [Queue(number, netns=here) for number in (3, 4)]
        for queue in queues:
            queue.open()
        before = os.sched_getaffinity(0)
        try:
            for cpu in cpus:
                os.sched_setaffinity(0, {cpu})
                Traffic(net).send(V4, bytes([cpu]), {})
        finally:
            os.sched_setaffinity(0, before)
        for place, queue in enumerate(queues):
            seen: list[int] = []
            queue.process(lambda p, seen=seen: (seen.append(inet.get_data(p.payload)[0]), p.drop()))  # type: ignore[index]
            assert seen == [cpu for cpu in cpus if cpu % 2 == place]
            queue.close()


@pytest.mark.feature("fan-out by flow: nft")
def test_fan_out_by_flow(net: Net) -> None:
    here = net.hosts["client"]
    rule = rules.queue(range(3, 5), balance="flow", hook="output", protocol="udp", netns=here)
    if (error := lacking(rule)) is not None:
        assert "symhash" in str(error)
        kernel_lacks(**NFT_QUEUE)
    rule.install()
    seen: dict[int, set[int]] = {}
    queues = [Queue(number, netns=here) for number in (3, 4)]
    for queue in queues:
        queue.open()
    for port in range(5000, 5040):
        for _ in range(2):
            Traffic(net).send(V4, b"x", {"source_port": port})
    for queue in queues:
        queue.process(lambda p, queue=queue: (seen.setdefault(p.flow.source_port, set()).add(queue.num), p.accept()))
        queue.close()
    rule.remove()
    assert len(seen) == 40
    assert all(len(numbers) == 1 for numbers in seen.values())
    assert set.union(*seen.values()) == {3, 4}


@pytest.mark.feature("bypass")
def test_bypass(net: Net) -> None:
    here = net.hosts["router"]
    receiver = net.receiver("server", V4, PORT)
    with rules.queue(1, hook="forward", protocol="udp", netns=here):
        Traffic(net).send(V4, b"passes", {})
        assert receiver.recv(100) == b"passes"
    with rules.queue(1, hook="forward", protocol="udp", bypass=False, netns=here):
        Traffic(net).send(V4, b"does not", {})
        assert not readable(receiver, QUIET)


# --- installing and removing


def tables(net: Net, host: str) -> list[str]:
    def read() -> list[str]:
        sock = NetlinkSocket()
        try:
            return [name for _, name, _ in nftables.tables(sock)]
        finally:
            sock.close()

    return list(net.at(host, read))


def new_table(name: str) -> nftables.Message:
    return nftables.Message(nftables.NEWTABLE, 1, [(nftables.TABLE_NAME, nftables.text(name))])


def test_install_and_remove(net: Net) -> None:
    here = net.hosts["router"]
    receiver = net.receiver("server", V4, PORT)
    rule = rules.install(rules.queue(1, hook="forward", protocol="udp", bypass=False, netns=here))
    assert repr(rule) == "<Rule queueing packets to queue 1: installed>"
    assert [row.process for row in rules.installed(here)] == [os.getpid()]
    with pytest.raises(nfnet.NfnetError, match="installed already"):
        rule.install()
    Traffic(net).send(V4, b"dropped", {})
    rules.remove(rule)
    rules.remove(rule)
    assert tables(net, "router") == []
    Traffic(net).send(V4, b"passes", {})
    assert receiver.recv(100) == b"passes"
    with rule:
        assert len(tables(net, "router")) == 1
    assert rules.clean(here) == []


HELD = """\
import gc, os, sys, nfnet

def setup():
    nfnet.rules.install(nfnet.rules.queue(1, hook="forward", protocol="udp", bypass=False))
    nfnet.rules.log(5, hook="output").install()

setup()
gc.collect()
print([row.process == os.getpid() for row in nfnet.rules.installed()], flush=True)
sys.stdin.read()
"""


def test_a_rule_lives_until_it_is_removed(net: Net) -> None:
    """Whether or not the object is still referenced."""
    receiver = net.receiver("server", V4, PORT)
    with running(net, [sys.executable, "-c", HELD], stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "[True, True]\n"
        Traffic(net).send(V4, b"dropped", {})
        assert not readable(receiver, QUIET)
        process.communicate(timeout=TIMEOUT)
    if rules.installed(net.hosts["router"]):
        assert rules.clean(net.hosts["router"])
        kernel_lacks("tables with an owner", since=(5, 12))


def test_equal_rules_are_installed_and_removed_one_by_one(net: Net) -> None:
    here = net.hosts["router"]
    first, second = (rules.queue(1, hook="forward", netns=here) for _ in range(2))
    with first:
        with pytest.raises(nfnet.NfnetError, match="installed already"), first:
            pass
        assert len(tables(net, "router")) == 1
        with second:
            assert len(tables(net, "router")) == 2
            first.remove()
            first.remove()
            assert repr(first).endswith(": not installed>")
            assert repr(second).endswith(": installed>")
            assert len(tables(net, "router")) == 1
        first.install()
    assert tables(net, "router") == []


def test_a_rule_that_threads_install_at_once_is_there_once(net: Net) -> None:
    rule = rules.queue(1, hook="forward", netns=net.hosts["router"])
    refused: list[nfnet.NfnetError] = []
    together = threading.Barrier(4)

    def install() -> None:
        together.wait(TIMEOUT)
        try:
            rule.install()
        except nfnet.NfnetError as error:
            refused.append(error)

    threads = [threading.Thread(target=install) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(error) for error in refused] == ["the rule is installed already"] * 3
    assert len(tables(net, "router")) == 1
    rule.remove()
    assert tables(net, "router") == []


def test_a_block_of_what_is_installed_takes_it_over_once(net: Net) -> None:
    rule = rules.install(rules.log(5, hook="forward", netns=net.hosts["router"]))
    with rule:
        with pytest.raises(nfnet.NfnetError, match="installed already"), rule:
            pass
        assert len(tables(net, "router")) == 1
    assert tables(net, "router") == []
    with rule, pytest.raises(nfnet.NfnetError, match="installed already"), rule:
        pass
    assert tables(net, "router") == []


def test_a_block_that_is_never_entered_leaves_no_rule(net: Net) -> None:
    rule = rules.queue(1, hook="forward", netns=net.hosts["router"])

    def generate() -> Iterator[None]:
        with rule:
            yield

    block = generate()
    next(block)
    assert len(tables(net, "router")) == 1
    del block  # which ends it
    gc.collect()  # for interpreters that do not count references
    assert tables(net, "router") == []
    assert "not installed" in repr(rule)


def test_a_forked_child_has_no_part_in_a_rule(net: Net) -> None:
    here = net.hosts["router"]
    rule = rules.queue(1, hook="forward", netns=here)
    with rule:

        def child() -> None:
            assert "not installed" in repr(rule)
            rule.remove()
            assert len(tables(net, "router")) == 1
            with rule:  # a separate one
                assert len(tables(net, "router")) == 2
            assert len(tables(net, "router")) == 1

        assert in_child(child) == 0
        assert len(tables(net, "router")) == 1
    assert tables(net, "router") == []


@pytest.mark.parametrize("owned", [True, False])
def test_a_rule_that_may_not_be_removed_any_more(net: Net, owned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel removes a table with an owner, with its socket, but not other tables, as before Linux 5.12."""
    if not owned:
        monkeypatch.setattr(_installation, "_OWNER", 0)
    here = net.hosts["router"]

    def child() -> None:
        rule = rules.install(rules.queue(1, hook="forward", netns=here))
        drop_capabilities()
        if owned:
            rule.remove()
        else:
            with pytest.raises(nfnet.NotPermittedError, match="removing the rule for queueing packets to queue 1"):
                rule.remove()

    assert in_child(child) == 0
    left = rules.clean(here)
    if owned and left:
        kernel_lacks("tables with an owner", since=(5, 12))
    assert len(left) == (0 if owned else 1)
    assert tables(net, "router") == []


def feeding(net: Net, host: str) -> list[tuple[range, int]]:
    """The queues that rules feed, and the flags of these: 1 is bypass."""
    sock = net.at(host, NetlinkSocket)
    try:
        found = [queues_of(*expression) for expression in nftables.expressions(sock)]
    finally:
        sock.close()
    return [(numbers, flags) for numbers, flags in found if numbers]


@pytest.mark.parametrize(("words", "flags"), [("", 1), (" bypass=yes", 1), (" bypass=no", 0)])
def test_the_command_fails_closed_if_told_to(net: Net, words: str, flags: int) -> None:
    rule = f"hook=forward protocol=udp{words}"
    with running(net, [sys.executable, "-m", "nfnet", "queue", "1", "--install-rule", rule]) as process:
        assert wait_for(lambda: is_bound(net, queue=1) or process.poll() is not None)
        assert feeding(net, "router") == [(range(1, 2), flags)]
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 0
    assert tables(net, "router") == []


def test_as_many_queues_as_the_kernel_can_count(net: Net) -> None:
    with rules.queue(range(65535), hook="forward", netns=net.hosts["router"]):
        assert feeding(net, "router") == [(range(65535), 1)]


def test_an_int_is_a_descriptor(net: Net) -> None:
    """As for os.setns, open and pyroute2; the number can also be the id of a process."""
    number = net.hosts["router"].fileno()
    with rules.queue(1, hook="forward", protocol="udp", netns=number), Queue(1, netns=number) as queue:
        assert len(tables(net, "router")) == 1
        assert [row.process for row in rules.installed(number)] == [os.getpid()]
        Traffic(net).send(V4, b"data", {})
        (packet,) = collect(queue, 1)
        packet.accept()
    with Log(5, netns=number), rules.log(5, hook="output", netns=f"/proc/{os.getpid()}/fd/{number}"):
        assert len(tables(net, "router")) == 1
    assert rules.clean(number) == []


@pytest.mark.parametrize("what", ["a process", "no namespace", "a closed file"])
def test_what_is_no_descriptor_of_a_namespace(what: str) -> None:
    with socket.socket() as sock:
        number = {"a process": os.getpid() + 100_000_000, "no namespace": sock.fileno()}.get(what)
        place: Any = sock if number is None else number
        if number is None:
            sock.close()
        with pytest.raises(nfnet.KernelError, match="bad file descriptor|invalid argument") as caught:
            rules.queue(1, hook="output", netns=place).install()
    if number is not None:
        assert f"The namespace of process {number} is netns='/proc/{number}/ns/net'" in str(caught.value)


def test_the_command_takes_a_process(net: Net) -> None:
    with rules.queue(1, hook="forward", netns=net.hosts["router"]):
        process = net.at("router", lambda: subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        command = [sys.executable, "-m", "nfnet", "rules", "list", "--netns", str(process.pid)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        process.communicate(timeout=TIMEOUT)
    assert done.stdout.startswith("inet    nfnet-"), done


def test_other_tables_are_not_touched(net: Net) -> None:
    theirs = [new_table(name) for name in ("mine", "nfnet-of-mine")]
    sock = net.at("router", NetlinkSocket)
    nftables.commit(sock, theirs, "making tables")
    with rules.queue(1, hook="output", netns=net.hosts["router"]):
        assert len(tables(net, "router")) == 3
        assert len(rules.installed(net.hosts["router"])) == 1
    assert rules.clean(net.hosts["router"]) == []
    assert sorted(tables(net, "router")) == ["mine", "nfnet-of-mine"]
    sock.close()


def test_what_a_killed_process_left_is_removed(net: Net) -> None:
    here = net.hosts["router"]
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    name = f"nfnet-{process.pid}-0000"  # as before Linux 5.12: without an owner
    sock = net.at("router", NetlinkSocket)
    nftables.commit(sock, [new_table(name)], "making a table")
    sock.close()
    with rules.queue(1, hook="output", netns=here):
        (left,) = rules.clean(here)
        assert (left.family, left.table, left.process, left.orphaned) == ("inet", name, process.pid, True)
        assert len(tables(net, "router")) == 1


def test_the_command_lists_and_cleans(net: Net) -> None:
    here = net.hosts["router"]
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    name = f"nfnet-{process.pid}-0000"
    sock = net.at("router", NetlinkSocket)
    nftables.commit(sock, [new_table(name)], "making a table")
    sock.close()
    path = f"/proc/{os.getpid()}/fd/{here.fileno()}"

    def nfnet_rules(*arguments: str) -> str:
        command = [sys.executable, "-m", "nfnet", "rules", *arguments]
        done = net.at("client", lambda: subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT))
        assert (done.returncode, done.stderr) == (0, "")
        return str(done.stdout)

    with rules.queue(1, hook="output", netns=here):
        listed = [line for line in nfnet_rules("list", "--netns", path).splitlines() if not line.startswith(" ")]
        states = {int(line.split()[3]): " ".join(line.split()[4:]) for line in listed}
        assert states == {os.getpid(): "in use", process.pid: "of a process that ended"}
        assert nfnet_rules("clean", "--netns", path).split()[-1] == "removed"
        assert nfnet_rules("clean", "--netns", path) == "nothing to remove\n"
    assert nfnet_rules("list", "--netns", path) == "no rules\n"


LISTED = "protocol=tcp,udp not_source=192.0.2.0/24,fd00:7::/32 destination_port=7000-7001"


def test_the_command_says_what_rules_match_and_how_often(net: Net) -> None:
    """Those of another process, too: here they are a command's own."""
    receiver = net.receiver("server", V4, PORT)
    words = f"hook=forward {LISTED} bypass=no"
    with running(net, [sys.executable, "-m", "nfnet", "queue", "1", "-q", "--install-rule", words]) as process:
        assert wait_for(lambda: is_bound(net, queue=1) or process.poll() is not None)
        for data in (b"one", b"three"):
            Traffic(net).send(V4, data, {})
            assert receiver.recv(100) == data
        command = [sys.executable, "-m", "nfnet", "rules", "list"]
        done = net.at("router", lambda: subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT))
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 0
    table, *counted = done.stdout.splitlines()
    assert table.split() == ["inet", table.split()[1], "process", str(process.pid), "in", "use"]
    # Of each datagram the IP header has 20 bytes, and that of UDP 8.
    assert [line.split(maxsplit=4) for line in counted] == [
        ["2", "packets", str(28 + 3 + 28 + 5), "bytes", f"queue 1 bypass=no hook=forward {LISTED}"]
    ]


SCRIPT = """\
import time, nfnet
with nfnet.rules.queue(1, hook="forward", protocol="udp", bypass=False):
    print("up", flush=True)
    while True:  # a signal that arrives between Python's last check and the system call does not end the sleep
        time.sleep(0.1)
"""


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGINT,
        featured("rules removed with a killed process", signal.SIGKILL),
    ],
)
def test_rules_end_with_their_process(net: Net, number: signal.Signals) -> None:
    with running(net, [sys.executable, "-c", SCRIPT]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert len(tables(net, "router")) == 1
        process.send_signal(number)
        process.wait(TIMEOUT)
    left = rules.installed(net.hosts["router"])
    if left and left[0].orphaned:
        assert number != signal.SIGINT, "Python ends its blocks for that"
        assert rules.clean(net.hosts["router"]) == left
    assert wait_for(lambda: tables(net, "router") == [])
    if left and left[0].orphaned:
        kernel_lacks("tables with an owner", since=(5, 12))


@pytest.mark.feature("messages of the kernel in errors")
def test_what_the_kernel_says(net: Net) -> None:
    short = build_attribute(nfqnl.NFQA_CFG.QUEUE_MAXLEN, b"\0\1")  # it has 32 bits
    sock = net.at("router", NetlinkSocket)

    def request(seq: int) -> bytes:
        return build_message(nfqnl.MSG_CONFIG, 1, short, flags=Flag.REQUEST, seq=seq)

    with pytest.raises(nfnet.KernelError, match='asking: .*the kernel says "Attribute failed policy validation"'):
        sock.request(request, "asking")
    sock.close()


def test_unknown_interface(net: Net) -> None:
    rule = rules.queue(1, hook="input", in_interface="nowhere0", netns=net.hosts["router"])
    with pytest.raises(nfnet.ArgumentError, match="no interface 'nowhere0' in this network namespace, but .*to-client"):
        rule.install()
    with rules.queue(1, hook="input", in_interface="nowhere*", netns=net.hosts["router"]):
        pass


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="socket.if_nametoindex does not know such names there")
def test_another_name_of_an_interface_is_refused(net: Net) -> None:
    """It can be looked up by it, and no packet has it."""

    def give_name() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as ip:
            ip.link("property_add", index=ip.link_lookup(ifname="to-client")[0], altname="other0")

    net.at("router", give_name)
    rule = rules.queue(1, hook="input", in_interface="other0", netns=net.hosts["router"])
    with pytest.raises(nfnet.ArgumentError, match="'other0' is another name of the interface to-client: use that"):
        rule.install()
    assert tables(net, "router") == []


def test_unknown_namespace() -> None:
    with pytest.raises(nfnet.KernelError, match="/run/netns/no-such-namespace"):
        rules.queue(1, hook="output", netns="no-such-namespace").install()


def test_nft_reads_what_was_meant(net: Net) -> None:
    here = net.hosts["router"]
    rule = rules.log(
        5,
        prefix="hi",
        snaplen=64,
        threshold=3,
        hook="postrouting",
        priority=5,
        source="192.0.2.0/25",
        destination="198.51.100.7",
        protocol="tcp",
        source_port="1024-65535",
        destination_port=80,
        in_interface="to-*",
        out_interface="lo",
        mark=7,
        not_mark=9,
        state=["new", "established"],
        uid=5,
        netns=here,
    )
    with rule:
        output = run(net, "router", "nft", "list", "ruleset")
    assert "type filter hook postrouting priority 5; policy accept;" in " ".join(output.split()).replace(
        "filter + 5", "5"
    )
    line = next(line for line in output.splitlines() if "log" in line)
    for text in ("ip saddr 192.0.2.0/25", "ip daddr 198.51.100.7", "sport 1024-65535", "dport 80", 'iifname "to-*"',
                 'oifname "lo"', "0x00000007", "!= 0x00000009", "ct state established,new", "skuid 5",
                 'log prefix "hi" group 5 snaplen 64 queue-threshold 3'):  # fmt: skip
        assert text in line, line
