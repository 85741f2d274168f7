"""The APIs of NetfilterQueue and nflogr on the real kernel, compared with the original packages if installed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

import nfnet
from nfnet import inet, netns
from nfnet.compat import nflogr
from nfnet.compat.netfilterqueue import NetfilterQueue, Packet, QueueHandler
from nfnet.protocol.nfnetlink import NETLINK_NETFILTER

from .conftest import TIMEOUT, Net, in_child, readable, wait_for
from .programs import is_bound, running
from .test_process import drop_capabilities
from .traffic import V4, V6, Way, drained, logging, queueing

# --- NetfilterQueue


@pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
def test_packets_and_verdicts(net: Net, family: int) -> None:
    way = Way(net, family)
    seen: list[tuple[str, bytes | None]] = []
    stamps: list[float] = []

    def callback(packet: Packet) -> None:
        data = inet.get_data(packet.get_payload())
        seen.append((str(packet), data))
        assert packet.get_hw() == bytes.fromhex(net.mac("client", "router").replace(":", "")) + bytes(2)
        assert (packet.hook, packet.indev) == (2, net.index("router", "to-client"))
        assert (packet.outdev, packet.physindev, packet.physoutdev) == (net.index("router", "to-server"), 0, 0)
        assert packet.hw_protocol == (0x0800 if family == V4 else 0x86DD)
        stamps.append(packet.get_timestamp())
        if data == b"drop":
            packet.drop()
        elif data == b"change":
            packet.set_payload(inet.replace_data(packet.get_payload(), b"changed"))
            packet.accept()
        elif data == b"repeat":
            packet.set_mark(99)
            packet.repeat()
        else:
            packet.accept()

    with queueing(net):
        queue = way.bound(callback)
        way.send(b"accept", b"drop", b"change", b"repeat")
        drained(queue, lambda: len(seen) == 4)
        assert way.received(3) == [b"accept", b"changed", b"repeat"]

        def is_stamped() -> bool:  # which begins a moment after binding
            way.send(b"again")
            drained(queue, lambda: readable(way.receiver, 0))
            way.received(1)
            return abs(stamps[-1] - time.time()) < TIMEOUT

        assert wait_for(is_stamped)
        queue.unbind()
    length = 34 if family == V4 else 54
    assert seen[0] == (f"UDP packet, {length} bytes", b"accept")


def test_packets_are_not_cut(way: Way) -> None:
    seen: list[int] = []
    with queueing(way.net, "client", "output"):
        queue: NetfilterQueue = way.net.at("client", NetfilterQueue)
        queue.bind(1, lambda p: (seen.append(len(p.get_payload())), p.accept()), sock_len=100_000)
        way.send(bytes(60_000))
        drained(queue, lambda: seen)
        queue.unbind()
    assert seen == [60_028]
    assert way.received(1) == [bytes(60_000)]


def test_taken_queue(way: Way) -> None:
    first = way.bound(print)
    with pytest.raises(OSError, match=r"^Failed to create queue 1\.$") as caught:
        way.bound(print)
    assert isinstance(caught.value.__cause__, nfnet.BusyError)
    first.unbind()
    second = way.bound(print)
    second.unbind()


def test_receive_buffer_that_cannot_be_had(way: Way) -> None:
    def bind() -> None:
        queue = NetfilterQueue()
        with pytest.warns(RuntimeWarning, match=r"^Socket rcvbuf limit is now \d+, requested 1073741824\.$") as caught:
            queue.bind(1, print, sock_len=1 << 30)
        assert caught[0].filename == __file__
        queue.unbind()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(RuntimeWarning):
                queue.bind(1, print, sock_len=1 << 30)
            queue.bind(1, print, sock_len=50_000)  # it was unbound
        queue.unbind()

    way.net.at("router", bind)


def test_without_privilege(way: Way) -> None:
    def child() -> None:
        netns.enter(way.here)
        drop_capabilities()
        with pytest.raises(OSError, match=r"^Failed to bind family 2\. Are you root\?$"):
            NetfilterQueue()
        with pytest.raises(OSError, match=r"^Failed to bind family 10\. Are you root\?$"):
            QueueHandler(af=10)
        with pytest.raises(PermissionError, match="are you root"):
            nflogr.open(5)

    assert in_child(child) == 0


def test_socket_of_another_namespace(way: Way) -> None:
    theirs: socket.socket = way.net.at(
        "router", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    )
    seen: list[bytes | None] = []
    queue = NetfilterQueue(sockfd=theirs.fileno())
    with queueing(way.net):
        queue.bind(1, lambda p: (seen.append(inet.get_data(p.get_payload())), p.accept()), sock_len=50_000)
        assert theirs.getblocking(), "how the caller's socket works is theirs to say"
        theirs.close()
        way.send(b"from there")
        drained(queue, lambda: seen)
        queue.unbind()
    assert way.received(1) == seen == [b"from there"]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as again:
        del queue
        assert again.fileno() >= 0


def test_callers_socket_stays_open(way: Way) -> None:
    def check() -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as theirs:
            queue = NetfilterQueue(sockfd=theirs.fileno())
            queue.bind(1, print, sock_len=50_000)
            assert queue.get_fd() != theirs.fileno()
            del queue
            os.fstat(theirs.fileno())

    way.net.at("router", check)


def test_signal_interrupts_a_blocked_run(way: Way) -> None:
    queue = way.bound(print)

    def ring(number: int, frame: object) -> None:
        raise KeyboardInterrupt("it rings")

    def run() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        queue.run()

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(KeyboardInterrupt, match="it rings"):
            run()  # on a slow machine the signal arrives before the loop waits
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    queue.unbind()


def test_run_socket_with_a_copy_of_the_socket(way: Way) -> None:
    seen: list[bytes | None] = []
    queue = way.bound(lambda p: (seen.append(inet.get_data(p.get_payload())), p.accept()))
    with queueing(way.net), socket.fromfd(queue.get_fd(), socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        way.send(b"one", b"two")
        sock.settimeout(0.3)
        with pytest.raises(socket.timeout):
            queue.run_socket(sock)
        assert seen == way.received(2) == [b"one", b"two"]
        sock.setblocking(False)
        queue.run_socket(sock)
        way.send(b"three")
        assert readable(sock, TIMEOUT)
        queue.run_socket(sock)
        assert way.received(1) == [b"three"]
        queue.unbind()


def test_run_socket_blocks_on_a_socket_that_does(way: Way) -> None:
    seen: list[bytes | None] = []

    def callback(packet: Packet) -> None:
        seen.append(inet.get_data(packet.get_payload()))
        packet.accept()
        if len(seen) == 2:
            raise StopIteration

    queue = way.bound(callback)
    with queueing(way.net), socket.fromfd(queue.get_fd(), socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        timer = threading.Timer(0.1, lambda: way.send(b"one", b"two"))
        timer.start()
        with pytest.raises(StopIteration):
            queue.run_socket(sock)
        timer.join()
        queue.unbind()
    assert seen == [b"one", b"two"]


def test_after_an_exception_the_socket_tells_of_packets_that_were_read_already(way: Way) -> None:
    seen: list[Packet] = []

    def callback(packet: Packet) -> None:
        seen.append(packet)
        if len(seen) == 1:
            raise ValueError
        packet.accept()

    queue = way.bound(callback)
    with queueing(way.net):
        way.send(b"one", b"two", b"three")
        assert wait_for(lambda: readable(queue.get_fd(), 0))  # type: ignore[arg-type]
        with pytest.raises(ValueError):  # noqa: PT011
            drained(queue, lambda: False)
        drained(queue, lambda: len(seen) == 3)
        seen[0].accept()
        assert sorted(way.received(3)) == [b"one", b"three", b"two"]
        queue.unbind()


def test_binding_again_starts_anew(way: Way) -> None:
    seen: list[bytes | None] = []

    def bind(queue: NetfilterQueue) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            queue.bind(1, lambda p: (seen.append(inet.get_data(p.get_payload())), p.accept()))

    queue = way.bound(print)
    with queueing(way.net):
        way.send(b"of the first binding")
        assert readable(queue.get_fd(), TIMEOUT)  # type: ignore[arg-type]
        fd = queue.get_fd()
        queue.unbind()
        bind(queue)
        assert queue.get_fd() == fd
        way.send(b"of the second")
        drained(queue, lambda: seen)
        assert way.received(1) == seen == [b"of the second"]
        queue.unbind()


def test_run_in_a_child_process(way: Way) -> None:
    """Scripts bind, and give ``run`` to a process of multiprocessing, or become a daemon."""
    queue = way.bound(lambda p: p.accept())
    with queueing(way.net):
        process = multiprocessing.get_context("fork").Process(target=queue.run)
        process.start()
        try:
            way.send(b"through the child")
            assert way.received(1) == [b"through the child"]
        finally:
            process.terminate()
            process.join()
    assert in_child(queue.__del__) == 0
    with pytest.raises(OSError, match="Failed to create queue"):
        way.bound(print)  # the end of a child is not the end of the queue
    queue.unbind()


def test_verdicts_in_children_forked_by_the_callback(way: Way) -> None:
    def callback(packet: Packet) -> None:
        if not (pid := os.fork()):
            try:
                packet.accept()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    queue = way.bound(callback)
    with queueing(way.net):
        way.send(b"one", b"two", b"three")
        seen: list[bytes] = []
        drained(queue, lambda: readable(way.receiver, 0) and (seen.extend(way.received(1)) or len(seen) == 3))
        assert seen == [b"one", b"two", b"three"]
        queue.unbind()


def test_parent_and_child_read_the_same_queue(way: Way) -> None:
    """The verdicts of one do not decide the other's packets, which have lower ids."""
    held, released = socket.socketpair()
    for sock in (held, released):
        sock.settimeout(TIMEOUT)
    decided = []

    def callback(packet: Packet) -> None:
        if packet.get_payload().endswith(b"evil"):
            if not decided:
                held.send(b"x")
                held.recv(1)  # meanwhile the parent accepts later ones
            decided.append(packet)
            packet.drop()
        else:
            packet.accept()

    with queueing(way.net):
        queue = way.bound(callback)
        way.send(b"evil", b"evil", b"evil")
        if not (pid := os.fork()):
            queue.run(block=False)
            os._exit(len(decided) != 3)
        with held, released:
            assert released.recv(1) == b"x"
            way.send(b"fine", b"fine", b"fine")
            queue.run(block=False)
            assert way.received(3) == [b"fine"] * 3
            released.send(b"x")
            assert os.waitpid(pid, 0)[1] == 0
        way.send(b"fine")
        queue.run(block=False)
        assert way.received(1) == [b"fine"]
        queue.unbind()


