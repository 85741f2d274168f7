"""NFLOG on the real kernel: attributes, batching, loss, rules."""

from __future__ import annotations

import gc
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import CopyMode, Hook, Log, LogMessage, inet, rules, stats

from .conftest import (
    ADDRESS,
    QUIET,
    TIMEOUT,
    UID,
    Net,
    collect,
    doing,
    featured,
    kernel_lacks,
    lacking,
    readable,
    wait_for,
)
from .traffic import PATHS, PORT, V4, V6

SO_MARK = 36


@contextmanager
def xtables_log(group: int, *, prefix: str, hook: str, family: str, netns: Any) -> Iterator[None]:
    """A rule with the target of iptables in place of nft's expression."""
    info = struct.pack("=IHHHH64s", 0, group, 0, 0, 0, prefix.encode()) + bytes(4)  # struct xt_nflog_info
    target = ("target", {1: b"NFLOG\0", 2: bytes(4), 3: info})
    rule = rules.log(group, hook=hook, family=family, netns=netns)
    with doing(rule, [target]):
        yield


@pytest.fixture(params=[featured("log: nft, families ip, ip6", "nft"), featured("log: xt_NFLOG", "xtables")])
def rule(request: pytest.FixtureRequest) -> Any:
    return rules.log if request.param == "nft" else xtables_log


