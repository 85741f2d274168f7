"""Rules that drop, reject, accept or mark packets without a program, and the order of several rules."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import nfnet
from nfnet import ArgumentError, KernelError, Log, NotSupportedError, Queue, inet, rules
from nfnet.rules import _host_criteria
from nfnet.rules._expressions import REGISTER, be32

from .conftest import (
    ADDRESS,
    QUIET,
    TIMEOUT,
    Net,
    cgroup_root,
    collect,
    featured,
    kernel_lacks,
    kernel_lacks_cgroups,
    lacking,
    readable,
    wait_for,
)
from .programs import running

V4, V6 = socket.AF_INET, socket.AF_INET6
PORT = 7000
HOSTS = {"prerouting": "router", "input": "server", "forward": "router", "output": "client", "postrouting": "router"}
PLACES = [
    (hook, family, version)
    for hook in HOSTS
    for family, versions in (("inet", (V4, V6)), ("ip", (V4,)), ("ip6", (V6,)))
    for version in versions
]
REJECTING = [
    featured("reject: prerouting" if place[0] == "prerouting" else "reject: input, forward, output", *place)
    for place in PLACES
    if place[0] != "postrouting"
]


def count(net: Net, host: str) -> list[int]:
    return [row.packets for row in rules.installed(net.hosts[host])]


def connect(net: Net, version: int, port: int = PORT, timeout: float = TIMEOUT) -> None:
    with net.open_socket("client", version, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        sock.connect((ADDRESS["server", version], port))


def ask(net: Net, version: int) -> None:
    """Send a datagram, to which there is an answer, or an error."""
    with net.open_socket("client", version) as sender:
        sender.setsockopt(*((socket.IPPROTO_IP, 11) if version == V4 else (socket.IPPROTO_IPV6, 25)), 1)  # *_RECVERR
        sender.connect((ADDRESS["server", version], PORT))
        sender.send(b"refused")
        sender.recv(100)


@contextlib.contextmanager
def listener(net: Net, version: int) -> Iterator[socket.socket]:
    with net.open_socket("server", version, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((ADDRESS["server", version], PORT))
        sock.listen()
        yield sock


@pytest.mark.parametrize(("hook", "family", "version"), PLACES)
def test_drop(net: Net, hook: str, family: str, version: int) -> None:
    host = HOSTS[hook]
    receiver = net.receiver("server", version, PORT)
    sender = net.open_socket("client", version)
    rule = rules.drop(hook=hook, family=family, protocol=["tcp", "udp"], destination_port=PORT, netns=net.hosts[host])
    with rule, listener(net, version):
        # A datagram that is dropped at output is refused to its sender.
        with contextlib.suppress(PermissionError):
            sender.sendto(b"dropped", (ADDRESS["server", version], PORT))
        with pytest.raises(OSError, match="timed out|not permitted"):
            connect(net, version, timeout=QUIET)
        assert wait_for(lambda: count(net, host)[0] >= 2)
        assert not readable(receiver, 0)
    sender.sendto(b"passes", (ADDRESS["server", version], PORT))
    assert receiver.recv(100) == b"passes"


@pytest.mark.parametrize(("hook", "family", "version"), REJECTING)
def test_reject(net: Net, hook: str, family: str, version: int) -> None:
    """The sender gets a notice at once: a reset for a connection, an ICMP error for a datagram."""
    host = HOSTS[hook]
    receiver = net.receiver("server", version, PORT)
    rule = rules.reject(
        hook=hook,
        family=family,
        error="host-unreachable",  # so that a connection is refused by nothing but a reset
        protocol=["tcp", "udp"],
        destination_port=PORT,
        netns=net.hosts[host],
    )
    if hook == "prerouting" and lacking(rule):
        kernel_lacks("reject at prerouting", since=(5, 9))
    with rule, listener(net, version):
        with pytest.raises(ConnectionRefusedError):
            connect(net, version)
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            ask(net, version)
        # At output it is the call itself that fails, as it does if the packet is dropped.
        assert caught.value.errno == (errno.EPERM if hook == "output" else errno.EHOSTUNREACH)
        assert count(net, host)[0] >= 2
        assert not readable(receiver, 0)
    with listener(net, version):
        connect(net, version)


@pytest.mark.parametrize("version", [V4, V6])
@pytest.mark.parametrize(
    ("error", "numbers"),
    [
        ("port-unreachable", (errno.ECONNREFUSED, errno.ECONNREFUSED)),
        ("admin-prohibited", (errno.EHOSTUNREACH, errno.EACCES)),
        ("host-unreachable", (errno.EHOSTUNREACH, errno.EHOSTUNREACH)),
        ("no-route", (errno.ENETUNREACH, errno.ENETUNREACH)),
    ],
)
@pytest.mark.parametrize("family", ["inet", "own"])
def test_errors_of_reject(net: Net, error: Any, numbers: tuple[int, int], version: int, family: str) -> None:
    """Return the error that the sender of a datagram gets."""
    own = {V4: "ip", V6: "ip6"}[version] if family == "own" else family
    rule = rules.reject(hook="forward", family=own, protocol="udp", error=error, netns=net.hosts["router"])
    with rule, pytest.raises(OSError, match=r"\[Errno") as caught:
        ask(net, version)
    assert caught.value.errno == numbers[version == V6]


def test_a_connection_that_is_rejected_later_is_reset(net: Net) -> None:
    with listener(net, V4) as waiting, net.open_socket("client", V4, socket.SOCK_STREAM) as client:
        client.connect((ADDRESS["server", V4], PORT))
        server, _ = waiting.accept()
        with server, rules.reject(hook="forward", destination="10.81.2.2", netns=net.hosts["router"]):
            client.send(b"data")
            with pytest.raises(ConnectionResetError):
                client.recv(100)


@pytest.mark.parametrize(("hook", "family", "version"), PLACES)
def test_accept_spares_packets_the_rules_after_it(net: Net, hook: str, family: str, version: int) -> None:
    host = HOSTS[hook]
    here: dict[str, Any] = {"hook": hook, "family": family, "protocol": "udp", "netns": net.hosts[host]}
    spared = net.receiver("server", version, PORT)
    dropped = net.receiver("server", version, PORT + 1)
    sender = net.open_socket("client", version)
    with rules.install(rules.accept(destination_port=PORT, **here), rules.drop(**here)):
        for port in (PORT + 1, PORT):
            with contextlib.suppress(PermissionError):
                sender.sendto(b"data", (ADDRESS["server", version], port))
        assert spared.recv(100) == b"data"
        assert not readable(dropped, 0)
        assert wait_for(lambda: count(net, host) == [1, 1])
    assert rules.installed(net.hosts[host]) == []


@pytest.mark.parametrize(("hook", "family", "version"), PLACES)
def test_mark(net: Net, hook: str, family: str, version: int) -> None:
    """Only the bits of the mask are changed in the mark, and the next rule sees the new mark."""
    host = HOSTS[hook]
    here: dict[str, Any] = {"hook": hook, "family": family, "protocol": "udp", "netns": net.hosts[host]}
    sender = net.open_socket("client", version)
    first, second = rules.mark(0x1234, **here), rules.mark(0x56, mask=0xFF, mark=(0x34, 0xFF), **here)
    with Log(5, netns=net.hosts[host], threshold=1) as log, rules.install(first, second, rules.log(5, **here)):
        sender.sendto(b"data", (ADDRESS["server", version], PORT))
        (message,) = collect(log, 1)
        assert message.mark == 0x1256
        assert count(net, host) == [1, 1, 1]


def test_a_mark_at_output_chooses_the_route(net: Net) -> None:
    from pyroute2 import IPRoute

    def add_rule() -> None:
        with IPRoute() as ip:
            ip.rule("add", fwmark=7, priority=100, action="unreachable")

    net.at("client", add_rule)
    receiver, sender = net.receiver("server", V4, PORT), net.open_socket("client", V4)
    with rules.mark(7, hook="output", destination_port=PORT, protocol="udp", netns=net.hosts["client"]):
        with contextlib.suppress(OSError):
            sender.sendto(b"elsewhere", (ADDRESS["server", V4], PORT))
        assert not readable(receiver, QUIET)
        assert wait_for(lambda: count(net, "client") == [1])
    sender.sendto(b"here", (ADDRESS["server", V4], PORT))
    assert receiver.recv(100) == b"here"


# --- several rules


def test_a_packet_goes_to_the_first_queue_that_fits_and_to_no_other(net: Net) -> None:
    here = net.hosts["router"]
    where: dict[str, Any] = {"hook": "forward", "protocol": "udp", "netns": here}
    receiver = net.receiver("server", V4, PORT)
    pair = rules.install(rules.queue(1, destination_port=PORT, **where), rules.queue(2, **where))
    with pair, Queue(1, netns=here) as first, Queue(2, netns=here) as second:
        sender = net.open_socket("client", V4)
        sender.sendto(b"one", (ADDRESS["server", V4], PORT))
        sender.sendto(b"two", (ADDRESS["server", V4], PORT + 1))
        (packet,) = collect(first, 1)
        (other,) = collect(second, 1)
        assert (inet.get_data(packet.payload), inet.get_data(other.payload)) == (b"one", b"two")
        packet.accept()
        other.drop()
        assert receiver.recv(100) == b"one"
        assert not readable(first, 0)
        assert not readable(second, 0)
        assert count(net, "router") == [1, 1]


def test_what_is_logged_goes_on_to_the_next_rule(net: Net) -> None:
    here = net.hosts["router"]
    where: dict[str, Any] = {"hook": "forward", "protocol": "udp", "netns": here}
    receiver = net.receiver("server", V4, PORT)
    with (
        rules.install(rules.log(5, prefix="gone", **where), rules.drop(**where)),
        Log(5, netns=here, threshold=1) as log,
    ):
        net.open_socket("client", V4).sendto(b"data", (ADDRESS["server", V4], PORT))
        (message,) = collect(log, 1)
        assert message.prefix == "gone"
        assert not readable(receiver, 0)


def test_rules_of_all_places_are_one_transaction(net: Net) -> None:
    here = net.hosts["router"]
    several = [
        rules.drop(hook="forward", family="ip", source="192.0.2.1", netns=here),
        rules.reject(hook="forward", family="ip6", source=["2001:db8::1", "2001:db8::7"], netns=here),
        rules.log(5, hook="input", priority=-10, netns=here),
        rules.log(6, hook="input", priority=10, not_source="192.0.2.0/24", netns=here),
        rules.log(7, hook="input", priority=-10, netns=here),
    ]
    together = rules.RuleSet(*several)
    together.install()
    rows = rules.installed(here)
    assert sorted({row.family for row in rows}) == ["inet", "ip", "ip6"]
    assert {row.words for row in rows} == {
        "drop hook=forward family=ip source=192.0.2.1",
        "reject hook=forward family=ip6 source=2001:db8::1,2001:db8::7",
        "log 5 hook=input priority=-10",
        "log 6 hook=input priority=10 not_source=192.0.2.0/24",
        "log 7 hook=input priority=-10",
    }
    assert repr(together) == "<RuleSet of 5 rules: installed>"
    with pytest.raises(nfnet.NfnetError, match="installed already"):
        together.install()
    rules.remove(together)
    rules.remove(together)
    assert rules.installed(here) == []


def test_one_rule_that_the_kernel_refuses_leaves_none(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    here = net.hosts["router"]
    good, bad = (rules.log(5, hook="input", netns=here) for _ in range(2))
    # A kind of expression that no kernel has.
    monkeypatch.setattr(type(bad.action), "choices", lambda self, family: [[("nonsense", {})]])
    with pytest.raises(
        KernelError, match="no expression for .* or .nft add rule inet nfnet input .counter log group 5"
    ):
        rules.install(rules.drop(hook="forward", netns=here), good, bad)
    assert rules.installed(here) == []


def test_sets_that_make_no_sense() -> None:
    with pytest.raises(ArgumentError, match="at least one rule"):
        rules.install()
    with pytest.raises(ArgumentError, match="a rule must be a result of a function of nfnet.rules, not str"):
        rules.install("drop")  # type: ignore[arg-type]
    first, second = rules.log(5, hook="input", netns="blue"), rules.log(5, hook="input")
    with pytest.raises(ArgumentError, match="one network namespace: netns differs"):
        rules.install(first, second)


SCRIPT = """\
import time, nfnet
rules = nfnet.rules
with rules.install(
    rules.accept(hook="forward", source=["192.0.2.1", "fd00::/8"]),
    rules.drop(hook="forward", family="ip", not_source=["10.0.0.0/8", "192.0.2.7-192.0.2.9"]),
    rules.queue(1, hook="forward", protocol="udp", bypass=False),
):
    print("up", flush=True)
    while True:  # a signal that arrives between Python's last check and the system call does not end the sleep
        time.sleep(0.1)
