"""The bad line of ``nfnet queue`` on the kernel: order and counts, with the receiving socket as witness."""

from __future__ import annotations

import re
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest

from nfnet import rules

from .conftest import ADDRESS, QUIET, TIMEOUT, UID, Net, readable, wait_for
from .test_commands import RULE, V4, finish, nfnet_command
from .traffic import Way, queueing

V6 = socket.AF_INET6
SENDER = {"forward": "client", "output": "router"}
MANY = 200  # packets, for which a socket has room however late it is read


def numbered(count: int) -> list[bytes]:
    return [number.to_bytes(4, "big") + bytes(68) for number in range(count)]


def arrived(receiver: socket.socket, count: int) -> list[int]:
    """Return the numbers of packets in the order of arrival; no more than so many arrive."""
    found = [int.from_bytes(receiver.recv(2000)[:4], "big") for _ in range(count)]
    assert not readable(receiver, QUIET)
    return found


def counts(errors: str) -> Counter[str]:
    """Return the numbers in the summary, by the word after each."""
    return Counter({word: int(number) for number, word in re.findall(r"(\d+) (packet|\w+)", errors.splitlines()[-1])})


LINES = {
    "delay": ("--delay", "20"),
    "jitter": ("--delay", "20", "--jitter", "20", "--seed", "1"),
    "rate": ("--rate", "20kpps"),
    "all": ("--rate", "2MB", "--delay", "10", "--jitter", "5"),
}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
def test_the_order_is_kept_and_nothing_is_lost(net: Net, family: int, line: str) -> None:
    way = Way(net, family)
    with nfnet_command(net, "queue", "1", "--install-rule", RULE, "-q", *LINES[line]) as process:
        way.send(*numbered(MANY))
        assert arrived(way.receiver, MANY) == list(range(MANY))
        _, errors = finish(process)
    assert errors.startswith(f"{MANY} packets: {MANY} accepted, 0 dropped")
    if line == "delay":
        assert counts(errors)["delayed"] == MANY


def test_what_is_late_was_overtaken(way: Way) -> None:
    with nfnet_command(
        way.net, "queue", "1", "--install-rule", RULE, "-q", "--reorder", "30", "--seed", "4"
    ) as process:
        way.send(*numbered(MANY))
        order = arrived(way.receiver, MANY)
        _, errors = finish(process)
    assert sorted(order) == list(range(MANY))
    late = sum(number < max(order[:place]) for place, number in enumerate(order) if place)
    assert late == counts(errors)["reordered"] == pytest.approx(0.3 * MANY, abs=30)


@pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("hook", ["forward", "output", "input", "prerouting"])
def test_copies_arrive_right_behind(net: Net, family: int, hook: str) -> None:
    """Also if the rule matches this machine's own packets: it skips the mark of the copy."""
    host = {"output": "router", "input": "client"}.get(hook, "client")
    sender = net.open_socket(host, family)
    here = "router" if hook == "input" else "server"
    receiver = net.receiver(here, family)
    rule = f"hook={hook} protocol=udp destination_port=7000"
    arguments = ("queue", "1", "--install-rule", rule, "--duplicate", "100")
    with nfnet_command(net, *arguments) as process:
        for data in numbered(20):
            sender.sendto(data, (ADDRESS[here, family], 7000))
        assert arrived(receiver, 40) == [number for number in range(20) for _ in range(2)]
        output, errors = finish(process)
    assert errors == "20 packets: 20 accepted, 0 dropped, 20 duplicated\n"
    assert Counter(line.split()[-1] for line in output.splitlines()) == {"accept": 20, "duplicate": 20}


def test_copies_are_not_copied_where_the_rule_queues_them_too(net: Net) -> None:
    """A rule of another program, which does not test the mark."""
    sender, receiver = net.open_socket("router"), net.receiver("server")
    everything = "hook=output protocol=udp destination_port=7000 mark=0/1"
    with nfnet_command(net, "queue", "1", "--install-rule", everything, "--duplicate", "100", "-q") as process:
        sender.sendto(b"x", (ADDRESS["server", V4], 7000))
        assert [receiver.recv(100) for _ in range(2)] == [b"x", b"x"]
        assert not readable(receiver, QUIET)
        _, errors = finish(process)
    assert errors == "2 packets: 2 accepted, 0 dropped, 1 duplicated\n"


