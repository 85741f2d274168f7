"""Threads, signals, forks, privileges and other processes, on the real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import pathlib
import signal
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

import nfnet
from nfnet import AsyncQueue, Log, NetlinkSocket, Queue, netns, rules, testing
from nfnet.protocol import nfqnl
from nfnet.protocol.nfnetlink import NETLINK_NETFILTER
from nfnet.testing import error_message, packet_message

from .conftest import ADDRESS, TIMEOUT, Net, collect, in_child, readable
from .test_queue import PORT, V4, Path


def drop_capabilities() -> None:
    """Give up all capabilities of this process, for good."""
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capset(header, bytes(24)) == 0, os.strerror(ctypes.get_errno())


def test_without_privilege(net: Net) -> None:
    def child() -> None:
        netns.enter(net.hosts["client"])
        drop_capabilities()
        with pytest.raises(nfnet.NotPermittedError, match="binding queue 1: .*CAP_NET_ADMIN") as caught:
            Queue(1).open()
        assert caught.value.errno == errno.EPERM
        assert isinstance(caught.value, PermissionError)
        assert not isinstance(caught.value, nfnet.BusyError)
        with pytest.raises(nfnet.NotPermittedError, match="queueing packets to queue 1"), rules.queue(1, hook="output"):
            pass

    assert in_child(child) == 0


def test_privilege_dropped_after_binding(net: Net) -> None:
    """The kernel requires it for every verdict."""

    def child() -> None:
        path = Path(net, "output", V4)
        with path._rule, path.queue as queue:
            (packet,) = path.send(b"x")
            drop_capabilities()
            packet.accept()
            with pytest.raises(nfnet.NotPermittedError, match="deciding packets of queue 1"):
                queue.fetch()
            assert queue.counters.refused == {errno.EPERM: 1}
            os._exit(0)  # the rule cannot be removed any more

    assert in_child(child) == 0


def test_stop_from_another_thread_while_waiting(net: Net) -> None:
    with Queue(1, netns=net.hosts["client"]) as queue:
        timer = threading.Timer(0.05, queue.stop)
        timer.start()
        queue.run(print)
        timer.join()
        timer = threading.Timer(0.05, queue.stop)
        timer.start()
        assert list(queue) == []
        timer.join()


def test_stop_from_a_signal_handler_while_waiting(net: Net) -> None:
    with Queue(1, netns=net.hosts["client"]) as queue:
        stopped: list[int] = []
        before = signal.signal(signal.SIGALRM, lambda number, _: (stopped.append(number), queue.stop()))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            queue.run(print)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert stopped == [signal.SIGALRM]


def test_keyboard_interrupt_while_waiting(net: Net) -> None:
    def run() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        queue.run(print)

    with Queue(1, netns=net.hosts["client"]) as queue:
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                run()
        finally:
            signal.signal(signal.SIGALRM, before)


def test_retained_packets_are_decided_by_another_thread(net: Net) -> None:
    with Path(net, "output", V4) as path:
        packets = path.send(*(bytes([number]) for number in range(50)))
        runner = threading.Thread(target=path.queue.run, args=(lambda packet: packet.accept(),))
        runner.start()
        for packet in packets[::2]:
            packet.drop()
        for packet in packets[1::2]:
            packet.accept()
        path.sender.sendto(b"more", path.destination)
        assert [path.got() for _ in range(25)] == [bytes([number]) for number in range(1, 50, 2)]
        assert path.got() == b"more"
        path.queue.stop()
        runner.join(TIMEOUT)
        assert not runner.is_alive()
        counters = path.queue.counters
        assert (counters.accepted, counters.dropped, counters.pending, counters.refused) == (26, 25, 0, {})


def test_a_forked_child_does_not_keep_the_queue(net: Net) -> None:
    queue = Queue(1, netns=net.hosts["client"])
    queue.open()
    parent_end, child_end = socket.socketpair()
    pid = os.fork()
    if not pid:
        parent_end.close()
        child_end.recv(1)  # until the parent is done
        os._exit(0)
    with parent_end, child_end:
        queue.close()
        with Queue(1, netns=net.hosts["client"]):
            pass
        parent_end.send(b"x")
        assert os.waitpid(pid, 0)[1] == 0


def test_a_forked_child_leaves_the_queue_alone(net: Net) -> None:
    with Path(net, "output", V4) as path:
        (packet,) = path.send(b"x")

        def child() -> None:
            with pytest.raises(nfnet.ClosedError):
                packet.accept()
            path.queue.close()

        assert in_child(child) == 0
        packet.accept()
        assert path.got() == b"x"
        assert path.queue.counters.refused == {}


@contextlib.contextmanager
def stranger(net: Net) -> Iterator[socket.socket]:
    """A netlink socket of a privileged process, which can send to other sockets."""
    with net.at("client", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)) as other:
        yield other


def is_refused(other: socket.socket, datagram: bytes, port_id: int) -> bool:
    with pytest.raises(OSError, match="refused") as caught:
        other.sendto(datagram, (port_id, 0))
    return caught.value.errno == errno.ECONNREFUSED


FORGED = packet_message(1, testing.udp(b"forged"))


@pytest.mark.parametrize("kind", [Queue, Log])
def test_datagrams_of_others_are_refused(net: Net, kind: type[Queue | Log]) -> None:
    """A privileged process sends a packet message that is not the kernel's."""
    with kind(1, netns=net.hosts["client"]) as reader, stranger(net) as other:
        assert is_refused(other, FORGED, reader._bound().transport.port_id)  # type: ignore[attr-defined]
        assert not readable(reader, 0)  # type: ignore[arg-type]


