"""Faults on the real kernel: each row of docs/faults.md that no other file tests."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import queue as queues
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import pytest

import nfnet
from nfnet import AlreadyDecidedError, ClosedError, Log, Packet, Queue, SkbInfo, inet, netns, rules

from ..interrupting import Interrupt
from ..test_docs import ROOT
from ..test_interrupts import WAYS, cpython
from .conftest import ADDRESS, TIMEOUT, Net, cannot_run, collect, readable, wait_for
from .test_queue import PATHS, PORT, V4, V6, Path

Way = Callable[[Queue, Any], None]


def numbered(count: int) -> list[bytes]:
    return [number.to_bytes(4, "big") for number in range(count)]


def number_in(packet: Packet) -> int:
    return int.from_bytes(packet.payload[-4:], "big")


def arrived(path: Path, until: bytes) -> list[bytes]:
    """Return the data that arrive before ``until``, which was sent last."""
    got = []
    while (data := path.got()) != until:
        got.append(data)
    return got


# --- the handler, and what is raised in it


def fails_on_odd_ones(packet: Packet) -> None:
    if number_in(packet) % 2:
        raise ValueError("odd")
    packet.accept()


@pytest.mark.parametrize("policy", ["accept", "drop"])
def test_a_failing_handler_with_a_policy(net: Net, policy: Any, caplog: pytest.LogCaptureFixture) -> None:
    with Path(net, "forward", V4, on_error=policy) as path:
        for data in (*numbered(6), b"last"):
            path.sender.sendto(data, path.destination)
        handled = 0
        while handled < 7:
            readable(path.queue, TIMEOUT)  # type: ignore[arg-type]
            handled += path.queue.process(lambda p: p.accept() if p.payload.endswith(b"last") else fails_on_odd_ones(p))
        everything, even = numbered(6), numbered(6)[::2]
        assert arrived(path, b"last") == (everything if policy == "accept" else even)
        counters = path.queue.counters
        assert (counters.accepted, counters.dropped, counters.pending) == (
            (7, 0, 0) if policy == "accept" else (4, 3, 0)
        )
    assert caplog.text.count("the handler failed on packet") == 3


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_comes_out_of_run_loses_nothing(net: Net, kind: type[BaseException]) -> None:
    """Packets before the failed one are decided, the failed one is pending, and the next `run` continues after it."""

    def handler(packet: Packet) -> None:
        if number_in(packet) == 2:
            raise kind
        packet.accept()
        if number_in(packet) == 4:
            path.queue.stop()

    with Path(net, "forward", V4) as path:
        for data in numbered(5):
            path.sender.sendto(data, path.destination)
        with pytest.raises(kind):
            path.queue.run(handler)
        assert [path.got() for _ in range(2)] == numbered(2)
        (failed,) = path.queue.pending
        assert number_in(failed) == 2
        path.queue.run(handler)
        failed.accept()
        assert [path.got() for _ in range(3)] == [numbered(5)[n] for n in (3, 4, 2)]
        assert path.queue.counters.refused == {}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@cpython
@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
@pytest.mark.parametrize("way", WAYS)
def test_exception_of_a_signal_handler_at_any_moment(net: Net, way: Way, error: type[BaseException]) -> None:
    """Each packet still gets exactly one verdict: it arrives once, unless it was dropped.

    TimeoutError is an OSError, and must not be taken for one of the system call that the signal interrupted.
    """
    count = 6
    kept: list[Packet] = []

    def decide(packet: Packet) -> None:
        with contextlib.suppress(AlreadyDecidedError):
            if number_in(packet) % 3 == 0:
                packet.drop()
            elif number_in(packet) % 3 == 1:
                packet.accept(mark=1)
            else:
                packet.accept()

    def handler(packet: Packet) -> None:
        if kept:
            decide(kept.pop())
        if number_in(packet) == 3:
            kept.append(packet)
        else:
            decide(packet)
        if number_in(packet) == count - 1:
            path.queue.stop()

    moment, interrupted, beyond = 1, 0, False
    with Path(net, "forward", V4) as path:
        while not beyond:
            for data in numbered(count):
                path.sender.sendto(data, path.destination)
            interrupt = Interrupt(moment, error)
            interrupted += interrupt.arrives(
                lambda: way(path.queue, handler) if way is not WAYS[2] else drain(path.queue, handler, count)
            )
            where, beyond = f"instruction {moment}", interrupt.seen < moment
            moment += random.randint(1, 3)
            lost = False
            try:
                path.queue.process(handler)
            except nfnet.BusyReadingError:  # an iteration was interrupted as it ended; see `Reader._portions`
                lost = True
                path.queue.close()
                path.queue.open()
            path.queue.process(handler)
            for packet in path.queue.pending:
                decide(packet)
            kept.clear()
            path.sender.sendto(b"last", path.destination)
            path.queue.process(lambda packet: packet.accept())
            got = sorted(arrived(path, b"last"))
            assert lost or got == [data for n, data in enumerate(numbered(count)) if n % 3], where
    assert interrupted > 10


def drain(queue: Queue, handler: Callable[[Packet], None], count: int) -> None:
    while queue.counters.received - queue.counters.pending < count:
        if not queue.process(handler):
            return


ALARMS = [
    TimeoutError("so many seconds have passed"),  # the usual way to read for so long
    FileNotFoundError(errno.ENOENT, "No such file", "settings"),  # the handler reads a file again
    PermissionError(errno.EACCES, "Permission denied", "settings"),
    BlockingIOError(errno.EAGAIN, "the pipe is full"),
    BlockingIOError("no errno"),
]


@pytest.mark.parametrize("alarm", ALARMS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", [Queue, Log])
@pytest.mark.parametrize("way", ["run", "iteration", "with fileno"])
def test_os_error_of_an_alarm_while_waiting(net: Net, kind: type[Queue] | type[Log], way: str, alarm: OSError) -> None:
    """It is not taken for an error of the system call, not even for the one that means that nothing has arrived."""

    alarms = 0

    def raise_alarm(*_: object) -> None:
        nonlocal alarms
        alarms += 1
        raise alarm if alarms == 1 else AssertionError("the first one did not come out")

    def read(reader: Any) -> None:
        if way == "run":
            reader.run(str)
        elif way == "iteration":
            list(reader)
        else:
            reader.fileno()  # a loop then waits in another way
            reader.run(str)

    before = signal.signal(signal.SIGALRM, raise_alarm)
    try:
        with kind(7, netns=net.hosts["client"]) as reader:
            for _ in range(3):
                alarms = 0
                signal.setitimer(signal.ITIMER_REAL, 0.05, TIMEOUT)
                with pytest.raises(type(alarm)) as caught:
                    read(reader)
                assert caught.value is alarm
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- others


OWNER = """
import nfnet, sys
with nfnet.Queue(1):
    print("bound", flush=True)
    sys.stdin.read()
