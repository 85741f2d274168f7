"""The API of nflogr, on built messages and on recordings."""

from __future__ import annotations

import errno
import os
import pickle
import re
import select
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import testing
from nfnet._io.system import collect_forgotten
from nfnet.compat import nflogr

from .conftest import FIXTURES
from .kernel import FakeKernel

PAYLOAD = testing.udp(b"data")


class FakeLog(FakeKernel):
    """A transport that gives the messages of group 5."""

    def __init__(self, *, ends: bool = False) -> None:
        super().__init__(ends=ends)
        self.overruns = 0

    def log(self, *prefixes: str, **attributes: Any) -> None:
        self.deliver(b"".join(testing.log_message(PAYLOAD, prefix=prefix, **attributes) for prefix in prefixes))

    def send(self, datagram: bytes) -> None:
        self.sent.append(datagram)

    def receive(self, into: list[bytes], limit: int) -> bool:
        if self.overruns:
            self.overruns -= 1
            raise nfnet.OverrunError("receiving", errno.ENOBUFS)
        return super().receive(into, limit)


@pytest.fixture
def kernel() -> FakeLog:
    return FakeLog()


def one(**attributes: Any) -> nflogr.NflogData:
    kernel = FakeLog()
    kernel.interfaces = {3: "lan0", 4: "port4"}
    kernel.log("prefix: ", **attributes)
    data = nflogr.open(5, transport=kernel).next()
    assert data is not None
    return data


# --- what there is


def numbers_in(header: str, pattern: str) -> dict[str, int]:
    text = (Path("/usr/include/linux") / header).read_text()
    return {name: int(number, 0) for name, number in re.findall(rf"#define\s+{pattern}(\w+)\s+(0x\w+|\d+)", text, re.I)}


@pytest.mark.parametrize(
    ("header", "pattern", "prefix"), [("if_ether.h", "ETH_P_", "PROTO_"), ("if_arp.h", "ARPHRD_", "HWTYPE_")]
)
def test_constants_are_those_of_the_kernel(header: str, pattern: str, prefix: str) -> None:
    if not Path("/usr/include/linux", header).exists():
        pytest.skip(f"no linux/{header} here to compare with")
    ours = {name: getattr(nflogr, name) for name in dir(nflogr) if name.startswith(prefix)}
    theirs = {prefix + name: number for name, number in numbers_in(header, pattern).items()}
    assert len(ours) >= 67
    both = ours.keys() & theirs.keys()
    assert len(both) >= 60
    assert {name: ours[name] for name in both} == {name: theirs[name] for name in both}


def test_names() -> None:
    assert (nflogr.COPY_NONE, nflogr.COPY_META, nflogr.COPY_PACKET) == (0, 1, 2)
    assert (nflogr.ENOBUFS_RAISE, nflogr.ENOBUFS_HANDLE, nflogr.ENOBUFS_DISABLE) == (0, 1, 2)
    assert (nflogr.PROTO_IPV6, nflogr.HWTYPE_LOOPBACK, nflogr.HWTYPE_HDLC) == (0x86DD, 772, 513)
    assert issubclass(nflogr.NflogError, Exception)
    for error in (nflogr.NflogDroppedError, nflogr.NflogRetryError, nflogr.NflogClosedError):
        assert issubclass(error, nflogr.NflogError)
    names: dict[str, Any] = {}
    exec("from nfnet.compat.nflogr import *", names)
    assert {"open", "Nflog", "NflogData", "PROTO_ARP", "HWTYPE_ETHER", "COPY_META", "NflogError"} <= names.keys()


# --- messages


