"""Capture files: written and read back, in all formats, and damaged."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import signal
import struct
import tempfile
import threading
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nfnet
from nfnet import inet
from nfnet.captures import LinkType, Record, Writer, read
from nfnet.captures._format import netlink_header
from nfnet.protocol import layout, nfqnl
from nfnet.testing import FakeKernel, log_message, packet_message

from .memory import traced
from .test_inet import ipv4, ipv6

TIME = 1_795_287_298_123_456_789


def pcap(*records: bytes, byteorder: str = "<", magic: int = 0xA1B2C3D4, link_type: int = 101) -> bytes:
    data = struct.pack(f"{byteorder}IHHiIII", magic, 2, 4, 0, 0, 65535, link_type)
    for number, record in enumerate(records):
        data += struct.pack(f"{byteorder}IIII", 1000 + number, 7, len(record), len(record) + 5) + record
    return data


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_pcap(byteorder: str, magic: int, unit: int) -> None:
    first, second = read(io.BytesIO(pcap(b"abc", b"", byteorder=byteorder, magic=magic)))
    assert (first.time_ns, first.link_type, first.data, first.original_length) == (
        1000 * 10**9 + 7 * unit,
        101,
        b"abc",
        8,
    )
    assert (second.time_ns, second.data) == (1001 * 10**9 + 7 * unit, b"")
    assert first.byteorder == {"<": "little", ">": "big"}[byteorder]


def block(byteorder: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(f"{byteorder}I", len(body) + 12)
    return struct.pack(f"{byteorder}I", kind) + length + body + length


def section(byteorder: str) -> bytes:
    return block(byteorder, 0x0A0D0D0A, struct.pack(f"{byteorder}IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(byteorder: str, link_type: int, *options: tuple[int, bytes]) -> bytes:
    body = struct.pack(f"{byteorder}HHI", link_type, 0, 0)
    for code, value in options:
        body += struct.pack(f"{byteorder}HH", code, len(value)) + value + bytes(-len(value) % 4)
    return block(byteorder, 1, body)


@pytest.mark.parametrize("byteorder", "<>")
def test_pcapng_of_others(byteorder: str) -> None:
    """Several interfaces and sections, unknown blocks, other resolutions, simple packets."""
    packet = struct.pack(f"{byteorder}IIIII", 1, 0, 3 << 10, 3, 9) + b"abc\0"
    packet += struct.pack(f"{byteorder}HH", 1, 5) + b"hello\0\0\0" + bytes(4)
    data = section(byteorder) + interface(byteorder, 1) + interface(byteorder, 239, (9, b"\x8a"), (14, bytes(8)))
    data += block(byteorder, 0xBAD, b"whatever") + block(byteorder, 6, packet)
    data += (
        section(byteorder) + interface(byteorder, 101) + block(byteorder, 3, struct.pack(f"{byteorder}I", 2) + b"xy")
    )
    first, second = read(io.BytesIO(data))
    assert (first.link_type, first.data, first.original_length, first.comment) == (239, b"abc", 9, "hello")
    assert first.time_ns == 3 * 10**9  # in units of 2^-10 seconds
    assert (second.link_type, second.data) == (101, b"xy")


@given(
    st.lists(st.tuples(st.integers(0, 2**62), st.binary(max_size=70), st.text(max_size=9)), max_size=5),
    st.sampled_from([".pcap", ".pcapng"]),
)
def test_written_files_read_back(records: list[tuple[int, bytes, str]], suffix: str) -> None:
    directory = tempfile.TemporaryDirectory()
    path = Path(directory.name) / f"file{suffix}"
    writer = Writer(path, LinkType.NETLINK)
    for time_ns, data, comment in records:
        writer.write(time_ns % (2**32 * 10**9), data, comment=comment)
    writer.close()
    writer.close()
    found = list(read(path))
    directory.cleanup()
    assert [(r.time_ns, r.data, r.link_type) for r in found] == [(t % (2**32 * 10**9), d, 253) for t, d, _ in records]
    if suffix == ".pcapng":
        assert [r.comment or "" for r in found] == [c.encode("utf-8", "replace").decode() for _, _, c in records]


def whole_files() -> list[bytes]:
    return [
        pcap(b"abc", b"defgh"),
        section("<") + interface("<", 101) + block("<", 6, struct.pack("<IIIII", 0, 0, 0, 3, 3) + b"abc"),
    ]


@pytest.mark.parametrize("file", whole_files(), ids=["pcap", "pcapng"])
def test_cut_files_give_whole_records_and_then_an_error(file: bytes) -> None:
    everything = list(read(io.BytesIO(file)))
    offsets: list[tuple[int, int]] = []
    for size in range(len(file)):
        records: list[Record] = []
        try:
            for record in read(io.BytesIO(file[:size])):
                records.append(record)
        except nfnet.CaptureError as caught:
            offsets.append((caught.offset, size))
        assert records == everything[: len(records)]
    assert offsets
    assert all(0 <= offset <= size for offset, size in offsets)
    assert isinstance(nfnet.CaptureError("x", 0), nfnet.DecodeError)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"", "the file is empty"),
        (b"abcd" * 9, "neither pcap nor pcapng"),
        (pcap(b"abc")[:-1], "in the middle of a record"),
        (pcap()[:24] + struct.pack("<IIII", 0, 0, 1 << 30, 0), "record of 1073741824 bytes"),
        (section("<") + block("<", 6, struct.pack("<IIIII", 3, 0, 0, 0, 0)), "interface 3, which the file does not"),
        (section("<") + b"\1\0\0\0\xff\xff\xff\xff", "block of 4294967295 bytes"),
        (section("<") + interface("<", 1, (9, b"\xff")), "resolution"),
    ],
)
def test_damaged_files_are_refused(file: bytes, words: str) -> None:
    with pytest.raises(nfnet.CaptureError, match=words):
        list(read(io.BytesIO(file)))


@given(st.binary(max_size=120), st.integers(0, 120), st.sampled_from(whole_files()))
def test_any_bytes_are_records_or_a_capture_error(noise: bytes, place: int, file: bytes) -> None:
    for data in (noise, file[:place] + noise + file[place + len(noise) :], file[:4] + noise):
        try:
            total = sum(len(record.data) for record in read(io.BytesIO(data)))
            assert total <= len(data)
        except nfnet.CaptureError:
            pass


# --- replaying


def recording(path: Path, *datagrams: bytes, byteorder: str = "<", link_type: int = 253) -> Path:
    head = netlink_header.build({"family": 12}) if link_type == 253 else b""
    path.write_bytes(pcap(*(head + datagram for datagram in datagrams), byteorder=byteorder, link_type=link_type))
    return path


def test_a_queue_gets_its_own_packets_and_no_others(tmp_path: Path) -> None:
    path = recording(
        tmp_path / "mixed.pcap",
        packet_message(7, MARK=1),
        packet_message(1, num=2),
        log_message(),
        packet_message(8, MARK=2),
        nfqnl.verdict(1, 8, 0),
        nfqnl.verdict(1, 7, 1, [(nfqnl.NFQA.MARK, 5)]),
        nfqnl.verdict(2, 1, 1),
        packet_message(9),
        nfqnl.verdict(1, 9, 1, batch=True),
    )
    replay = nfnet.replay(path)
    with nfnet.Queue(1, transport=replay) as queue:
        assert [(packet.id, packet.mark) for packet in queue] == [(7, 1), (8, 2), (9, 0)]
        for packet in queue.pending:
            packet.accept(mark=packet.id)
        assert queue.counters.lost == 0
    assert replay.verdicts == {number: nfnet.GivenVerdict(1, number, None) for number in (7, 8, 9)}
    assert replay.recorded == {
        7: nfnet.GivenVerdict(1, 5, None),
        8: nfnet.GivenVerdict(0, None, None),
        9: nfnet.GivenVerdict(1, None, None),
    }


def test_recorded_verdicts_have_the_queue_apart_and_refused_ones_are_none(tmp_path: Path) -> None:
    path = recording(
        tmp_path / "queue.pcap",
        *(packet_message(number) for number in range(1, 4)),
        nfqnl.verdict(1, 1, 131075),
        nfqnl.verdict(1, 2, 0xFFFF8003, batch=True),
        nfqnl.verdict(1, 3, 2),  # STOLEN, which the kernel refuses
    )
    replay = nfnet.replay(path)
    with nfnet.Queue(1, transport=replay) as queue:
        queue.run(lambda packet: packet.requeue(2) if packet.id == 1 else packet.requeue(0xFFFF, bypass=True))
    assert replay.recorded[1].verdict is nfnet.Verdict.QUEUE
    assert replay.recorded == {
        1: nfnet.GivenVerdict(nfnet.Verdict.QUEUE, num=2),
        2: nfnet.GivenVerdict(nfnet.Verdict.QUEUE, num=0xFFFF, bypass=True),
    }
    assert replay.verdicts == {**replay.recorded, 3: replay.recorded[2]}


def test_bare_packets_replay_as_a_queue(tmp_path: Path) -> None:
    path = recording(tmp_path / "raw.pcap", ipv4(17, b"four"), ipv6(17, b"six"), link_type=101)
    with nfnet.Queue(9, transport=nfnet.replay(path)) as queue:
        found = [(packet.id, packet.family, inet.get_data(packet.payload), packet.truncated) for packet in queue]
    # The original lengths in these records are larger; the difference is no part of the packet.
    assert found == [(1, 2, b"four", False), (2, 10, b"six", False)]


@pytest.mark.parametrize("byteorder", "<>")
def test_nflog_files_of_either_byte_order_replay_as_a_log(tmp_path: Path, byteorder: str) -> None:
    message = log_message(b"payload" * 3, MARK=77)
    attributes = b"".join(
        struct.pack(f"{byteorder}HH", 4 + end - start, number) + message[start:end] + bytes(-(end - start) % 4)
        for number, start, end in layout.walk(message, 20, len(message))
    )
    path = recording(tmp_path / "log.pcap", message[16:20] + attributes, byteorder=byteorder, link_type=239)
    with nfnet.Log(5, transport=nfnet.replay(path)) as log:
        (found,) = list(log)
    assert (found.mark, found.prefix, found.payload) == (77, "test", b"payload" * 3)


def test_a_damaged_recording_gives_what_is_whole_and_then_an_error(tmp_path: Path) -> None:
    path = recording(tmp_path / "cut.pcap", packet_message(1), packet_message(2))
    path.write_bytes(path.read_bytes()[:-3])
    with nfnet.Queue(1, transport=nfnet.replay(path)) as queue:
        seen: list[int] = []
        with pytest.raises(nfnet.CaptureError, match="in the middle of a record"):
            queue.run(lambda packet: seen.append(packet.id))
        assert queue.process(lambda packet: seen.append(packet.id)) in (0, 1)
        assert seen == [1]


def test_real_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    path = tmp_path / "slow.pcap"
    writer = Writer(path, LinkType.RAW)
    for number in range(3):
        writer.write(TIME + number * 60_000_000, ipv4(17, bytes([number])))
    writer.close()
    began = time.monotonic()
    times = []
    with nfnet.Queue(1, transport=nfnet.replay(path, realtime=True)) as queue:
        for packet in queue:
            packet.accept()
            times.append(time.monotonic() - began)
    assert len(times) == 3
    assert times[1] >= 0.055
    assert times[2] >= 0.115


class Interrupted(io.RawIOBase):
    """A file, and a Ctrl-C in the n-th call of its `read`."""

    def __init__(self, file: Any, moment: int) -> None:
        self._file = file
        self._left = moment

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt
        return bytes(self._file.read(size))

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def fileno(self) -> int:
        return int(self._file.fileno())

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def close(self) -> None:
        self._file.close()


def interrupted_replay(path: Path, moment: int, monkeypatch: pytest.MonkeyPatch) -> nfnet.Replay:
    file = path.open("rb")
    with monkeypatch.context() as patches:
        patches.setattr("builtins.open", lambda *_: Interrupted(file, moment))
        return nfnet.replay(path)


@pytest.mark.parametrize("bare", [False, True])
def test_an_interrupted_replay_goes_on(tmp_path: Path, bare: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if bare:
        path = recording(tmp_path / "bare.pcap", *[ipv4(17, b"12345678")] * 4, link_type=101)
    else:
        packets = [packet_message(number, MARK=number) for number in range(1, 5)]
        path = recording(tmp_path / "queue.pcap", *packets, nfqnl.verdict(1, 4, 1, batch=True))
    moment, interrupted = 1, True
    while interrupted:
        replay, interrupted = interrupted_replay(path, moment, monkeypatch), False
        with nfnet.Queue(1, transport=replay) as queue:
            got: list[int] = []
            for _ in range(2):
                try:
                    queue.run(lambda packet: (got.append(packet.id), packet.accept()))  # noqa: B023
                except KeyboardInterrupt:
                    interrupted = True
            assert got == [1, 2, 3, 4], moment
            assert queue.counters.lost == 0
        assert list(replay.recorded) == ([] if bare else [1, 2, 3, 4])
        moment += 1
    assert moment > 8


def test_an_interrupted_replay_of_a_pipe_says_that_it_cannot_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recording(tmp_path / "queue.pcap", packet_message(1), packet_message(2)).read_bytes()
    reading, writing = os.pipe()
    os.write(writing, whole)
    os.close(writing)
    with nfnet.Queue(1, transport=interrupted_replay(Path(f"/dev/fd/{reading}"), 5, monkeypatch)) as queue:
        with pytest.raises(KeyboardInterrupt):
            queue.run(nfnet.Packet.accept)
        with pytest.raises(nfnet.CaptureError, match="only a regular file can be read again"):
            queue.run(nfnet.Packet.accept)
    os.close(reading)


def test_a_damaged_record_is_reported_and_those_behind_it_come(tmp_path: Path) -> None:
    path = tmp_path / "queue.pcap"
    head = netlink_header.build({"family": 12})
    path.write_bytes(pcap(head + packet_message(1), b"short", head + packet_message(2), link_type=253) + b"end")
    got: list[int] = []

    def handler(packet: nfnet.Packet) -> None:
        got.append(packet.id)
        packet.accept()

    with nfnet.Queue(1, transport=nfnet.replay(path)) as queue:
        with pytest.raises(nfnet.CaptureError, match="record 2: no header of netlink captures"):
            queue.run(handler)
        with pytest.raises(nfnet.CaptureError, match="in the middle"):
            queue.run(handler)
        queue.run(handler)
    assert got == [1, 2]


def test_a_closed_replay_leaves_its_descriptors_alone(tmp_path: Path) -> None:
    path = tmp_path / "slow.pcap"
    writer = Writer(path, LinkType.RAW)
    for number in range(2):
        writer.write(TIME + number * 10**12, ipv4(17, b"x"))
    writer.close()
    replay = nfnet.replay(path, realtime=True)
    queue = nfnet.Queue(1, transport=replay)
    queue.open()
    assert queue.process(nfnet.Packet.accept) == 1
    wake = replay._waiter.wake
    queue.close()
    for use in (queue.open, replay.fileno, partial(replay.send, nfqnl.verdict(1, 1, 1))):
        with pytest.raises(nfnet.ClosedError, match="the replay is closed"):
            use()
    del queue, replay, use
    gc.collect()
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(open(tmp_path / f"{n}", "wb", buffering=0)) for n in range(50)
        ]  # use their numbers
        wake()  # as the thread of a timer does that has just passed its wait
        assert [file.tell() for file in files] == [0] * 50


def test_a_replay_can_be_recorded(tmp_path: Path) -> None:
    path = recording(tmp_path / "queue.pcap", packet_message(1), packet_message(2))
    with nfnet.Queue(1, transport=nfnet.replay(path), record=tmp_path / "again.pcapng") as queue:
        queue.run(nfnet.Packet.drop)
    replay = nfnet.replay(tmp_path / "again.pcapng")
    with nfnet.Queue(1, transport=replay) as queue:
        queue.run(nfnet.Packet.drop)
    assert replay.recorded == replay.verdicts == {number: nfnet.GivenVerdict(0, None, None) for number in (1, 2)}


# --- recording


def test_what_was_flushed_is_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "session.pcapng"
    recorder = nfnet.record(path)
    recorder.tap(False, packet_message(1))
    recorder.tap(True, nfqnl.verdict(1, 1, 4, [(nfqnl.NFQA.MARK, 5)]))
    recorder.flush()
    packet, verdict = read(path)  # while it is still being written
    assert packet.data[16:] == packet_message(1)
    assert verdict.comment == "REPEAT packet 1 with another mark"
    assert path.stat().st_mode & 0o777 == 0o600
    recorder.close()
    recorder.close()
    assert len(list(read(path))) == 2


def test_a_full_disk_ends_the_recording_and_not_the_program(caplog: pytest.LogCaptureFixture) -> None:
    recorder = nfnet.record("/dev/full")
    recorder.tap(False, packet_message(1))
    recorder.flush()
    assert "the recording stops here" in caplog.text
    recorder.tap(False, packet_message(2))
    with pytest.raises(OSError, match="No space left"):
        recorder.close()


class TappedKernel(FakeKernel):
    recordable = True

    def send(self, datagram: bytes) -> None:
        super().send(datagram)
        if self.tap is not None:
            self.tap(True, datagram)


def test_a_refused_open_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "session.pcapng"
    path.write_bytes(b"precious")
    path.chmod(0o640)
    descriptors = len(os.listdir("/proc/self/fd"))
    kernel = TappedKernel()
    kernel.refuse_config = errno.ENOMEM
    with pytest.raises(nfnet.KernelError):
        nfnet.Queue(1, transport=kernel, record=path).open()
    with pytest.raises(nfnet.NfnetError):
        nfnet.Queue(1, netns=tmp_path / "no-such-namespace", record=path).open()
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"precious", 0o640)
    del kernel
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 2  # those of the waiters
    with nfnet.Queue(1, transport=TappedKernel(), record=path) as queue:
        sent = queue._bound().transport.sent[:]  # type: ignore[attr-defined]
    recorded = [record.data[16:] for record in read(path)]
    assert sent
    assert recorded[: len(sent)] == sent  # the requests that opened the queue are recorded, too
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_cannot_record_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "session.pcapng"
    second = nfnet.Queue(2, transport=TappedKernel(num=2), record=path)
    with nfnet.Queue(1, transport=TappedKernel(), record=path):
        with pytest.raises(OSError, match="another recorder is writing") as caught:
            second.open()
        assert caught.value.errno == errno.EBUSY
        child = os.fork()  # it inherits the lock and the buffered data
        if not child:
            try:
                with pytest.raises(OSError, match="another recorder is writing"):
                    nfnet.record(path)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
    whole = path.read_bytes()
    assert len(list(read(path))) >= 2
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)  # until the parent is through
        os._exit(0)
    try:
        assert path.read_bytes() == whole
        with second:
            pass
    finally:
        os.close(reading)
        os.close(writing)
        os.waitpid(child, 0)


def test_a_child_does_not_write_what_its_parent_will(tmp_path: Path) -> None:
    path = tmp_path / "session.pcapng"
    recorder = nfnet.record(path)
    recorder.tap(False, packet_message(1))
    child = os.fork()
    if not child:
        recorder._writer._stream.close()  # as the interpreter does at its end
        os._exit(0)
    os.waitpid(child, 0)
    assert path.stat().st_size == 0
    recorder.close()
    assert len(list(read(path))) == 1


def test_a_transport_is_recorded_as_long_as_the_queue_is_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kernel = TappedKernel()
    with nfnet.record(tmp_path / "session.pcapng"), nfnet.Queue(1, transport=kernel):
        assert kernel.tap is not None
    assert kernel.tap is None
    with nfnet.Queue(1, transport=TappedKernel()) as queue:
        assert queue._bound().transport.tap is None  # type: ignore[attr-defined]
    with nfnet.record(tmp_path / "another.pcapng"):
        queue = nfnet.Queue(1, transport=TappedKernel())
        queue.open()
    queue.close()  # the recording has ended before
    assert not caplog.text


def test_a_transport_that_cannot_be_recorded(tmp_path: Path) -> None:
    path = tmp_path / "session.pcapng"
    with pytest.raises(nfnet.ArgumentError, match="its transport, a FakeKernel, cannot be"):
        nfnet.Queue(1, transport=FakeKernel(), record=path).open()
    assert not path.exists()
    with nfnet.record(path), pytest.raises(nfnet.ArgumentError, match="cannot be recorded"):
        nfnet.Queue(1, transport=FakeKernel()).open()


def test_a_full_disk_does_not_keep_sockets_open() -> None:
    queue = nfnet.Queue(1, transport=TappedKernel(), timestamps=True, record="/dev/full")
    queue.open()
    stamping = queue._bound()._stamping
    assert stamping is not None
    with pytest.raises(OSError, match="No space left"):
        queue.close()
    assert not stamping.alive


@pytest.mark.parametrize("close", [False, True])
def test_a_signal_handler_records_while_its_thread_is_writing(tmp_path: Path, close: bool) -> None:
    fifo = tmp_path / "pipe.pcapng"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reading, True)
    recorder = nfnet.record(fifo)
    written: list[bytes] = []
    errors: list[Exception] = []

    def read_all() -> None:
        while data := os.read(reading, 1 << 16):
            written.append(data)

    thread = threading.Thread(target=read_all)

    def handler(*_: Any) -> None:
        try:
            recorder.tap(True, packet_message(99))
            recorder.flush()
            if close:
                recorder.close()
        except Exception as error:
            errors.append(error)
        thread.start()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)  # by then the pipe is full, and is not read
        for number in range(6):
            recorder.tap(False, packet_message(number, bytes(60_000)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    recorder.close()
    thread.join(60)
    os.close(reading)
    assert not errors
    records = [record.data[16:] for record in read(io.BytesIO(b"".join(written)))]
    assert packet_message(99) in records
    assert close or len(records) == 7


def test_large_files_take_constant_memory() -> None:
    class Endless(io.RawIOBase):
        """A pcap file without end, nearly, made as it is read."""

        def __init__(self) -> None:
            self._left = 200_000_000
            self._data = pcap()
            self._record = struct.pack("<IIII", 1, 2, 1000, 1000) + bytes(1000)

        def read(self, size: int = -1) -> bytes:
            while len(self._data) < size and self._left > 0:
                self._data += self._record
                self._left -= len(self._record)
            data, self._data = self._data[:size], self._data[size:]
            return data

    with traced() as memory:
        count = sum(1 for _ in islice(read(Endless()), 20_000))  # type: ignore[arg-type]
        assert count == 20_000
        assert memory()[1] < 1_000_000