"""


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, featured("rules removed with a killed process", signal.SIGKILL)]
)
def test_sets_end_with_their_process(net: Net, number: signal.Signals) -> None:
    with running(net, [sys.executable, "-c", SCRIPT]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert len(rules.installed(net.hosts["router"])) == 3
        process.send_signal(number)
        process.wait(TIMEOUT)
    left = [row for row in rules.installed(net.hosts["router"]) if row.orphaned]
    if left:
        assert number != signal.SIGINT, "Python ends its blocks for that"
        assert rules.clean(net.hosts["router"]) == left
    assert wait_for(lambda: rules.installed(net.hosts["router"]) == [])
    if left:
        kernel_lacks("tables with an owner", since=(5, 12))


# --- control groups


SENDER = """\
import os, socket, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.sendto(b"data", (sys.argv[2], 7000))
"""


@pytest.mark.feature("cgroup in a rule")
@pytest.mark.parametrize("by", ["name", "path", "absolute path", "its parent"])
def test_cgroup(net: Net, group: str, by: str) -> None:
    root = cgroup_root()
    value = {
        "name": group.rpartition("/")[2],
        "path": group,
        "absolute path": f"{root}/{group}",
        "its parent": group.partition("/")[0],
    }[by]
    where: dict[str, Any] = {"hook": "output", "protocol": "udp", "netns": net.hosts["client"]}
    own, others = rules.drop(cgroup=value, **where), rules.log(5, **where)
    if error := lacking(own):
        kernel_lacks_cgroups(error)
    with rules.install(own, others):
        command = [sys.executable, "-c", SENDER, f"{root}/{group}", ADDRESS["server", V4]]
        net.at("client", lambda: subprocess.run(command, timeout=TIMEOUT, capture_output=True))
        assert wait_for(lambda: count(net, "client") == [1, 0])
        net.open_socket("client", V4).sendto(b"data", (ADDRESS["server", V4], PORT))
        assert wait_for(lambda: count(net, "client") == [1, 1])


def test_a_kernel_that_cannot_look_for_control_groups(net: Net, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 5.13 it knows the expression, but not that."""
    unknown = ("socket", {1: be32(99), 2: be32(REGISTER)})
    monkeypatch.setattr(_host_criteria, "socket_cgroup", lambda level: unknown)
    rule = rules.drop(hook="output", cgroup=group, netns=net.hosts["client"])
    words = r"knows no expression for 'nft add rule .*socket cgroupv2 level 2 .*; cgroup needs CONFIG_NFT_SOCKET, and "
    with pytest.raises(NotSupportedError, match=words):
        rule.install()


def test_a_control_group_that_has_gone(net: Net, group: str) -> None:
    with pytest.raises(ArgumentError, match=f"cgroup is '{group}/x', and there is no such control group"):
        rules.drop(hook="output", cgroup=f"{group}/x")
    with pytest.raises(ArgumentError, match="cgroup is 'no-such.service', and must be a systemd unit .* none of that"):
        rules.drop(hook="output", cgroup="no-such.service")
    with pytest.raises(ArgumentError, match="several levels"):
        rules.drop(hook="output", cgroup=[group, group.partition("/")[0]])