def test_values() -> None:
    data = one(
        MARK=7,
        HWTYPE=1,
        HWADDR={"length": 6, "address": b"\2abcde\0\0"},
        HWHEADER=b"header",
        TIMESTAMP={"seconds": 1700000000, "microseconds": 250001},
        IFINDEX_INDEV=3,
        IFINDEX_PHYSINDEV=4,
        IFINDEX_OUTDEV=0xFFFFFFF0,
        UID=1000,
        GID=0,
    )
    expected = {
        "proto": 0x0800,
        "hwtype": 1,
        "nfmark": 7,
        "timestamp": 1700000000.250001,
        "timestamp_us": 1700000000250001,
        "indev": "lan0",
        "physindev": "port4",
        "outdev": "unkn/4294967280",
        "physoutdev": None,
        "uid": 1000,
        "gid": 0,
        "hwaddr": b"\2abcde",
        "hwhdr": b"header",
        "payload": PAYLOAD,
        "prefix": "prefix: ",
    }
    assert list(data) == list(expected.items()), "pairs, in this order"
    assert dict(data) == expected
    assert repr(data) == str(data) == f"<NflogData {expected}>"
    for name in expected:
        with pytest.raises(AttributeError):
            setattr(data, name, None)


def test_values_that_are_not_there() -> None:
    kernel = FakeLog()
    kernel.deliver(testing.log_message(None, prefix="", family=2))
    data = nflogr.open(5, transport=kernel).next()
    assert data is not None
    assert dict(data) == {
        **dict.fromkeys(("hwtype", "nfmark", "timestamp", "timestamp_us"), 0),
        **dict.fromkeys(("indev", "physindev", "outdev", "physoutdev", "uid", "gid", "hwaddr", "hwhdr", "payload")),
        "proto": 0x0800,
        "prefix": "",
    }
    assert isinstance(data.timestamp, float)


def test_pickling_keeps_everything() -> None:
    data = one(MARK=7, IFINDEX_INDEV=3, UID=1000, TIMESTAMP={"seconds": 1, "microseconds": 2})
    copy = pickle.loads(pickle.dumps(data))
    assert dict(copy) == dict(data)
    assert copy.indev == "lan0"


# --- reading


def test_next_and_queue(kernel: FakeLog) -> None:
    log = nflogr.open(5, transport=kernel)
    assert log.next(False) is None
    assert (log.queue(False), len(log), log.queued) == (0, 0, 0)
    kernel.log("a", "b")
    kernel.log("c")
    assert (log.queue(), len(log), log.queued) == (3, 3, 3)
    assert log.queue() == 0, "it waits for nothing while something is there"
    assert [log.next().prefix for _ in range(3)] == ["a", "b", "c"]  # type: ignore[union-attr]
    assert log.next(wait=False) is None
    assert bool(log), "also when nothing is buffered"


def test_loop(kernel: FakeLog) -> None:
    log = nflogr.open(5, transport=kernel)
    kernel.log("a", "b", "c", "d")
    seen: list[str] = []
    assert log.loop(lambda data: seen.append(data.prefix), 3) is None
    assert seen == ["a", "b", "c"]
    log.loop(print, 0)
    with pytest.raises(TypeError, match="argument must be callable"):
        log.loop(None)  # type: ignore[arg-type]

    async def never(data: nflogr.NflogData) -> None:
        raise AssertionError("the original would call this, and lose the message")

    with pytest.raises(TypeError, match="never is an async function, which nobody would await: .*nfnet.AsyncLog"):
        log.loop(never)

    def last(data: nflogr.NflogData) -> None:
        seen.append(data.prefix)
        log.close()

    log.loop(last)
    assert seen[3:] == ["d"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_the_callback_raises_comes_out(kernel: FakeLog, error: type[BaseException]) -> None:
    log = nflogr.open(5, transport=kernel)
    kernel.log("a", "b")

    def callback(data: nflogr.NflogData) -> None:
        raise error(data.prefix)

    with pytest.raises(error, match="a"):
        log.loop(callback)
    with pytest.raises(error, match="b"):
        log.loop(callback)


def test_iteration_ends_when_closed_and_what_is_buffered_comes_first(kernel: FakeLog) -> None:
    with nflogr.open(5, transport=kernel) as log:
        assert iter(log) is log
        kernel.log("a", "b", "c")
        assert next(log).prefix == "a"
    assert [data.prefix for data in log] == ["b", "c"]
    assert log.next(False) is None
    assert log.queue() == 0
    with pytest.raises(nflogr.NflogClosedError):
        log.next()
    log.close()


def test_a_recording_reads_to_its_end() -> None:
    with nflogr.open(5, transport=nfnet.replay(FIXTURES / "log-input-ipv4.pcapng")) as log:
        first = log.next()
        assert first is not None
        assert (first.proto, first.hwtype) == (nflogr.PROTO_IP, nflogr.HWTYPE_ETHER)
        assert first.timestamp > 1.7e9


def test_close_from_another_thread_ends_a_wait(kernel: FakeLog) -> None:
    log = nflogr.open(5, transport=kernel)
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.extend(data.prefix for data in log))
    thread.start()
    kernel.log("a")
    while not seen:
        pass
    log.close()
    thread.join(60)
    assert not thread.is_alive()
    assert seen == ["a"]