"""


def test_a_queue_taken_by_another_process_and_freed(net: Net) -> None:
    command = [sys.executable, "-c", OWNER]
    here = net.hosts["client"]
    with net.at(
        "client", lambda: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "bound\n"
        queue = Queue(1, netns=here)
        with pytest.raises(nfnet.BusyError, match="binding queue 1: another socket has it"):
            queue.open()
        if net.proc("client", "nfnetlink_queue") is not None:
            with pytest.raises(nfnet.BusyError, match=rf"another socket has it: \S+ \(process {owner.pid}\)"):
                queue.open()
        owner.kill()
        owner.wait(TIMEOUT)

    def opened() -> bool:  # the kernel tidies up on its own time
        try:
            queue.open()
        except nfnet.BusyError:
            return False
        return True

    assert wait_for(opened)
    with rules.queue(1, hook="output", protocol="udp", netns=here):
        net.open_socket("client").sendto(b"x", (ADDRESS["server", V4], PORT))
        collect(queue, 1)[0].drop()
    queue.close()


def test_the_program_is_killed_with_packets_waiting(net: Net) -> None:
    """Those are dropped; the rule lets the next ones pass (`bypass`)."""
    with rules.queue(1, hook="output", protocol="udp", destination_port=PORT, netns=net.hosts["client"]):
        command = [sys.executable, "-c", OWNER]
        receiver, sender = net.receiver(), net.open_socket("client")
        destination = (ADDRESS["server", V4], PORT)
        with net.at(
            "client", lambda: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ) as owner:
            assert owner.stdout is not None
            owner.stdout.readline()
            sender.sendto(b"waits", destination)
            assert not readable(receiver, 0.05)
            owner.kill()
            owner.wait(TIMEOUT)
        assert wait_for(lambda: not (net.proc("client", "nfnetlink_queue") or ()))
        sender.sendto(b"next", destination)
        assert receiver.recv(100) == b"next"
        assert not readable(receiver, 0.05)


def test_a_device_is_deleted_while_packets_wait(net: Net) -> None:
    from pyroute2 import IPRoute

    def delete() -> None:
        with IPRoute() as ip:
            ip.link("del", ifname="to-server")

    with Path(net, "forward", V4) as path:
        first, second = path.send(b"one", b"two")
        assert second.outdev_name == "to-server"
        net.at("router", delete)
        first.accept()
        second.accept(payload=second.payload + b"more")
        path.queue.fetch()
        assert path.queue.counters.refused == {errno.ENOENT: 2}
        assert path.queue.counters.pending == 0
        assert path.send() == []  # and continues to read


def test_the_senders_namespace_is_deleted_while_packets_wait(net: Net) -> None:
    """The kernel removes its end of the link, and so the router's, on which the packets arrived."""
    client = netns.create()

    def connect() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as ip:
            ip.link("add", ifname="wire", kind="veth", peer={"ifname": "wire", "net_ns_fd": client.fileno()})
            index = ip.link_lookup(ifname="wire")[0]
            ip.link("set", index=index, state="up", address="02:00:00:00:09:01")
            ip.addr("add", index=index, address="10.82.0.1", prefixlen=24)
            ip.neigh("replace", dst="10.82.0.2", lladdr="02:00:00:00:09:02", ifindex=index, state=0x80)

    def configure() -> socket.socket:
        from pyroute2 import IPRoute

        with IPRoute() as ip:
            index = ip.link_lookup(ifname="wire")[0]
            ip.link("set", index=index, state="up", address="02:00:00:00:09:02")
            ip.addr("add", index=index, address="10.82.0.2", prefixlen=24)
            ip.neigh("replace", dst="10.82.0.1", lladdr="02:00:00:00:09:01", ifindex=index, state=0x80)
        return socket.socket(V4, socket.SOCK_DGRAM)

    net.at("router", connect)
    sender = netns.call_in(client, configure)
    with Queue(1, netns=net.hosts["router"]) as queue, rules.queue(1, hook="input", netns=net.hosts["router"]):
        sender.sendto(b"x", ("10.82.0.1", PORT))
        (packet,) = collect(queue, 1)
        assert packet.indev_name == "wire"
        sender.close()
        client.close()
        assert wait_for(lambda: "wire" not in net.at("router", names))
        packet.accept()
        queue.fetch()
        assert queue.counters.refused == {errno.ENOENT: 1}
        assert packet.payload.endswith(b"x")