def test_fork_while_a_thread_reads(way: Way) -> None:
    """A child has no such thread, and none that could let go of its locks."""
    queue = way.bound(lambda p: p.accept())
    thread = threading.Thread(target=queue.run)
    thread.start()
    with queueing(way.net):
        for _ in range(20):
            way.send(*[b"x"] * 20)
            if not (pid := os.fork()):
                signal.alarm(int(TIMEOUT))
                try:
                    queue.run(block=False)
                finally:
                    os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        queue.unbind()
        thread.join(TIMEOUT)
        assert not thread.is_alive()


# --- nflogr


def test_log_messages(way: Way) -> None:
    with logging(way.net), way.opened() as log:
        way.send(b"hello")
        data = log.next()
        assert data is not None
        assert (data.prefix, data.proto, data.indev, data.outdev) == ("said: ", 0x0800, "to-client", "to-server")
        assert inet.get_data(data.payload or b"") == b"hello"
        assert data.hwaddr == bytes.fromhex(way.net.mac("client", "router").replace(":", ""))
        assert log.next(False) is None


def test_log_of_what_goes_out(net: Net) -> None:
    """The original crashes, for these have no timestamp."""
    way = Way(net)
    with logging(net, "client", "output"), net.at("client", lambda: nflogr.open(5)) as log:
        way.send(b"hello")
        data = log.next()
        assert (data.timestamp, data.timestamp_us, data.uid is not None) == (0.0, 0, True)
        assert dict(data)["outdev"] == "to-router"