def test_several_threads_share_the_messages(kernel: FakeLog) -> None:
    log = nflogr.open(5, transport=kernel)
    seen: list[str] = []
    threads = [threading.Thread(target=lambda: seen.extend(data.prefix for data in log)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(200):
        kernel.log(str(number))
    while len(seen) + len(log) < 200:
        pass
    log.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert sorted(seen, key=int) == [str(number) for number in range(200)]


def test_descriptor_is_readable_as_long_as_there_is_something_to_read(kernel: FakeLog) -> None:
    log = nflogr.open(5, transport=kernel)

    def readable() -> bool:
        return bool(select.select([log], [], [], 0)[0])

    assert log.getfd() == log.fileno()
    assert not readable()
    kernel.log("a", "b")
    kernel.log("c")
    for _ in range(3):
        assert readable()
        log.next(False)
    assert not readable()
    log.close()
    assert log.getfd() is None
    with pytest.raises(ValueError, match="I/O operation on closed handle"):
        log.fileno()
    assert log.getgroup() == 5


def test_descriptor_of_a_forked_child_is_its_own(kernel: FakeLog) -> None:
    log = nflogr.open(5, transport=kernel)
    kernel.log("a", "b")
    assert log.queue() == 2
    pid = os.fork()
    if not pid:
        try:
            log.next(), log.next()
            os._exit(len(select.select([log], [], [], 0)[0]))
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert select.select([log], [], [], 0)[0]
    assert len(log) == 2


def test_descriptors_of_many_logs_in_a_forked_child_are_its_own() -> None:
    """The child does not have their sockets."""
    kernels = [FakeLog() for _ in range(20)]
    logs = [nflogr.open(5, transport=kernel) for kernel in kernels]
    for kernel, log in zip(kernels, logs):
        kernel.log("a")
        assert log.queue() == 1
    pid = os.fork()
    if not pid:
        try:
            for log in logs:
                log.next()
            os._exit(len(select.select(logs, [], [], 0)[0]))
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert select.select(logs, [], [], 0)[0] == logs
    for log in logs:
        log.close()


def test_handle_that_could_not_be_made() -> None:
    with pytest.raises(TypeError):
        nflogr.Nflog()  # type: ignore[call-arg]


# --- loss


def test_loss_raises(kernel: FakeLog) -> None:
    log = nflogr.open(5, transport=kernel)
    kernel.log("a")
    kernel.overruns = 1
    with pytest.raises(nflogr.NflogDroppedError, match=r"packets were dropped \(ENOBUFS\)"):
        log.next()
    assert log.next().prefix == "a"  # type: ignore[union-attr]
    assert log.drops == 0


def test_loss_is_counted(kernel: FakeLog) -> None:
    log = nflogr.open(5, transport=kernel, enobufs=nflogr.ENOBUFS_HANDLE)
    kernel.log("a")
    kernel.overruns = 2
    assert log.next().prefix == "a"  # type: ignore[union-attr]
    assert log.drops == 2
    with pytest.raises(TypeError, match="drops can only be set to 0"):
        log.drops = 1
    log.drops = 0
    assert log.drops == 0


# --- arguments


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"group": -1}, "group must be in range [0,65535]"),
        ({"group": 65536}, "group must be in range [0,65535]"),
        ({"timeout": -1}, "timeout must be in range [0.00,42949672.95]"),
        ({"timeout": 42949673}, "timeout must be in range [0.00,42949672.95]"),
        ({"timeout": float("nan")}, "timeout must be in range [0.00,42949672.95]"),
        ({"qthresh": -1}, "qthresh must be in range [0,4294967295]"),
        ({"rcvbuf": 1073741824}, "rcvbuf must be in range [0,1073741823]"),
        ({"nlbuf": 1 << 32}, "nlbuf must be in range [0,4294967295]"),
        ({"enobufs": 3}, "enobufs must be ENOBUFS_RAISE, ENOBUFS_HANDLE, or ENOBUFS_DISABLE"),
        ({"copymode": 3}, "copymode must be COPY_NONE, COPY_META, or COPY_PACKET"),
    ],
)
def test_arguments_out_of_range(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole text is compared)
        nflogr.open(**{"group": 5, "transport": FakeLog(), **wrong})
    assert str(caught.value) == text