def names() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def test_a_queue_keeps_its_namespace(privileges: str | None, net: Net) -> None:
    """`ip netns delete` removes the name; a namespace continues to exist while it is open."""
    place = netns.create()
    queue = Queue(1, netns=place)
    rule = rules.queue(1, hook="output", protocol="udp", netns=place)

    def configure() -> tuple[socket.socket, socket.socket]:
        from pyroute2 import IPRoute

        with IPRoute() as ip:
            ip.link("set", ifname="lo", state="up")
        return socket.socket(V4, socket.SOCK_DGRAM), socket.socket(V4, socket.SOCK_DGRAM)

    sender, receiver = netns.call_in(place, configure)
    with sender, receiver, queue:
        receiver.bind(("127.0.0.1", PORT))
        rule.install()
        place.close()
        sender.sendto(b"x", ("127.0.0.1", PORT))
        collect(queue, 1)[0].accept()
        assert receiver.recv(100) == b"x"
        rule.remove()


# --- processes and threads


def test_a_program_started_without_close_on_exec_does_not_keep_the_queue(net: Net) -> None:
    with Path(net, "output", V4) as path:
        command = [sys.executable, "-c", "print('up', flush=True); input()"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False) as child:
            assert child.stdout is not None
            child.stdout.readline()
            (packet,) = path.send(b"x")
            packet.accept()
            assert path.got() == b"x"
            path.queue.close()
            with Queue(1, netns=net.hosts["client"]):
                pass
            child.kill()


BURSTS = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[1], int(sys.argv[2])))
for line in sys.stdin:
    for _ in range(int(line)):
        sock.send(b"x")
    print("sent", flush=True)