def test_taken_group(way: Way) -> None:
    with way.opened():
        text = "could not bind nflog group 5, it may be in use, see /proc/net/netfilter/nfnetlink_log"
        with pytest.raises(PermissionError) as caught:
            way.opened()
        assert str(caught.value) == text
    way.opened().close()


def test_receive_buffer(way: Way) -> None:
    with way.opened() as log:
        assert log.rcvbuf == int(Path("/proc/sys/net/core/rmem_default").read_text()) // 2
        log.rcvbuf = 50_000
        assert log.rcvbuf == 50_000
        log.rcvbuf = 0
        assert log.rcvbuf == 50_000
        with pytest.raises(ValueError, match=r"rcvbuf must be in range \[0,1073741823\]"):
            log.rcvbuf = -1
    assert log.rcvbuf is None
    with way.opened(rcvbuf=60_000) as log:
        assert log.rcvbuf == 60_000


def test_loss(way: Way) -> None:
    def send_many() -> None:
        for _ in range(200):
            way.send(b"x" * 1000)
            way.received(1)

    with logging(way.net):
        with way.opened(rcvbuf=10_000) as log:
            send_many()
            with pytest.raises(nflogr.NflogDroppedError):
                log.loop(lambda data: None, 200)
            way.send(b"after")
            assert log.next() is not None, "reading goes on"
        with way.opened(rcvbuf=10_000, enobufs=nflogr.ENOBUFS_HANDLE) as log:
            send_many()
            assert log.next() is not None
            assert log.drops >= 1
        with way.opened(rcvbuf=10_000, enobufs=nflogr.ENOBUFS_DISABLE) as log:
            send_many()
            assert log.next() is not None
            assert log.drops == 0