@pytest.fixture(params=[V4, V6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def ours(messages: list[LogMessage]) -> list[LogMessage]:
    """Turn IPv6 off, and so the packets that it sends by itself."""
    return [message for message in messages if inet.get_data(message.payload) is not None]


@pytest.mark.parametrize("hook", PATHS)
def test_attributes(net: Net, rule: Any, hook: str, family: int) -> None:
    sender, where, receiver = PATHS[hook]
    here = net.hosts[where]
    before = time.time()
    with Log(5, netns=here, threshold=1, sequence=True, global_sequence=True) as log:
        with rule(5, prefix="who goes there: ", hook=hook, family="ip" if family == V4 else "ip6", netns=here):
            sock = net.open_socket(sender, family)
            if hook == "output":
                sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 0xABCD)
            sock.sendto(b"attributes", (ADDRESS[receiver, family], PORT))
            found: list[LogMessage] = []
            while not found:
                found = ours(collect(log, 1))
            (message,) = found
    assert message.prefix == "who goes there: "
    assert (message.hook, message.family) == (Hook[hook.upper()], family)
    assert message.hw_protocol == (0x0800 if family == V4 else 0x86DD)
    assert inet.get_data(message.payload) == b"attributes"
    assert len(message.payload) == (20 if family == V4 else 40) + 8 + 10

    incoming = hook in ("prerouting", "input", "forward")
    outdev = {"output": "to-router", "forward": "to-server", "postrouting": "to-server"}.get(hook)
    came_in = incoming or hook == "postrouting"  # for that hook since Linux 5.7
    assert message.indev == (net.index("router", "to-client") if came_in else None)
    assert message.outdev == (net.index(where, outdev) if outdev else None)
    assert (message.physindev, message.physoutdev) == (None, None)
    mac = [bytes.fromhex(net.mac(*pair).replace(":", "")) for pair in (("client", "router"), ("router", "client"))]
    ethernet = mac[1] + mac[0] + message.hw_protocol.to_bytes(2, "big")
    if incoming:
        assert message.hwaddr == mac[0]
        assert message.hwtype == 1
        assert message.hwheader == ethernet
        if message.timestamp is not None:  # see test_timestamps_that_nobody_asked_for
            assert before - 1 <= message.timestamp <= time.time() + 1
            assert abs(message.timestamp_ns / 1e9 - message.timestamp) < 1e-6  # type: ignore[operator]
    else:
        assert message.timestamp is None
    if hook == "output":
        assert (message.hwaddr, message.hwtype, message.hwheader) == (None, None, None)
    assert message.mark == (0xABCD if hook == "output" else 0)
    # In the listener's user namespace, whose root sees 0.
    assert (message.uid, message.gid) == ((os.geteuid(), os.getegid()) if hook == "output" else (None, None))
    assert message.seq is not None
    assert message.seq_global == message.seq + 1
    assert (message.vlan, message.l2header, message.conntrack) == (None, None, None)


@pytest.mark.feature("log: timestamps by default")
def test_timestamps_that_nobody_asked_for(net: Net) -> None:
    here = net.hosts["router"]
    sock = net.open_socket("client")

    def stamps(queue: nfnet.Queue, log: Log) -> tuple[float | None, float | None]:
        """Of the same packet, in a queue and in the log."""
        sock.sendto(b"x", (ADDRESS["router", V4], PORT))
        (packet,) = collect(queue, 1)
        packet.drop()
        (message,) = collect(log, 1)
        return packet.timestamp, message.timestamp

    gc.collect()  # a socket left by another test can make the kernel timestamp packets
    with (
        nfnet.Queue(1, netns=here) as queue,
        Log(5, threshold=1, netns=here) as log,
        rules.log(5, hook="input", protocol="udp", netns=here),
        rules.queue(1, hook="input", protocol="udp", priority=10, netns=here),
    ):
        found: list[tuple[float | None, float | None]] = []

        def quiet() -> bool:
            found.append(stamps(queue, log))
            return found[-1][0] is None

        if not wait_for(quiet, 10):
            pytest.skip("something else on this machine makes the kernel stamp packets")
    if found[-1][1] is None:
        kernel_lacks("timestamps of logged packets by default", since=(6, 12))


def test_names_are_those_of_the_logs_namespace(net: Net) -> None:
    here = net.hosts["router"]
    with Log(5, netns=here, threshold=1) as log, rules.log(5, hook="forward", protocol="udp", netns=here):
        net.open_socket("client").sendto(b"x", (ADDRESS["server", V4], PORT))
        (message,) = collect(log, 1)
        assert (message.indev_name, message.outdev_name) == ("to-client", "to-server")
    assert message.indev_name == "to-client"  # remembered


def test_names_of_interfaces_that_are_gone(net: Net) -> None:
    from pyroute2 import IPRoute

    def remove() -> None:
        with IPRoute() as ip:
            ip.link("del", ifname="to-server")

    here = net.hosts["router"]
    with Log(5, netns=here, threshold=1) as log, rules.log(5, hook="forward", protocol="udp", netns=here):
        net.open_socket("client").sendto(b"x", (ADDRESS["server", V4], PORT))
        (message,) = collect(log, 1)
        net.at("router", remove)
        assert message.outdev is not None
        assert message.outdev_name is None


@contextmanager
def logged(net: Net, group: int = 5, *, rule_options: dict[str, Any] | None = None, **options: Any) -> Iterator[Any]:
    """Yield a log of the client's UDP datagrams, and a function that sends so many of them."""
    here = net.hosts["client"]
    sock = net.open_socket("client")
    rule = rules.log(group, hook="output", protocol="udp", netns=here, **(rule_options or {}))
    with Log(group, netns=here, **options) as log, rule:

        def send(count: int, data: bytes = b"x" * 72) -> None:
            for _ in range(count):
                sock.sendto(data, (ADDRESS["server", V4], PORT))

        yield log, send


def test_a_threshold_of_one_sends_at_once(net: Net) -> None:
    with logged(net, threshold=1, timeout=60) as (log, send):
        send(1)
        assert readable(log, TIMEOUT)
        assert len(collect(log, 1)) == 1


@pytest.mark.feature("log: sequence")
def test_messages_collect_up_to_the_threshold(net: Net) -> None:
    with logged(net, threshold=10, timeout=60, sequence=True) as (log, send):
        send(9)
        assert not readable(log, QUIET)
        send(1)
        assert [message.seq for message in collect(log, 10)] == list(range(10))


def test_a_rule_may_lower_the_threshold(net: Net) -> None:
    with logged(net, rule_options={"threshold": 3}, threshold=100, timeout=60) as (log, send):
        send(2)
        assert not readable(log, QUIET)
        send(1)
        assert len(collect(log, 3)) == 3


def test_messages_wait_no_longer_than_the_timeout(net: Net) -> None:
    with logged(net, threshold=100, timeout=0.3) as (log, send):
        began = time.monotonic()
        send(2)
        assert readable(log, TIMEOUT)
        assert time.monotonic() - began > 0.2
        assert len(collect(log, 2)) == 2


def test_a_large_buffer_comes_whole(net: Net) -> None:
    """The kernel rounds it up: one datagram can exceed the requested size by nearly that size."""
    with logged(net, threshold=3000, timeout=60, buffer_size=131072, sequence=True) as (log, send):
        for _ in range(60):
            if readable(log, 0):
                break
            send(50)
        transport = log._bound().transport
        sizes: list[int] = []
        original = transport.receive

        def receive(into: list[bytes], limit: int) -> bool:
            more: bool = original(into, limit)
            sizes.extend(map(len, into))
            return more

        transport.receive = receive
        messages = collect(log, 1)  # and those that arrived with it
        assert [message.seq for message in messages] == list(range(len(messages)))
        assert max(sizes) > 131072
        assert log.counters.lost == 0


def test_a_large_packet_comes_whole(net: Net) -> None:
    here = net.hosts["client"]
    data = os.urandom(60000)
    with Log(5, netns=here, threshold=1) as log, rules.log(5, hook="output", protocol="udp", netns=here):
        sock = net.open_socket("client")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        sock.sendto(data, ("127.0.0.1", PORT))
        (message,) = collect(log, 1)
        assert message.payload[28:] == data


def test_closing_sends_nothing_more_and_reopening_begins_at_zero(net: Net) -> None:
    with logged(net, threshold=1, sequence=True) as (log, send):
        send(3)
        assert [message.seq for message in collect(log, 3)] == [0, 1, 2]
        log.close()
        log.open()
        send(2)
        assert [message.seq for message in collect(log, 2)] == [0, 1]
        assert log.counters.lost == 0


@pytest.mark.parametrize(("options", "size"), [({"snaplen": 30}, 30), ({"snaplen": 0}, 0), ({}, 100)])
def test_snaplen(net: Net, options: dict[str, Any], size: int) -> None:
    with logged(net, rule_options=options, threshold=1) as (log, send):
        send(1)
        assert len(collect(log, 1)[0].payload) == size


@pytest.mark.parametrize(
    ("options", "size"), [({"copy_range": 50}, 50), ({"copy_mode": CopyMode.META}, 0), ({"copy_mode": 0}, 0)]
)
def test_copy_modes(net: Net, options: dict[str, Any], size: int) -> None:
    with logged(net, threshold=1, **options) as (log, send):
        send(1)
        (message,) = collect(log, 1)
        assert len(message.payload) == size
        assert message.outdev == net.index("client", "to-router")


@pytest.mark.feature("log: global_sequence")
@pytest.mark.feature("log: nft, family inet")
def test_two_groups_at_once(net: Net) -> None:
    with logged(net, 5, threshold=1, rule_options={"prefix": "five"}, global_sequence=True) as (five, send):
        with logged(net, 65535, threshold=1, rule_options={"prefix": "last"}, global_sequence=True) as (last, _):
            send(2)
            first, second = collect(five, 2), collect(last, 2)
            assert {message.prefix for message in first} == {"five"}
            assert {message.prefix for message in second} == {"last"}
            numbers = [message.seq_global for message in (*first, *second)]
            assert len(set(numbers)) == 4


@pytest.mark.parametrize("policy", ["count", "ignore"])
def test_loss_is_counted(net: Net, policy: Any, caplog: pytest.LogCaptureFixture) -> None:
    with logged(net, threshold=1, rcvbuf=20000, sequence=True, on_overrun=policy) as (log, send):
        send(500)
        collect(log, 1)
        send(1)
        while (messages := collect(log, 1))[-1].seq != 500:
            pass
        assert messages
        counters = log.counters
        assert counters.lost is not None
        assert counters.lost > 400
        assert counters.received + counters.lost == 501
        assert counters.overruns >= 1
    assert ("messages were lost" in caplog.text) == (policy == "count")


def test_loss_can_be_raised(net: Net) -> None:
    with logged(net, threshold=1, rcvbuf=20000, sequence=True, on_overrun="raise") as (log, send):
        send(500)
        got: list[LogMessage] = []
        with pytest.raises(nfnet.OverrunError, match="ENOBUFS"):
            log.run(got.append)
        while log.process(got.append):
            pass
        send(1)
        got += collect(log, 1)
        assert got[-1].seq == 500
        assert log.counters.lost is not None
        assert log.counters.received + log.counters.lost == 501
        assert log.counters.overruns == 1


def test_a_group_that_somebody_has(net: Net) -> None:
    here = net.hosts["client"]
    owner = "" if net.proc("client", "nfnetlink_log") is None else "of this process "
    with (
        Log(7, netns=here),
        pytest.raises(nfnet.BusyError, match=f"binding log group 7: another socket {owner}has it") as caught,
    ):
        Log(7, netns=here).open()
    assert isinstance(caught.value, PermissionError)
    with Log(7, netns=here):
        pass


def test_a_flag_that_the_kernel_lacks(net: Net) -> None:
    refusal = lacking(Log(7, netns=net.hosts["client"], conntrack=True))
    if refusal is None:
        pytest.skip("this kernel can do it all")
    assert str(refusal).endswith("This kernel has no support for conntrack")


def test_stop_from_another_thread(net: Net) -> None:
    with Log(7, netns=net.hosts["client"]) as log:
        timer = threading.Timer(0.05, log.stop)
        timer.start()
        log.run(print)  # until then
        timer.join()
        assert log.counters.received == 0


def test_the_rule_says_what_was_asked(net: Net) -> None:
    """Read back from the kernel."""
    from pyroute2.nftables.main import NFTables

    def read() -> Any:
        nft = NFTables(nfgen_family=1)
        try:
            (rule,) = nft.get_rules()
            return rule.get_attr("NFTA_RULE_EXPRESSIONS")[-1].get_attr("NFTA_EXPR_DATA")
        finally:
            nft.close()

    here = net.hosts["client"]
    with rules.log(300, hook="output", prefix="größe: ", snaplen=77, threshold=9, netns=here):
        data = net.at("client", read)
        # pyroute2 reads 16 bits as if they were 32, whatever is behind them: look at the bytes.
        values = {name: data.get_attr(name) for name in ("NFTA_LOG_PREFIX", "NFTA_LOG_SNAPLEN")}
        assert values == {"NFTA_LOG_PREFIX": "größe: ", "NFTA_LOG_SNAPLEN": 77}
        with Log(300, netns=here, timeout=60) as log:
            sock = net.open_socket("client")
            for _ in range(9):
                sock.sendto(b"x", (ADDRESS["server", V4], PORT))
            assert {message.prefix for message in collect(log, 9)} == {"größe: "}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefix": "x" * 128}, "prefix has 128 bytes and must have at most 127"),
        ({"prefix": "a\0b"}, "none of them 0"),
        ({"snaplen": -1}, "snaplen"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": 65536}, "threshold"),
        ({"hook": "outside"}, "hook is 'outside' and must be one of"),
        ({"destination_port": 5}, "destination_port needs protocol"),
    ],
)
def test_bad_rules_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words), rules.log(5, **{"hook": "output", **options}):
        pass