"""


@pytest.mark.parametrize("hook", ["output", "forward", "input"])
def test_closing_under_load_loses_nothing(net: Net, hook: str) -> None:
    """Packets that arrive while a queue with undecided="accept" closes are accepted; another process sends bursts."""

    def overflows() -> int:  # of the receiving socket, which are not the queue's fault
        with open("/proc/thread-self/net/snmp") as file:
            names, values = (line.split() for line in file if line.startswith("Udp:"))
        return int(values[names.index("RcvbufErrors")])

    def backlogs() -> int:
        """Packets that did not fit into the backlog of a processor, machine-wide: bursts on a slow machine."""
        with open("/proc/net/softnet_stat") as file:
            return sum(int(line.split()[1], 16) for line in file)

    def take(packet: Packet) -> None:
        if packet.id % 3:
            packet.accept()

    _, _, receiver = PATHS[hook]
    before = backlogs()
    with Path(net, hook, V4, undecided="accept", max_len=10_000) as path:
        assert path.queue.rcvbuf is not None
        burst = min(2000, path.queue.rcvbuf // 1024)  # all of it fits into the receive buffer
        path.receiver.setblocking(False)
        command = [sys.executable, "-c", BURSTS, path.destination[0], str(PORT)]
        with net.at(
            "client", lambda: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ) as sender:
            received = 0

            def all_arrived(sent: int) -> bool:
                nonlocal received
                with contextlib.suppress(BlockingIOError):
                    while path.receiver.recv(16):
                        received += 1
                missing = sent - received - net.at(receiver, overflows)
                return 0 <= missing <= backlogs() - before

            assert sender.stdin is not None
            assert sender.stdout is not None
            for closing in range(100):
                sender.stdin.write(f"{burst}\n")
                sender.stdin.flush()
                until = time.monotonic() + random.uniform(0, 0.01)  # that is the moment
                while time.monotonic() < until:
                    path.queue.process(take)
                path.queue.close()
                assert sender.stdout.readline() == "sent\n"
                arrived = wait_for(lambda closing=closing: all_arrived((closing + 1) * burst))
                lost = net.at(receiver, overflows), backlogs() - before
                assert arrived, (closing, received, lost, path.queue.counters)
                path.queue.open()
            sender.stdin.close()


@pytest.mark.parametrize("end", ["stop", "close"])
def test_the_loop_is_ended_by_another_thread_at_any_moment(net: Net, end: str) -> None:
    with Path(net, "output", V4, undecided="accept", max_len=100_000) as path:
        path.receiver.close()  # no test reads it
        path.queue.close()
        done = threading.Event()

        def flood() -> None:
            while not done.is_set():
                with contextlib.suppress(ConnectionRefusedError):
                    path.sender.sendto(b"x", path.destination)

        sender = threading.Thread(target=flood)
        sender.start()
        try:
            for attempt in range(60):
                path.queue.open()
                problems: list[BaseException] = []

                def read(problems: list[BaseException] = problems, attempt: int = attempt) -> None:
                    try:
                        if attempt % 2:
                            path.queue.run(lambda packet: packet.accept())
                        else:
                            for packet in path.queue:
                                packet.accept()
                    except (ClosedError, AlreadyDecidedError) as error:
                        if end != "close":
                            problems.append(error)
                    except BaseException as error:
                        problems.append(error)

                reader = threading.Thread(target=read)
                reader.start()
                time.sleep(random.uniform(0, 0.004))  # that is the moment
                ends = [threading.Thread(target=getattr(path.queue, end)) for _ in range(2)]
                for thread in ends:
                    thread.start()
                for thread in ends:
                    thread.join(TIMEOUT)
                reader.join(TIMEOUT)
                assert not reader.is_alive()
                assert problems == []
                path.queue.close()
                counters = path.queue.counters
                assert counters.received == counters.accepted + counters.pending, attempt
                assert not net.proc("client", "nfnetlink_queue")
        finally:
            done.set()
            sender.join()


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="PyPy can leave a lock locked: docs/interpreters.md")
def test_interrupts_under_a_flood_while_another_thread_decides(privileges: str | None) -> None:
    """Programs of their own: one that hangs cannot be ended from within. `python -m tests.flood 200` counts more."""
    if privileges:
        cannot_run(privileges)
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-m", "tests.flood"], timeout=TIMEOUT, capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stdout + done.stderr


# A queue whose closing was interrupted is closed by the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_anywhere_leaves_no_queue_bound(net: Net) -> None:
    """Once the exception is dealt with, the queue can be opened anew."""
    choose, interrupted = random.Random(), 0
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for attempt in itertools.count():
            if attempt >= 300 and interrupted > 50:  # on a fast machine most signals arrive too late
                break
            assert attempt < 10_000
            try:
                signal.setitimer(signal.ITIMER_REAL, choose.uniform(1e-5, 1e-3))
                with Queue(1, netns=net.hosts["client"]):
                    pass
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            with Queue(1, netns=net.hosts["client"]):
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_stop_and_close_before_and_after(net: Net) -> None:
    queue = Queue(1, netns=net.hosts["client"])
    queue.close()
    queue.stop()
    queue.open()
    queue.stop()
    queue.run(print)  # ends at once
    queue.close()
    queue.close()
    queue.stop()
    with pytest.raises(ClosedError, match="queue 1 is not open"):
        queue.run(print)
    with queue:
        assert queue.process(print) == 0


def test_ten_threads_decide(net: Net) -> None:
    """Any verdict, in any order, from any thread: accepted packets arrive once."""
    count, handed = 1000, queues.SimpleQueue[Packet | None]()

    def work() -> None:
        while (packet := handed.get()) is not None:
            number = number_in(packet)
            if number % 4 == 0:
                packet.drop()
            elif number % 4 == 1:
                packet.accept(payload=inet.replace_data(packet.payload, b"changed" + packet.payload[-4:]))
            else:
                packet.accept()

    got: list[bytes] = []
    with Path(net, "forward", V4) as path:
        threads = [threading.Thread(target=work) for _ in range(10)]
        for thread in threads:
            thread.start()
        for start in range(0, count, 50):
            for data in numbered(count)[start : start + 50]:
                path.sender.sendto(data, path.destination)
            for packet in collect(path.queue, 50):
                handed.put(packet)
            got += [path.got() for n in range(start, start + 50) if n % 4]
        for _ in threads:
            handed.put(None)
        for thread in threads:
            thread.join(TIMEOUT)
        expected = sorted(b"changed" + d if n % 4 == 1 else d for n, d in enumerate(numbered(count)) if n % 4)
        assert sorted(got) == expected
        assert path.got_nothing()
        counters = path.queue.counters
        assert (counters.accepted, counters.dropped, counters.pending) == (count * 3 // 4, count // 4, 0)
        assert counters.refused == {}


# --- size


def test_super_packets_larger_than_a_message(net: Net) -> None:
    """A BIG TCP packet can be larger than an attribute: the kernel copies 65,531 bytes, and forwards all."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    size = 1 << 22

    def enlarge(name: str) -> None:
        with IPRoute() as ip:
            ip.link("set", index=ip.link_lookup(ifname=name)[0], gso_max_size=180_000)

    try:
        net.at("client", lambda: enlarge("to-router"))
    except NetlinkError as error:
        pytest.skip(f"this kernel has no BIG TCP: {error}")
    biggest: dict[str, Any] = {"length": 0}

    def handler(packet: Packet) -> None:
        if packet.cap_len > biggest["length"]:
            biggest.update(length=packet.cap_len, copied=len(packet.payload), info=packet.skbinfo)
        packet.accept(payload=packet.payload)  # unchanged: the kernel keeps the whole of it

    listener = net.open_socket("router", V6, socket.SOCK_STREAM)
    listener.bind(("::", 7001))
    listener.listen()
    client = net.open_socket("client", V6, socket.SOCK_STREAM)
    data = random.randbytes(size)
    with (
        Queue(1, gso=True, netns=net.hosts["client"]) as queue,
        rules.queue(1, hook="output", protocol="tcp", destination_port=7001, netns=net.hosts["client"]),
    ):
        loop = threading.Thread(target=queue.run, args=(handler,))
        loop.start()
        client.connect((ADDRESS["router", V6], 7001))
        server = listener.accept()[0]
        with server:
            server.settimeout(TIMEOUT)
            for _ in range(10):  # how much TCP puts into a packet is its decision
                sender = threading.Thread(target=client.sendall, args=(data,))
                sender.start()
                got = bytearray()
                while len(got) < size:
                    got += server.recv(1 << 20)
                sender.join(TIMEOUT)
                assert got == data
                if biggest["length"] > 65_535:
                    break
        queue.stop()
        loop.join(TIMEOUT)
    assert biggest["length"] > 65_535
    assert biggest["copied"] == 65_531
    assert SkbInfo.GSO in biggest["info"]