def test_copies_that_cannot_be_sent_are_said(net: Net) -> None:
    sender, receiver = net.open_socket("router"), net.receiver("server")
    rule = "hook=output protocol=udp destination_port=7000"
    with (
        rules.drop(hook="postrouting", mark=0x10000000, netns=net.hosts["router"]),
        nfnet_command(net, "queue", "1", "--install-rule", rule, "--duplicate", "100", "-q") as process,
    ):
        for data in numbered(3):
            sender.sendto(data, (ADDRESS["server", V4], 7000))
        assert arrived(receiver, 3) == [0, 1, 2]
        _, errors = finish(process)
    summary, why = errors.splitlines()
    assert summary == "3 packets: 3 accepted, 0 dropped"
    assert why.startswith("3 packets could not be duplicated: injecting a packet of 100 bytes for 10.81.2.2")
    assert why.endswith(", for one")


def udp_errors(net: Net, family: int) -> int:
    """How many datagrams the server has thrown away for their checksums."""

    def read() -> int:
        if family == V6:
            rows = dict(line.split() for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines())
            return int(rows["Udp6InCsumErrors"])
        lines = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()]
        names, values = (line for line in lines if line[0] == "Udp:")
        return int(values[names.index("InCsumErrors")])

    found: int = net.at("server", read)
    return found


@pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
def test_what_is_damaged_arrives_with_a_wrong_checksum(net: Net, family: int) -> None:
    """If the port was changed no socket gets it; otherwise the receiver finds a wrong checksum."""
    way = Way(net, family)
    with nfnet_command(net, "queue", "1", "--install-rule", RULE, "--corrupt", "50", "--seed", "2") as process:
        way.send(*numbered(200))
        assert process.stdout is not None
        fates = [process.stdout.readline().split()[-1] for _ in range(200)]
        intact = [number for number, fate in enumerate(fates) if fate == "accept"]
        assert set(fates) == {"accept", "corrupted"}
        assert arrived(way.receiver, len(intact)) == intact
        _, errors = finish(process)
    damaged = fates.count("corrupted")
    assert errors == f"200 packets: 200 accepted, 0 dropped, {damaged} corrupted\n"
    assert damaged == pytest.approx(100, abs=30)
    # A bit of the port, or of the length, is hit in 32 of 80 * 8 cases.
    assert 0.6 * damaged < udp_errors(net, family) <= damaged


def test_a_seed_loses_the_same_packets_each_time(way: Way) -> None:
    lost = []
    for _ in range(2):
        with nfnet_command(way.net, "queue", "1", "--install-rule", RULE, "--loss", "50", "--seed", "9") as process:
            way.send(*numbered(100))
            assert process.stdout is not None
            fates = [process.stdout.readline().split()[-1] for _ in range(100)]
            _, errors = finish(process)
        lost.append([number for number, fate in enumerate(fates) if fate == "lost"])
        assert arrived(way.receiver, 100 - len(lost[-1])) == [n for n in range(100) if n not in lost[-1]]
        assert (
            errors
            == f"100 packets: {100 - len(lost[-1])} accepted, {len(lost[-1])} dropped ({len(lost[-1])} by chance)\n"
        )
    assert lost[0] == lost[1]