def test_stats_of_a_log_and_of_all(net: Net) -> None:
    here = net.hosts["client"]
    with logged(net, threshold=100, timeout=60, copy_range=64) as (log, send):
        send(3)
        assert log.stats().counters.received == 0
        try:
            rows = stats.logs(here)
        except nfnet.NotPermittedError:
            assert UID
            assert log.stats().kernel is None
            return
        port_id = log._bound().transport.port_id
        assert rows == [stats.LogStatus(5, port_id, 3, CopyMode.PACKET, 64, 60.0)]
        assert log.stats().kernel == rows[0]
    assert log.stats().kernel is None


@pytest.mark.parametrize("fail_open", [False, True])
def test_everybody_may_know_what_did_not_fit_into_the_receive_buffer(net: Net, fail_open: bool) -> None:
    """The kernel also counts drops for the socket, in /proc/net/netlink, including packets that fail-open let pass."""
    here = net.hosts["client"]
    options: dict[str, Any] = {"rcvbuf": 8192, "fail_open": fail_open, "on_overrun": "ignore", "netns": here}
    with nfnet.Queue(3, **options) as queue, rules.queue(3, hook="output", protocol="udp", netns=here):
        before = queue.stats().socket
        assert before is not None
        assert before == (queue.rcvbuf, 0, 0)
        sock = net.open_socket("client")
        for _ in range(50):
            sock.sendto(bytes(1000), (ADDRESS["server", V4], PORT))
        port_id = str(queue._bound().transport.port_id)
        table = net.at("client", Path("/proc/thread-self/net/netlink").read_text).splitlines()
        (found,) = (line.split() for line in table if line.split()[1:3] == ["12", port_id])
        _, kernel, buffer = queue.stats()
        assert buffer == (queue.rcvbuf, int(found[4]), int(found[8]))
        assert buffer is not None
        assert buffer.unread > 0
        if not fail_open and kernel is not None:
            assert buffer.dropped == kernel.user_dropped
        queue.process(lambda packet: packet.drop())
        after = queue.stats()
        assert after.socket == (queue.rcvbuf, 0, buffer.dropped)
        assert after.counters.received + buffer.dropped == 50
    assert queue.stats()[1:] == (None, None)


def test_stats_of_a_queue_and_of_all(net: Net) -> None:
    here = net.hosts["client"]
    with nfnet.Queue(3, netns=here) as queue, rules.queue(3, hook="output", protocol="udp", netns=here):
        sock = net.open_socket("client")
        for _ in range(4):
            sock.sendto(b"x", (ADDRESS["server", V4], PORT))
        try:
            (row,) = stats.queues(here)
        except nfnet.NotPermittedError:
            assert UID
            assert queue.stats().kernel is None
            return
        assert (row.num, row.waiting, row.copy_mode, row.copy_range, row.last_id) == (3, 4, 2, 65531, 4)
        readable(queue, TIMEOUT)  # type: ignore[arg-type]
        queue.process(lambda packet: packet.drop())
        both = queue.stats()
        assert both.kernel is not None
        assert (both.kernel.waiting, both.counters.dropped) == (0, 4)
        assert both.kernel.port_id == row.port_id