# --- recording


@pytest.mark.parametrize("what", ["queue", "log"])
def test_the_disk_is_full_while_recording(net: Net, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """The recording ends with a warning; packets are still handled."""
    here, destination = net.hosts["client"], (ADDRESS["server", V4], PORT)
    receiver, sender = net.receiver(), net.open_socket("client")
    reader: Any = (
        Queue(1, netns=here, record="/dev/full") if what == "queue" else Log(5, netns=here, record="/dev/full")
    )
    rule: Any = rules.queue if what == "queue" else rules.log
    with rule(1 if what == "queue" else 5, hook="output", protocol="udp", destination_port=PORT, netns=here):
        reader.open()
        got: list[Any] = []

        def handler(item: Any) -> None:
            got.append(item)
            if what == "queue":
                item.accept()

        for number in range(3):
            sender.sendto(bytes(60_000), destination)  # more than a buffer
            assert receiver.recv(70_000) if what == "log" else True
            while len(got) <= number:
                readable(reader, TIMEOUT)
                reader.process(handler)
            assert what == "log" or len(receiver.recv(70_000)) == 60_000
        with pytest.raises(OSError, match="No space left"):
            reader.close()
    assert caplog.text.count("the recording stops here") == 1


def test_a_pipe_that_is_recorded_to_is_closed(net: Net, tmp_path: FilePath, caplog: pytest.LogCaptureFixture) -> None:
    fifo = tmp_path / "pipe.pcapng"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    path = Path(net, "output", V4, record=fifo)
    with path._rule:
        path.queue.open()
        os.close(reading)
        for _ in range(3):  # more than a buffer
            (packet,) = path.send(bytes(60_000))
            packet.accept()
            assert len(path.got()) == 60_000
        with pytest.raises(BrokenPipeError):
            path.queue.close()
    assert "the recording stops here" in caplog.text
    with Path(net, "output", V4) as path:  # and the queue was closed nevertheless
        pass


# --- clocks


def test_steps_of_the_clock_change_nothing(net: Net, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """It determines only displayed and recorded times. `test_the_clock_is_set` really sets the clock."""
    steps = iter([3600, -7200, 86400 * 365, -86400 * 3650, 0] * 20)
    real = time.time_ns
    monkeypatch.setattr("time.time_ns", lambda: real() + next(steps) * 10**9)
    file = tmp_path / "steps.pcapng"
    with Path(net, "output", V4, record=file) as path:
        for data in numbered(10):
            (packet,) = path.send(data)
            packet.accept()
            assert path.got() == data
    replayed: list[int] = []
    with nfnet.Queue(1, transport=nfnet.replay(file)) as queue:
        queue.run(lambda packet: (replayed.append(number_in(packet)), packet.accept()))
    assert replayed == list(range(10))


@pytest.mark.skipif(os.environ.get("NFNET_SET_CLOCK") != "1", reason="sets the clock: for a machine to throw away")
def test_the_clock_is_set(net: Net) -> None:
    with Path(net, "output", V4, timestamps=True) as path, Log(5, timeout=0.1, netns=net.hosts["client"]) as log:
        with rules.log(5, hook="output", protocol="udp", destination_port=PORT, netns=net.hosts["client"]):
            for step, data in zip((0, 3600, -7200, 10**8, -(10**8)), numbered(5)):
                time.clock_settime(time.CLOCK_REALTIME, time.time() + step)
                (packet,) = path.send(data)
                packet.accept()
                assert path.got() == data
                assert wait_for(lambda: readable(log, 0) and log.process(lambda message: None))  # type: ignore[arg-type]
        stopper = threading.Timer(0.1, path.queue.stop)
        stopper.start()
        time.clock_settime(time.CLOCK_REALTIME, time.time() - 10**7)
        path.queue.run(print)


def test_every_row_of_the_table_names_tests_that_exist() -> None:
    root = FilePath(__file__).parent.parent
    text = (root.parent / "docs" / "faults.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`test_" in line]
    tests = "\n".join(path.read_text() for path in root.rglob("test_*.py"))
    named = {word for row in rows for word in row.split("`") if word.startswith("test_")}
    assert len(rows) > 25
    missing = sorted(name for name in named if f"def {name}(" not in tests)
    assert missing == []