def test_what_finds_no_room_is_dropped_and_counted(way: Way) -> None:
    """One leaves; ten wait for longer than this test runs, and are accepted at the end."""
    arguments = ("queue", "1", "--install-rule", RULE, "-q", "--rate", "0.001pps", "--max-len", "10")
    with nfnet_command(way.net, *arguments) as process:
        way.send(*numbered(30))
        assert arrived(way.receiver, 1) == [0]
        _, errors = finish(process, signal.SIGTERM)
    assert arrived(way.receiver, 10) == list(range(1, 11))
    assert errors == "30 packets: 11 accepted, 19 dropped (19 for lack of room: --max-len), 10 delayed\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_behind(way: Way, number: signal.Signals) -> None:
    """The rules are removed, and waiting packets are accepted in their order."""
    arguments = ("queue", "1", "--install-rule", RULE, "-q", "--delay", "60000", "--duplicate", "100")
    with nfnet_command(way.net, *arguments) as process:
        way.send(*numbered(50))
        if UID == 0:
            assert wait_for(lambda: (way.net.proc("router", "nfnetlink_queue") or [[0] * 9])[0][2] == 50)
        finish(process, number)
    assert rules.installed(way.here) == []
    assert arrived(way.receiver, 100) == [copy for copy in range(50) for _ in range(2)]
    way.send(b"afterwards")
    assert way.received(1) == [b"afterwards"]


# --- verdicts


def connect(net: Net, family: int, host: str = "client", port: int = 7100) -> OSError | None:
    """Return the outcome of connecting to a listening server."""
    with net.open_socket("server", family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::" if family == V6 else "0.0.0.0", port))
        listener.listen()
        with net.open_socket(host, family, socket.SOCK_STREAM) as sock:
            try:
                sock.connect((ADDRESS["server", family], port))
            except OSError as error:
                return error
            return None


@pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("hook", ["forward", "output"])
@pytest.mark.parametrize("connection", [(), ("--connection",)], ids=["packet", "connection"])
def test_rejected_connections_are_refused(net: Net, family: int, hook: str, connection: tuple[str, ...]) -> None:
    rule = f"hook={hook} protocol=tcp destination_port=7100"
    with nfnet_command(net, "queue", "1", "--install-rule", rule, "--reject", *connection) as process:
        assert isinstance(connect(net, family, SENDER[hook]), ConnectionRefusedError)
        output, errors = finish(process)
    assert output.splitlines()[0].endswith(" reject")
    assert errors == "1 packet: 0 accepted, 0 dropped, 1 rejected\n"


def test_what_cannot_be_rejected_is_dropped_and_said(net: Net) -> None:
    """With no way back to the sender."""
    way = Way(net)
    rule = "hook=forward protocol=udp destination_port=7000"
    with (
        rules.drop(hook="output", protocol="icmp", netns=net.hosts["router"]),
        nfnet_command(net, "queue", "1", "--install-rule", rule, "--reject", "-q") as process,
    ):
        way.send(b"x")
        assert wait_for(lambda: (net.proc("router", "nfnetlink_queue") or [[0, 0, 0, 0, 0, 0, 0, 1]])[0][7] == 1)
        assert not readable(way.receiver, QUIET)
        _, errors = finish(process)
    assert errors.splitlines()[0] == "1 packet: 0 accepted, 1 dropped"
    assert errors.splitlines()[1].startswith("1 packet could not be rejected: injecting a packet of ")


@pytest.mark.parametrize("verdict", ["--accept", "--drop"])
def test_the_rest_of_a_connection_does_not_come_here(way: Way, verdict: str) -> None:
    arguments = ("queue", "1", "--install-rule", RULE, "--connection", verdict)
    with nfnet_command(way.net, *arguments) as process:
        way.send(b"first")
        assert process.stdout is not None
        process.stdout.readline()
        # The verdict on a packet can be sent after it was shown.
        if verdict == "--accept":
            assert way.received(1) == [b"first"]
        elif UID == 0:
            assert wait_for(lambda: (way.net.proc("router", "nfnetlink_queue") or [[0] * 9])[0][2] == 0)
        way.send(*numbered(20))
        if verdict == "--accept":
            assert arrived(way.receiver, 20) == list(range(20))
        assert not readable(way.receiver, QUIET)
        _, errors = finish(process)
    assert counts(errors)["packet"] == 1


def test_without_the_rule_that_a_connection_needs_it_says_so(way: Way) -> None:
    with queueing(way.net), nfnet_command(way.net, "queue", "1", "--connection", "--drop") as process:
        way.send(b"x")
        _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2
    assert "remember=True" in errors.splitlines()[-1]
    assert "Traceback" not in errors
