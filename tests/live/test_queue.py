"""NFQUEUE on the real kernel: verdicts, attributes, modes, limits."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import pathlib
import random
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import nfnet
from nfnet import CopyMode, Hook, Packet, Queue, SkbInfo, Transport, Verdict, doctor, inet, netns, rules, stats
from nfnet.protocol import netlink, nfqnl
from nfnet.testing import FakeKernel

from .conftest import (
    ADDRESS,
    GID,
    QUIET,
    TIMEOUT,
    UID,
    Net,
    collect,
    featured,
    in_child,
    kernel_lacks,
    kernel_version,
    lacking,
    readable,
    wait_for,
)
from .traffic import PATHS, PORT, V4, V6

SO_MARK = 36


class Path:
    """A queue on the way from one host to another."""

    def __init__(self, net: Net, hook: str, family: int, **options: Any) -> None:
        self.net, self.hook, self.family = net, hook, family
        sender, self.where, receiver = PATHS[hook]
        self.sender = net.open_socket(sender, family)
        self.receiver = net.receiver(receiver, family, PORT)
        self.destination = (ADDRESS[receiver, family], PORT)
        self.queue = Queue(1, netns=net.hosts[self.where], **options)
        self._rule = rules.queue(
            1, hook=hook, protocol="udp", destination_port=PORT, not_mark=99, netns=net.hosts[self.where]
        )

    def __enter__(self) -> Path:
        self._rule.__enter__()
        self.queue.open()
        return self

    def __exit__(self, *details: Any) -> None:
        try:
            self.queue.close()
        finally:
            self._rule.__exit__(None, None, None)

    def send(self, *data: bytes) -> list[Packet]:
        """Send datagrams, and return them as queued."""
        for item in data:
            self.sender.sendto(item, self.destination)
        return collect(self.queue, len(data))

    def got(self) -> bytes:
        return self.receiver.recv(70000)

    def got_nothing(self) -> bool:
        return not readable(self.receiver, QUIET)

    def row(self) -> list[int] | None:
        rows = self.net.proc(self.where, "nfnetlink_queue")
        return None if rows is None else next(row for row in rows if row[0] == 1)


@pytest.fixture(params=[V4, V6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=["output", "forward", "input"])
def hook(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.feature("accept, drop, repeat, requeue, stop")
def test_accept_and_drop(net: Net, hook: str, family: int) -> None:
    with Path(net, hook, family) as path:
        first, second, third = path.send(b"one", b"two", b"three")
        first.accept()
        second.drop()
        third.accept()
        assert [path.got(), path.got()] == [b"one", b"three"]
        assert path.got_nothing()
        counters = path.queue.counters
        assert (counters.received, counters.accepted, counters.dropped, counters.refused) == (3, 2, 1, {})
        row = path.row()
        assert row is None or (row[2], row[7]) == (0, 3)


@pytest.mark.feature("payload set by a verdict")
@pytest.mark.parametrize(
    "new", [b"s", b"a good deal longer than it was before" * 9, b""], ids=["shorter", "longer", "none"]
)
def test_payload_is_replaced(net: Net, hook: str, family: int, new: bytes) -> None:
    with Path(net, hook, family) as path:
        (packet,) = path.send(b"original")
        assert inet.get_data(packet.payload) == b"original"
        packet.accept(payload=inet.replace_data(packet.payload, new))
        assert path.got() == new


@pytest.mark.feature("mark set by a verdict")
def test_mark_is_set_and_seen_by_later_rules(net: Net, hook: str, family: int) -> None:
    with Path(net, hook, family) as path, Queue(2, netns=net.hosts[path.where]) as later:
        with rules.queue(2, hook=hook, mark=0x12345678, priority=10, netns=net.hosts[path.where]):
            marked, other = path.send(b"marked", b"other")
            assert marked.mark == 0
            marked.accept(mark=0x12345678)
            other.accept(mark=5)
            (again,) = collect(later, 1)
            assert again.mark == 0x12345678
            assert inet.get_data(again.payload) == b"marked"
            assert path.got() == b"other"
            again.accept()
            assert path.got() == b"marked"


@pytest.mark.feature("mark set by a verdict")
def test_received_mark_is_kept_or_cleared(net: Net, family: int) -> None:
    with Path(net, "output", family) as path, Queue(2, netns=net.hosts["client"]) as later:
        with rules.queue(2, hook="postrouting", protocol="udp", netns=net.hosts["client"]):
            path.sender.setsockopt(socket.SOL_SOCKET, SO_MARK, 77)
            kept, cleared = path.send(b"kept", b"cleared")
            assert kept.mark == 77
            kept.accept()
            cleared.accept(mark=0)
            assert [packet.mark for packet in collect(later, 2)] == [77, 0]


@pytest.mark.feature("accept, drop, repeat, requeue, stop")
def test_repeat_with_a_mark_passes_and_without_comes_back(net: Net, hook: str, family: int) -> None:
    with Path(net, hook, family) as path:
        (packet,) = path.send(b"again")
        packet.repeat()
        (back,) = collect(path.queue, 1)
        assert back.id == 2
        back.repeat(mark=99)
        assert path.got() == b"again"
        assert path.queue.counters.repeated == 2


@pytest.mark.feature("accept, drop, repeat, requeue, stop")
def test_requeue(net: Net, hook: str, family: int) -> None:
    with Path(net, hook, family) as path, Queue(40000, netns=net.hosts[path.where]) as other:
        first, second, third = path.send(b"first", b"second", b"third")
        first.requeue(40000)
        second.requeue(123)  # no program reads it: dropped
        third.requeue(123, bypass=True)  # no program reads it: accepted
        (packet,) = collect(other, 1)
        assert packet.id == 1
        assert inet.get_data(packet.payload) == b"first"
        packet.accept()
        assert sorted([path.got(), path.got()]) == [b"first", b"third"]
        assert path.got_nothing()


@pytest.mark.feature("accept, drop, repeat, requeue, stop")
def test_stop_skips_the_later_chains_of_the_hook(net: Net, hook: str, family: int) -> None:
    with Path(net, hook, family) as path, Queue(2, netns=net.hosts[path.where]) as later:
        with rules.queue(2, hook=hook, protocol="udp", priority=10, netns=net.hosts[path.where]):
            accepted, stopped = path.send(b"accepted", b"stopped")
            stopped.verdict(Verdict.STOP)
            assert path.got() == b"stopped"
            accepted.accept()
            collect(later, 1)[0].accept()
            assert path.got() == b"accepted"


def test_verdicts_in_any_order(net: Net, family: int) -> None:
    with Path(net, "output", family) as path:
        packets = path.send(*(str(number).encode() for number in range(20)))
        for packet in reversed(packets):
            packet.accept()
        assert [path.got() for _ in packets] == [str(number).encode() for number in reversed(range(20))]


@contextmanager
def stamps(net: Net) -> Iterator[None]:
    """The kernel timestamps packets, beginning some time after the request."""
    with net.open_socket("router") as asking:
        asking.setsockopt(socket.SOL_SOCKET, 29, 1)  # SO_TIMESTAMP
        with Path(net, "input", V4) as path:
            assert wait_for(lambda: is_stamped(path))
        yield


def is_stamped(path: Path) -> bool:
    """Whether a packet is."""
    (packet,) = path.send(b"x")
    packet.drop()
    return packet.timestamp is not None


@pytest.mark.parametrize("where", list(PATHS))
def test_attributes(net: Net, where: str, family: int) -> None:
    before = time.time()
    with stamps(net), Path(net, where, family, uid_gid=True, timestamps=True) as path:
        if where == "output":
            path.sender.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 5)
            path.sender.setsockopt(socket.SOL_SOCKET, SO_MARK, 0xABCD)
        (packet,) = path.send(b"attributes")
        size = (20 if family == V4 else 40) + 8 + 10
        assert (packet.id, packet.hook, packet.family) == (1, Hook[where.upper()], family)
        assert packet.hw_protocol == (0x0800 if family == V4 else 0x86DD)
        assert (len(packet.payload), packet.cap_len, packet.truncated) == (size, size, False)
        source = path.net.at("client", lambda: ADDRESS["client", family])
        raw = socket.inet_pton(family, source)
        assert packet.payload[12:16] == raw if family == V4 else packet.payload[8:24] == raw

        incoming = where in ("prerouting", "input", "forward")
        indev = net.index("router", "to-client")
        outdev = {"output": "to-router", "forward": "to-server", "postrouting": "to-server"}.get(where)
        came_in = incoming or where == "postrouting"  # for that hook since Linux 5.7
        assert packet.indev == (indev if came_in else None)
        assert packet.outdev == (net.index(path.where, outdev) if outdev else None)
        assert (packet.physindev, packet.physoutdev) == (None, None)
        assert packet.outdev_name == outdev
        assert packet.indev_name == ("to-client" if came_in else None)
        assert packet.hwaddr == (bytes.fromhex(net.mac("client", "router").replace(":", "")) if came_in else None)
        assert packet.mark == (0xABCD if where == "output" else 0)
        assert packet.priority in ((0, 5) if where == "output" else (0,))  # see test_priority
        assert packet.uid == (UID if where == "output" else None)
        assert packet.gid == (GID if where == "output" else None)
        if incoming:
            assert packet.timestamp is not None
            assert before - 1 <= packet.timestamp <= time.time() + 1
        else:
            assert packet.timestamp is None
        assert (packet.vlan, packet.l2header, packet.secctx, packet.conntrack) == (None, None, None, None)
        assert SkbInfo.GSO not in packet.skbinfo
        packet.accept()
        assert path.got() == b"attributes"


@pytest.mark.feature("uid_gid")
def test_uid_is_that_of_the_sender(net: Net) -> None:
    if UID:
        pytest.skip("an ordinary user has one identity only; test_attributes looks at that")
    with Path(net, "output", V4, uid_gid=True) as path:

        def as_other_user() -> socket.socket:
            os.setegid(4321)
            os.seteuid(1234)
            try:
                return socket.socket(V4, socket.SOCK_DGRAM)
            finally:
                os.seteuid(0)
                os.setegid(0)

        with net.at("client", as_other_user) as path.sender:
            (packet,) = path.send(b"whose")
            assert (packet.uid, packet.gid) == (1234, 4321)


@pytest.mark.feature("priority")
@pytest.mark.feature("priority set by a verdict")
def test_priority(net: Net, family: int) -> None:
    with Path(net, "output", family) as path, Queue(2, netns=net.hosts["client"]) as later:
        with rules.queue(2, hook="postrouting", protocol="udp", netns=net.hosts["client"]):
            path.sender.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 5)
            kept, changed = path.send(b"kept", b"changed")
            kept.accept()
            changed.accept(priority=0x10003)
            after = [packet.priority for packet in collect(later, 2)]
    diagnosis = {finding.what for finding in doctor.examine(net.hosts["client"])}
    if (kept.priority, after) == (0, [0, 0]):
        assert "packet.priority is always 0, and a verdict with a priority does not change it" in diagnosis
        kernel_lacks("NFQA_PRIORITY", since=(5, 18))
    assert "packet.priority" in diagnosis
    assert (kept.priority, changed.priority) == (5, 5)
    assert after == [5, 0x10003]


def mount_classes(place: str) -> bool:
    """Mount the cgroups that classify packets, for this process alone; whether the kernel has them."""
    netns.unshare(0x20000)  # CLONE_NEWNS
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"none", b"/", None, 0x44000, None) == 0, os.strerror(ctypes.get_errno())  # MS_REC, MS_PRIVATE
    for controllers in (b"net_cls", b"net_cls,net_prio"):
        if libc.mount(b"none", place.encode(), b"cgroup", 0, controllers) == 0:
            return True
        assert ctypes.get_errno() in (errno.EINVAL, errno.ENODEV, errno.ENOENT, errno.EBUSY)
    return False


@pytest.mark.feature("cgroup")
def test_cgroup_of_the_sender(net: Net, tmp_path: pathlib.Path) -> None:
    attribute: dict[str, Any] = {"what": "NFQA_CGROUP_CLASSID", "since": (6, 12)}
    if UID:
        pytest.skip("only root of the machine can make cgroups that classify packets")
    if kernel_version() < (5, 16):
        kernel_lacks(**attribute)  # not tried: there, a class turns cgroups of version 2 off for sockets, for good
    group = tmp_path / f"nfnet-{os.getpid()}"

    def child() -> None:
        if not mount_classes(str(tmp_path)):
            os._exit(77)
        group.mkdir()
        try:
            (group / "net_cls.classid").write_text(str(0x10002))
            (group / "cgroup.procs").write_text(str(os.getpid()))
            netns.enter(net.hosts["client"])
            with socket.socket(V4, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"classified", (ADDRESS["server", V4], PORT))
        finally:
            (tmp_path / "cgroup.procs").write_text(str(os.getpid()))
            group.rmdir()

    with Path(net, "output", V4) as path:
        status = in_child(child)
        if status == 77:
            kernel_lacks("cgroups that classify packets", option="CONFIG_CGROUP_NET_CLASSID")
        assert status == 0
        classified, other = *collect(path.queue, 1), *path.send(b"other")
    assert inet.get_data(classified.payload) == b"classified"
    assert other.cgroup is None
    if classified.cgroup is None:
        kernel_lacks(**attribute)
    assert classified.cgroup == 0x10002


@pytest.mark.feature("secctx: the flag")
def test_security_context(net: Net) -> None:
    """The kernel accepts the flag; packets have a security context only with a security module that labels them."""
    if error := lacking(Queue(1, secctx=True, netns=net.hosts["client"])):
        assert str(error).endswith("This kernel has no support for secctx")
        kernel_lacks("security marks", option="CONFIG_NETWORK_SECMARK")
    with Path(net, "output", V4, secctx=True) as path:
        (packet,) = path.send(b"x")
        assert packet.secctx is None or packet.secctx.isprintable()
        packet.accept()
        assert path.got() == b"x"


def test_attributes_not_asked_for_are_absent(net: Net) -> None:
    with Path(net, "output", V4) as path:
        (packet,) = path.send(b"x")
        assert (packet.uid, packet.gid, packet.timestamp) == (None, None, None)


@pytest.mark.feature("timestamps")
def test_timestamps_come_with_a_socket_that_asks_for_them(net: Net) -> None:
    def comes_to(expected: bool, **options: Any) -> bool:
        with Path(net, "input", V4, **options) as path:
            return wait_for(lambda: is_stamped(path) == expected, TIMEOUT if expected else 10)

    gc.collect()  # another test can have left such a socket
    assert comes_to(True, timestamps=True)
    # The kernel stops some time after the last such socket was closed, unless another program has one.
    if not comes_to(False):
        pytest.skip("something else on this machine makes the kernel stamp packets")
    assert comes_to(True, timestamps=True)


# --- copy modes


def test_copy_mode_none_drops(net: Net) -> None:
    with Path(net, "output", V4, copy_mode=CopyMode.NONE) as path:
        path.sender.sendto(b"x", path.destination)
        assert path.got_nothing()
        assert path.queue.fetch() == 0


def test_copy_mode_meta(net: Net, family: int) -> None:
    with Path(net, "output", family, copy_mode=CopyMode.META) as path:
        (packet,) = path.send(b"x")
        assert (packet.payload, packet.cap_len, packet.truncated) == (b"", 0, True)
        assert packet.outdev == net.index("client", "to-router")
        packet.accept()
        assert path.got() == b"x"


@pytest.mark.parametrize("copy_range", [1, 40, 100])
def test_copy_range(net: Net, copy_range: int) -> None:
    with Path(net, "output", V4, copy_range=copy_range) as path:
        (packet,) = path.send(bytes(200))
        assert (len(packet.payload), packet.cap_len, packet.truncated) == (copy_range, 228, True)
        packet.accept(payload=packet.payload)  # unchanged: the kernel keeps the whole packet
        assert path.got() == bytes(200)


def test_the_largest_packet_arrives_whole(net: Net) -> None:
    """65,535 bytes, of which the kernel copies 65,531; and a replacement of that size."""
    with Queue(1, netns=net.hosts["server"]) as queue:
        with rules.queue(1, hook="output", protocol="udp", netns=net.hosts["server"]):
            receiver = net.receiver("server")
            sender = net.open_socket("server")
            data = os.urandom(65507)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            for size in (65507, 65503):
                sender.sendto(data[:size], ("127.0.0.1", PORT))
            big, fitting = collect(queue, 2)
            assert (len(big.payload), big.cap_len, big.truncated) == (65531, 65535, True)
            assert big.payload[28:] == data[:65503]
            big.accept()
            assert receiver.recv(70000) == data
            assert (len(fitting.payload), fitting.truncated) == (65531, False)
            new = bytes(reversed(data[:65503]))
            fitting.accept(payload=inet.replace_data(fitting.payload, new))
            assert receiver.recv(70000) == new


def send_in_bulk(net: Net, queue: Queue, handler: Any) -> None:
    """100,000 bytes by TCP from the client to port 7001 of the server, through a queue."""
    listener = net.open_socket("server", kind=socket.SOCK_STREAM)
    listener.bind(("0.0.0.0", 7001))
    listener.listen()
    client = net.open_socket("client", kind=socket.SOCK_STREAM)
    client.setblocking(False)
    client.connect_ex((ADDRESS["server", V4], 7001))

    def pump(condition: Any) -> bool:
        def step() -> Any:
            queue.process(handler)
            return condition()

        return wait_for(step)

    assert pump(lambda: readable(listener, 0))
    server = listener.accept()[0]
    sent = client.send(bytes(100_000))
    got = bytearray()

    def read() -> bool:
        if readable(server, 0):
            got.extend(server.recv(100_000))
        return len(got) >= sent

    with server:
        assert pump(read)


@pytest.mark.feature("gso")
def test_gso_packets_come_whole_when_asked_for(net: Net) -> None:
    biggest, infos = 0, SkbInfo(0)

    def handler(packet: Packet) -> None:
        nonlocal biggest, infos
        biggest = max(biggest, packet.cap_len)
        infos |= packet.skbinfo
        packet.accept(payload=packet.payload)

    here = net.hosts["client"]
    with (
        Queue(1, gso=True, netns=here) as queue,
        rules.queue(1, hook="output", protocol="tcp", destination_port=7001, netns=here),
    ):
        send_in_bulk(net, queue, handler)
    assert biggest > 1500
    assert infos & SkbInfo.GSO
    assert infos & SkbInfo.CSUM_NOT_READY


# --- limits


@pytest.mark.parametrize("fail_open", [False, featured("fail_open", True)])
def test_queue_length(net: Net, fail_open: bool) -> None:
    with Path(net, "output", V4, max_len=5, fail_open=fail_open) as path:
        for number in range(20):
            path.sender.sendto(bytes([number]), path.destination)
        packets = collect(path.queue, 5)
        passed = [path.got()[0] for _ in range(15)] if fail_open else []
        assert passed == (list(range(5, 20)) if fail_open else [])
        assert path.got_nothing()
        row = path.row()
        assert row is None or (row[2], row[5], row[7]) == (5, 0 if fail_open else 15, 5)
        for packet in packets:
            packet.accept()
        assert [path.got()[0] for _ in range(5)] == [0, 1, 2, 3, 4]
        assert path.queue.counters.lost == 0


def fill(path: Path, count: int) -> None:
    """Send more packets than fit: each socket can have about 200 in the queue."""
    for start in range(0, count, 100):
        with path.net.at(PATHS[path.hook][0], lambda: socket.socket(V4, socket.SOCK_DGRAM)) as sock:
            for number in range(start, min(start + 100, count)):
                sock.sendto(struct.pack("!I", number), path.destination)


@pytest.mark.parametrize("policy", ["count", "ignore"])
def test_overrun_is_counted(net: Net, policy: Any, caplog: pytest.LogCaptureFixture) -> None:
    with Path(net, "output", V4, rcvbuf=20000, on_overrun=policy) as path:
        fill(path, 500)
        got = collect(path.queue, 1)
        fill(path, 10)
        while got[-1].id < 510:
            got += collect(path.queue, 1)
        counters = path.queue.counters
        assert counters.received == len(got)
        assert counters.received + counters.lost == 510
        assert counters.lost > 400
        assert counters.overruns >= 1
        row = path.row()
        assert row is None or (row[6], row[7]) == (counters.lost, 510)
        fill(path, 200)  # the last ones are lost, and leave no gap
        row, size = path.row(), path.queue.rcvbuf
    lost = path.queue.counters.lost
    assert lost == (counters.lost if row is None else row[6])
    assert lost > counters.lost or row is None
    told = [int(found[1]) for found in re.finditer(r"(\d+) packets were lost", caplog.text)]
    assert sum(told) == (lost if policy == "count" else 0)
    if policy == "count":
        cause = "" if row is None else f"the kernel dropped {lost} because "
        assert caplog.messages[-1].endswith(f"; {cause}the receive buffer of {size} bytes was full")


def test_a_full_queue_is_not_called_a_full_receive_buffer(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    """Newer kernels hold 65,536 packets, even if max_len is larger; packets beyond that also get ids."""
    with Path(net, "output", V4, max_len=100_000, rcvbuf=400_000, copy_mode=CopyMode.META) as path:
        held: list[Packet] = []
        while len(held) < 66_000:
            fill(path, 100)
            before = len(held)
            while path.queue.process(held.append):
                pass
            if len(held) == before:  # they were dropped; the next one shows how many
                break
        held[0].drop()
        path.queue.flush()
        fill(path, 1)
        collect(path.queue, 1)
        lost, row = path.queue.counters.lost, path.row()
        if len(held) >= 66_000:
            assert (lost, caplog.messages) == (0, [])
            kernel_lacks("a limit of its own to how many packets a queue holds")
        assert 0 < lost < 200
        assert row is None or (row[5], row[6]) == (lost, 0)
    if row is None:
        assert ", or the queue, which holds 65536 packets" in caplog.text
    else:
        words = f"the kernel dropped {lost} because the queue was full"
        assert caplog.messages == [f"queue 1: {lost} packets were lost, {lost} so far; {words}"]


def test_overrun_can_be_raised(net: Net) -> None:
    with Path(net, "output", V4, rcvbuf=20000, on_overrun="raise") as path:
        fill(path, 500)
        got: list[Packet] = []
        with pytest.raises(nfnet.OverrunError, match="ENOBUFS") as caught:
            path.queue.run(got.append)
        assert isinstance(caught.value, OSError)
        while path.queue.process(got.append):
            pass
        fill(path, 1)
        got += collect(path.queue, 1)
        counters = path.queue.counters
        assert counters.received + counters.lost == 501
        assert counters.overruns == 1


@pytest.mark.feature("fail_open")
def test_overrun_lets_packets_through_when_open(net: Net) -> None:
    with Path(net, "output", V4, rcvbuf=20000, fail_open=True) as path:
        fill(path, 100)
        path.queue.process(lambda packet: packet.drop())
        fill(path, 1)
        collect(path.queue, 1)[0].drop()
        lost = path.queue.counters.lost
        assert lost > 0
        for _ in range(lost):
            path.got()
        assert path.got_nothing()


# --- several


def test_two_queues_in_one_process(net: Net) -> None:
    here = net.hosts["client"]
    with Queue(1, netns=here) as first, Queue(65535, netns=here) as second:
        with (
            rules.queue(1, hook="output", protocol="udp", destination_port=7001, netns=here),
            rules.queue(65535, hook="output", protocol="udp", destination_port=7002, netns=here),
        ):
            one, two = net.receiver(port=7001), net.receiver(port=7002)
            sender = net.open_socket("client")
            for port in (7001, 7002, 7002):
                sender.sendto(str(port).encode(), (ADDRESS["server", V4], port))
            for packet in collect(first, 1):
                packet.accept()
            for packet in collect(second, 2):
                packet.accept()
            assert one.recv(100) == b"7001"
            assert [two.recv(100), two.recv(100)] == [b"7002", b"7002"]


def test_a_queue_that_somebody_has(net: Net) -> None:
    with Queue(7, netns=net.hosts["client"]):
        other = Queue(7, netns=net.hosts["client"])
        with pytest.raises(nfnet.BusyError) as caught:
            other.open()
        if net.proc("client", "nfnetlink_queue") is None:  # the process that has it is unknown
            assert str(caught.value) == "binding queue 7: another socket has it [EPERM]"
        else:
            assert str(caught.value).startswith("binding queue 7: another socket of this process has it [EPERM]. Close")
        assert isinstance(caught.value, PermissionError)
        assert caught.value.errno == errno.EPERM
    with other:
        assert other.counters.received == 0


def test_flags_that_the_kernel_lacks(net: Net) -> None:
    refusal = lacking(Queue(7, netns=net.hosts["client"], conntrack=True, uid_gid=True))
    if refusal is None:
        pytest.skip("this kernel can do it all")
    assert not net.proc("client", "nfnetlink_queue")  # nothing is left of the attempt
    assert refusal.errno == errno.EOPNOTSUPP
    assert str(refusal).endswith("This kernel has no support for conntrack")


def test_ids_begin_again_and_old_packets_are_refused(net: Net) -> None:
    with Path(net, "output", V4) as path:
        old, other = path.send(b"old", b"other")
        path.queue.close()
        path.queue.open()
        (new,) = path.send(b"new")
        assert (old.id, new.id) == (1, 1)
        with pytest.raises(nfnet.ClosedError):
            old.accept()
        with pytest.raises(nfnet.ClosedError):
            other.drop()
        assert path.got_nothing()
        new.accept()
        assert path.got() == b"new"


@pytest.mark.feature('undecided="accept" on closing')
def test_closing_an_accepting_queue_lets_everything_through(net: Net) -> None:
    with Path(net, "output", V4, undecided="accept") as path:
        for number in range(5):
            path.sender.sendto(bytes([number]), path.destination)
        for _ in path.queue:
            break
        path.queue.close()
        assert [path.got()[0] for _ in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("policy", ["pending", "drop"])
def test_closing_drops_what_waits_before_it_unbinds(net: Net, policy: Any, tmp_path: pathlib.Path) -> None:
    """Unbinding drops it, too, but later, and some kernels warn if the rule has been removed by then."""
    waiting: list[int] = []

    class Looking(Queue):
        def _unbind_request(self) -> bytes:
            status = stats.find_queue(self.num, self._netns)
            assert status is not None
            waiting.append(status.waiting)
            return super()._unbind_request()

    file = tmp_path / "recording.pcapng"
    with (
        Path(net, "output", V4) as path,
        Looking(2, netns=net.hosts["client"], undecided=policy, record=file) as queue,
        rules.queue(2, hook="output", protocol="udp", destination_port=7002, netns=net.hosts["client"]),
    ):
        for number in range(3):
            path.sender.sendto(bytes([number]), (path.destination[0], 7002))
        with contextlib.closing(iter(queue)) as iteration:
            kept = next(iteration)
        queue.close()
        assert waiting == [0]
        assert kept.decided == (None if policy == "pending" else Verdict.DROP)
        assert queue.counters.dropped == (0 if policy == "pending" else 3)
    replay = nfnet.replay(file)
    with Queue(2, transport=replay) as again:
        again.run(lambda packet: None)
    assert sorted(replay.recorded) == ([] if policy == "pending" else [1, 2, 3])


def test_the_model_of_the_kernel_takes_batches_as_the_kernel_does(net: Net) -> None:
    """Ids anywhere around the circle of 2^32: the same packets go on, and the same requests are refused."""
    seed = random.randrange(1 << 30)
    choose = random.Random(seed)
    distances = [0, 1, 3, 0x7FFFFFFE, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xC0000000, 0xFFFFFFFE, 0xFFFFFFFF]

    def answers(transport: Transport) -> list[int]:
        datagrams: list[bytes] = []
        transport.receive(datagrams, 64)
        return [netlink.parse_answer(datagram).errno for datagram in datagrams if netlink.is_answer(datagram)]

    with Path(net, "output", V4) as path:
        transport, model = path.queue._bound().transport, FakeKernel()
        for _ in range(30):
            ids = [packet.id for packet in path.send(*(bytes([number]) for number in range(6)))]
            assert model.feed(6) == ids
            model.receive([], 64)
            model.judged.clear()
            while model.queued:
                packet_id = (choose.choice(ids) + choose.choice(distances)) & 0xFFFFFFFF
                message = nfqnl.verdict(1, packet_id, choose.choice([0, 1]), batch=choose.random() < 0.7)
                transport.send(message)
                model.send(message)
                assert answers(transport) == answers(model), (seed, packet_id, ids, list(model.queued))
            accepted = [packet_id for packet_id, word, _ in model.judged if word == Verdict.ACCEPT]
            assert [path.got()[0] for _ in accepted] == [ids.index(packet_id) for packet_id in accepted], seed
        assert path.got_nothing()


def test_packets_flushed_by_a_rule_change(net: Net) -> None:
    """Removing any base chain makes the kernel drop all queued packets of the namespace."""
    with Path(net, "output", V4) as path:
        packets = path.send(b"one", b"two")
        with rules.queue(99, hook="input", netns=net.hosts["client"]):
            pass
        for packet in packets:
            packet.accept(mark=packet.id)
        (after,) = path.send(b"after")
        after.accept()
        assert path.got() == b"after"
        assert path.got_nothing()
        assert path.queue.counters.refused == {errno.ENOENT: 2}


def test_device_taken_down_while_packets_wait(net: Net) -> None:
    from pyroute2 import IPRoute

    def down() -> None:
        with IPRoute() as ip:
            ip.link("set", ifname="to-server", state="down")

    with Path(net, "forward", V4) as path:
        (packet,) = path.send(b"x")
        net.at("router", down)
        packet.accept()
        path.queue.fetch()
        assert path.queue.counters.refused == {errno.ENOENT: 1}