def test_waiting_lets_other_threads_run_and_signals_in(way: Way) -> None:
    """The original holds the interpreter's lock while it waits, and makes an OSError of a signal."""
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    timer = threading.Timer(0.2, lambda: way.send(b"at last"))
    try:
        with logging(way.net), way.opened() as log:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            timer.start()
            assert log.next() is not None
            assert rung
    finally:
        signal.signal(signal.SIGALRM, before)
        timer.join()


# --- scripts, run with the real packages and with ours

QUEUE_SCRIPT = """\
import os, socket, struct, sys, warnings
from decimal import Decimal
from netfilterqueue import NetfilterQueue, COPY_META
import netfilterqueue

kept = []

def callback(packet):
    data = packet.get_payload()[28:]
    print(packet, data, packet.id, packet.hook, packet.hw_protocol, packet.mark, packet.get_mark())
    print(packet.indev, packet.outdev, packet.physindev, packet.physoutdev, packet.get_hw(), packet.get_payload_len())
    if data == b"drop":
        packet.drop()
    elif data == b"keep":
        packet.retain()
        kept.append(packet)
    elif data == b"lose":
        kept.append(packet)
    elif data == b"change":
        packet.set_payload(packet.get_payload()[:26] + bytes(2) + b"CHANGE")
        packet.set_mark(99)
        print(packet.get_payload()[28:], packet.get_mark(), packet.mark, packet)
        packet.repeat()
    elif data == b"raise":
        kept.append(packet)
        raise LookupError("raised")
    elif data == b"end":
        packet.accept()
        raise SystemExit
    else:
        packet.accept()
        attempt(packet.drop)

def attempt(function, *arguments, **options):
    try:
        print("got", function(*arguments, **options))
    except Exception as error:
        print(type(error).__name__, error if type(error) is not OverflowError else "")

NUMBERS = [-1, 255, 256, 1 << 31, 1 << 32, 1 << 80, 1.5, -0.5, float("nan"), True, None, "1", b"1", 1j, Decimal(7)]

def kind(function, *arguments, **options):
    try:
        function(*arguments, **options)
        return "taken"
    except (OverflowError, TypeError, ValueError, OSError) as error:
        return type(error).__name__

def taken(**options):
    other.bind(**{"queue_num": 2, "user_callback": print, "sock_len": 50000, **options})
    other.unbind()

other = NetfilterQueue()
NOT_FOR = {"queue_num": (-1, 1.5, 1), "mode": (255, 7)}  # others' numbers, queue 1, and what is no mode
warnings.simplefilter("ignore")
for name in ("queue_num", "max_len", "mode", "range", "sock_len"):
    print(name, [kind(taken, **{name: number}) for number in NUMBERS if number not in NOT_FOR.get(name, ())])
print("af", [kind(NetfilterQueue, af=number) for number in NUMBERS])
print("sockfd", [kind(NetfilterQueue, sockfd=number) for number in NUMBERS])

queue = NetfilterQueue()
attempt(queue.run, block=False)
queue.bind(1, callback, sock_len=50000)
attempt(queue.bind, 2, callback)
attempt(NetfilterQueue().bind, 1, callback)
attempt(NetfilterQueue, sockfd=1000)
attempt(NetfilterQueue, sockfd=0)
attempt(lambda: netfilterqueue.PROTOCOLS == dict(sorted(netfilterqueue.PROTOCOLS.items())))
for _ in range(2):
    try:
        queue.run()
    except LookupError as error:
        print("out of run:", error)
    except SystemExit:
        print("out of run: exit")
for packet in kept:
    print(packet, packet.get_payload_len())
    attempt(lambda: packet.get_payload()[28:])
    attempt(packet.set_payload, "text")
    print([(kind(packet.set_mark, number), packet.get_mark()) for number in NUMBERS])
    packet.accept()
    attempt(packet.accept)
queue.unbind()
queue.unbind()
attempt(queue.run, block=False)
queue.bind(1, callback, sock_len=50000)
os.set_blocking(queue.get_fd(), False)
attempt(queue.run)
os.set_blocking(queue.get_fd(), True)
copy = socket.socket(fileno=os.dup(queue.get_fd()))
copy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 1000))
attempt(queue.run)
queue.unbind()
print(netfilterqueue.VERSION, netfilterqueue.__version__, netfilterqueue.COPY_NONE, netfilterqueue.COPY_PACKET)
"""