def test_datagrams_of_others_are_refused_under_asyncio(net: Net) -> None:
    async def main() -> None:
        async with AsyncQueue(1, netns=net.hosts["client"]) as queue:
            with stranger(net) as other:
                assert is_refused(other, FORGED, queue._reader._bound().transport.port_id)  # type: ignore[attr-defined]

    asyncio.run(main())


def test_nobody_else_answers_a_request(net: Net) -> None:
    transport = net.at("client", NetlinkSocket)
    with stranger(net) as other:

        def build(seq: int) -> bytes:
            request = nfqnl.config(2, max_len=1, seq=seq, ack=True)
            assert is_refused(other, error_message(0, request), transport.port_id)
            return request

        with pytest.raises(nfnet.KernelError, match="ENODEV"):
            transport.request(build, "asking about a queue that is not there")
    transport.close()


def test_a_given_socket_hears_the_kernel_alone(net: Net) -> None:
    """Also if it had joined a multicast group, to which other processes can send."""
    own = net.at("client", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER))
    with own, stranger(net) as other:
        own.bind((0, 1))
        other.sendto(FORGED, own.getsockname())  # before it is ours: is thrown away
        transport = NetlinkSocket(fd=own.fileno())
        assert is_refused(other, FORGED, transport.port_id)
        with contextlib.suppress(ConnectionRefusedError):  # no member is left
            other.sendto(FORGED, (0, 1))
        received: list[bytes] = []
        transport.receive(received, 10)
        assert received == []
        transport.close()


def test_port_ids_of_several_sockets_differ(net: Net) -> None:
    def make() -> tuple[NetlinkSocket, NetlinkSocket]:
        return NetlinkSocket(), NetlinkSocket(rcvbuf=50000)

    first, second = net.at("client", make)
    assert first.port_id != second.port_id
    assert second.rcvbuf == 50000
    assert first.rcvbuf > second.rcvbuf
    first.close()
    second.close()
    first.close()


def test_requests_keep_packets_that_arrive_meanwhile(net: Net) -> None:
    """An acknowledgement arrives after the packets that were delivered before it."""
    with Path(net, "output", V4) as path:
        for number in range(20):
            path.sender.sendto(bytes([number]), path.destination)
        assert readable(path.queue, TIMEOUT)  # type: ignore[arg-type]
        transport = path.queue._bound().transport
        transport.request(lambda seq: nfqnl.config(1, max_len=100, seq=seq, ack=True), "changing the length")
        with pytest.raises(nfnet.KernelError, match=r"changing the length: .*\[ENODEV\]") as caught:
            transport.request(lambda seq: nfqnl.config(2, max_len=1, seq=seq, ack=True), "changing the length")
        assert caught.value.errno == errno.ENODEV
        packets = collect(path.queue, 20)
        assert [packet.id for packet in packets] == list(range(1, 21))
        for packet in packets:
            packet.accept()
        assert [path.got()[0] for _ in packets] == list(range(20))


def test_the_kernels_own_words_are_in_the_error(net: Net) -> None:
    transport = net.at("client", NetlinkSocket)
    try:
        transport.request(lambda seq: nfqnl.config(1, command=nfqnl.Command.BIND, seq=seq, ack=True), "binding")

        def short(seq: int) -> bytes:
            whole = bytearray(nfqnl.config(1, max_len=5, seq=seq, ack=True))
            whole[20:22] = struct.pack("=H", 6)  # an attribute of two bytes where four are wanted
            return bytes(whole)

        with pytest.raises(nfnet.KernelError, match="Attribute failed policy validation") as caught:
            transport.request(short, "testing")
        assert caught.value.errno == errno.ERANGE
    finally:
        transport.close()


def test_an_answer_that_never_comes(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfnet._io.netlink_socket._ACK_TIMEOUT", 0.05)
    transport = net.at("client", NetlinkSocket)
    try:
        with pytest.raises(nfnet.AckTimeoutError, match="testing: .*ETIMEDOUT") as caught:
            transport.request(lambda seq: nfqnl.config(1, command=nfqnl.Command.PF_BIND, seq=seq), "testing")
        assert isinstance(caught.value, TimeoutError)
    finally:
        transport.close()


def test_namespaces_that_cannot_be_entered() -> None:
    with pytest.raises(nfnet.KernelError, match=r"entering network namespace /run/netns/no-such-name: .*\[ENOENT\]"):
        Queue(1, netns="no-such-name").open()
    with pytest.raises(nfnet.KernelError, match=r"file descriptor 2147483647 .*\[EBADF\]"):
        Queue(1, netns=0x7FFFFFFF).open()


def test_the_calling_thread_stays_where_it_is(net: Net) -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    with Queue(1, netns=net.hosts["client"]), rules.queue(1, hook="output", netns=net.hosts["client"]):
        assert os.readlink("/proc/thread-self/ns/net") == before


def test_namespaces_of_processes(net: Net) -> None:
    parent_end, child_end = socket.socketpair()
    pid = os.fork()
    if not pid:
        netns.enter(net.hosts["client"])
        child_end.send(b"x")
        child_end.recv(1)
        os._exit(0)
    with parent_end, child_end:
        parent_end.recv(1)
        with (
            Queue(1, netns=f"/proc/{pid}/ns/net") as queue,
            rules.queue(
                1, hook="output", netns=pathlib.Path(f"/proc/{pid}/ns/net"), destination_port=PORT, protocol="udp"
            ),
        ):
            net.open_socket("client").sendto(b"x", (ADDRESS["server", V4], PORT))
            packet = collect(queue, 1)[0]
            assert packet.udp is not None
            assert packet.udp.data == b"x"
            packet.drop()
        parent_end.send(b"x")
        assert os.waitpid(pid, 0)[1] == 0