NOT_WHOLE = [1.0, "1", None, 1j, Decimal(1)]
INTEGERS = {"group": 31, "qthresh": 63, "rcvbuf": 63, "nlbuf": 63, "enobufs": 8, "copymode": 8}


@pytest.mark.parametrize("name", INTEGERS)
def test_arguments_that_no_integer_of_c_holds(name: str) -> None:
    least = -(1 << INTEGERS[name]) - 1 if INTEGERS[name] > 8 else -1
    for number in (1 << INTEGERS[name], 1 << 100, least, -(1 << 100)):
        with pytest.raises(OverflowError):
            nflogr.open(**{"group": 5, "transport": FakeLog(), name: number})
    for value in NOT_WHOLE:
        with pytest.raises(TypeError):
            nflogr.open(**{"group": 5, "transport": FakeLog(), name: value})


class Index:
    """As integers of numpy are: an integer, but no int."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __index__(self) -> int:
        return self._number


def test_integers_that_are_no_int(kernel: FakeLog) -> None:
    names = {"qthresh": 3, "nlbuf": 8192, "enobufs": 1, "copymode": 1, "timeout": 2}
    log = nflogr.open(Index(5), transport=kernel, **{name: Index(number) for name, number in names.items()})  # type: ignore[arg-type]
    config = nfnet.protocol.nfnetlink.parse_attributes(kernel.sent[0][20:], nfnet.protocol.nfulnl.NFULA_CFG_TABLE)
    assert config[nfnet.protocol.nfulnl.NFULA_CFG.QTHRESH] == 3
    assert config[nfnet.protocol.nfulnl.NFULA_CFG.TIMEOUT] == 200
    log.drops = Index(0)  # type: ignore[assignment]
    kernel.log("a", "b")
    seen: list[str] = []
    log.loop(lambda data: seen.append(data.prefix), Index(1))  # type: ignore[arg-type]
    assert seen == ["a"]


@pytest.mark.parametrize("value", ["1", None, 1j])
def test_a_timeout_that_is_no_number(value: Any) -> None:
    with pytest.raises(TypeError):
        nflogr.open(5, timeout=value, transport=FakeLog())


@pytest.mark.parametrize("value", [1.5, "1", None])
def test_a_count_that_is_no_integer(kernel: FakeLog, value: Any) -> None:
    """With 1.5 the loop never ended."""
    log = nflogr.open(5, transport=kernel)
    with pytest.raises(TypeError):
        log.loop(print, value)
    for number in (1 << 31, -(1 << 31) - 1):
        with pytest.raises(OverflowError):
            log.loop(print, number)


@pytest.mark.parametrize("value", [0.0, "0", None])
def test_drops_is_set_to_0_alone(kernel: FakeLog, value: Any) -> None:
    with pytest.raises(TypeError, match="drops can only be set to 0"):
        nflogr.open(5, transport=kernel).drops = value


@pytest.mark.parametrize("wait", [None, "", []])
def test_anything_says_whether_to_wait(kernel: FakeLog, wait: Any) -> None:
    log = nflogr.open(5, transport=kernel)
    assert log.queue(wait) == 0
    assert log.next(wait) is None


def test_options_reach_the_kernel(kernel: FakeLog) -> None:
    nflogr.open(5, timeout=1.5, qthresh=0, nlbuf=50, copymode=nflogr.COPY_META, transport=kernel)
    config = nfnet.protocol.nfnetlink.parse_attributes(kernel.sent[0][20:], nfnet.protocol.nfulnl.NFULA_CFG_TABLE)
    assert config[nfnet.protocol.nfulnl.NFULA_CFG.TIMEOUT] == 150
    assert config[nfnet.protocol.nfulnl.NFULA_CFG.QTHRESH] == 1
    assert config[nfnet.protocol.nfulnl.NFULA_CFG.NLBUFSIZ] == nfnet.protocol.nfulnl.MIN_BUFFER_SIZE
    assert config[nfnet.protocol.nfulnl.NFULA_CFG.MODE]["copy_mode"] == nflogr.COPY_META


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (nfnet.BusyError, PermissionError, "could not bind nflog group 5, it may be in use, see /proc/net/netfilter/"),
        (nfnet.NotPermittedError, PermissionError, "could not bind protocol family (are you root?)"),
        (nfnet.KernelError, OSError, "could not bind nflog group 5: operation not permitted (1)"),
    ],
)
def test_refusals(mocker: Any, error: type[nfnet.KernelError], kind: type[OSError], text: str) -> None:
    mocker.patch.object(nfnet.Log, "open", side_effect=error("binding", errno.EPERM))
    with pytest.raises(kind) as caught:
        nflogr.open(5, transport=FakeLog())
    assert str(caught.value).startswith(text)
    assert caught.value.errno == errno.EPERM


# --- what its tests use


RAW = (
    {1: "eth0"},
    (b"\x08\x00\x03\x00", b"\0\0\0\7", bytes(16), b"\0\0\0\1", *[None] * 4, PAYLOAD + bytes(4), b"pfx\0"),
)


def test_messages_from_an_iterable() -> None:
    log = nflogr._from_iter([[RAW, RAW], [], [RAW]])
    assert (log.getfd(), log.getgroup(), log.rcvbuf, log.drops) == (None, None, None, 0)
    assert (log.queue(), log.queue(), log.queue(), len(log)) == (2, 0, 1, 3)
    seen = list(log)
    assert [(data.indev, data.nfmark, data.payload, data.prefix) for data in seen] == [("eth0", 7, PAYLOAD, "pfx")] * 3
    with pytest.raises(nflogr.NflogClosedError):
        log.next()


def test_raw_messages(kernel: FakeLog) -> None:
    kernel.interfaces = {1: "eth0"}
    log = nflogr.open(5, transport=kernel)
    kernel.log("a", "b", MARK=7, IFINDEX_INDEV=1)
    raw = log._recv_raw()
    assert [names for names, _ in raw] == [{1: "eth0"}] * 2
    assert [nflogr.NflogData(*item).prefix for item in raw] == ["a", "b"]
    assert nflogr.NflogData(*raw[0]).payload == PAYLOAD
    assert (log._raw(), log._raw(True), log._raw()) == (False, True, True)
    with pytest.raises(ValueError, match="value must be"):
        log._raw("x")  # type: ignore[arg-type]


def test_descriptors_are_not_leaked() -> None:
    collect_forgotten()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        nflogr.open(5, transport=FakeLog()).close()
    collect_forgotten()
    assert len(os.listdir("/proc/self/fd")) <= before + 2