LOG_SCRIPT = """\
from decimal import Decimal
import nflogr

NUMBERS = [-1, 256, 1 << 31, 1 << 63, 1 << 80, 1.5, -0.5, 1e30, float("inf"), None, "1", b"1", 1j, Decimal(7)]

def kind(function, *arguments, **options):
    try:
        function(*arguments, **options)
        return "taken"
    except (OverflowError, TypeError, ValueError, OSError) as error:
        return type(error).__name__

for name in ("group", "timeout", "qthresh", "rcvbuf", "nlbuf", "enobufs", "copymode"):
    print(name, [kind(lambda: nflogr.open(**{"group": 6, name: number}).close()) for number in NUMBERS])

def attempt(function, *arguments, **options):
    try:
        print("got", function(*arguments, **options))
    except Exception as error:
        print(type(error).__name__, error)

for options in ({"timeout": -1}, {"qthresh": -1}, {"rcvbuf": -1}, {"nlbuf": -1}, {"enobufs": 9}, {"copymode": 9}, {"x": 1}):
    attempt(nflogr.open, 5, **options)
attempt(nflogr.open, 70000)
with nflogr.open(6, rcvbuf=50000) as log:
    print(log.getgroup(), log.rcvbuf, log.drops, len(log), log.next(False))
log = nflogr.open(5)
attempt(nflogr.open, 5)
for data in log:
    values = dict(data)
    timestamp = values.pop("timestamp")
    assert abs(values.pop("timestamp_us") - timestamp * 1000000) <= 1
    values["payload"] = values["payload"][28:]
    print(list(values.items()))
    if values["payload"] == b"end":
        break
seen = []
log.loop(lambda data: seen.append(data.payload[28:]), 2)
print(seen)
for number in (1, 1.0, "0", None):
    attempt(setattr, log, "drops", number)
attempt(setattr, log, "rcvbuf", -1)
print([kind(setattr, log, "rcvbuf", number) for number in NUMBERS])
print([kind(log.loop, print, number) for number in (1 << 31, 1.5, "1", None)])
log.close()
log.close()
print(log.getfd(), log.getgroup(), log.rcvbuf, log.next(False), log.queue(False))
attempt(log.fileno)
names = sorted(name for name in dir(nflogr) if name.startswith(("PROTO_IP", "HWTYPE_LO", "COPY", "ENOBUFS", "Nflog")))
print([(name, getattr(nflogr, name)) for name in names if not name.startswith("Nflog")])
"""  # noqa: E501


def peers(module: str) -> list[str]:
    """Interpreters in which the real package works: of ``make bench``, and those that NFNET_PEERS names."""
    bench = Path(__file__).parents[2] / ".bench" / "bin" / "python"
    found = [str(bench), *os.environ.get("NFNET_PEERS", "").split(":")]
    # nflogr crashes on 3.10 to 3.12.
    code = f"import sys, {module}; sys.exit({module!r} == 'nflogr' and (3, 10) <= sys.version_info < (3, 13))"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def works(python: str) -> bool:
        return not subprocess.call([python, "-c", code], stderr=subprocess.DEVNULL, env=env)

    return [python for python in found if python and Path(python).exists() and works(python)]


def output_of(net: Net, command: list[str], kind: str) -> str:
    """Return a script's output for this traffic."""
    way = Way(net)
    rule, numbers = (queueing, {"queue": 1}) if kind == "queue" else (logging, {"group": 5})
    with rule(net), running(net, command, stdin=subprocess.DEVNULL) as process:
        assert wait_for(lambda: is_bound(net, **numbers) or process.poll() is not None)
        if kind == "queue":
            way.send(b"accept", b"drop", b"keep", b"change", b"lose", b"raise", b"one more", b"end")
        else:
            way.send(b"first", b"", b"end", b"two", b"more")
        output, errors = process.communicate(timeout=TIMEOUT)
        assert errors == ""
        assert process.returncode == 0
    for sock in (way.sender, way.receiver):
        sock.close()
    return output


@pytest.mark.parametrize(("kind", "module"), [("queue", "netfilterqueue"), ("log", "nflogr")])
def test_scripts_do_the_same_with_the_real_package(net: Net, tmp_path: Path, kind: str, module: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(QUEUE_SCRIPT if kind == "queue" else LOG_SCRIPT)
    ours = output_of(net, [sys.executable, "-m", "nfnet.compat", str(script)], kind)
    assert len(ours.splitlines()) > 15
    there = peers(module)
    if not there:
        pytest.skip(f"{module} is not installed anywhere that NFNET_PEERS or .bench say")
    for python in there:
        assert output_of(net, [python, str(script)], kind) == ours
