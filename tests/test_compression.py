"""Compressed captures: of each format, in several members, damaged, cut, from pipes, and much larger inside."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import testing
from nfnet.captures import LinkType, Record, _compression, is_capture, read, scan

from .conftest import FIXTURES
from .frames import write_pcap
from .memory import traced

COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}
HAS_ZSTD = sys.version_info >= (3, 14)
if HAS_ZSTD:
    COMPRESS["zstd"] = lambda data: bytes(import_module("compression.zstd").compress(data))
EACH = pytest.mark.parametrize("name", COMPRESS)
PACKETS = [testing.udp(bytes([number]) * number) for number in range(1, 40)]


def plain(path: Path) -> bytes:
    return write_pcap(path, LinkType.RAW, *PACKETS).read_bytes()


def records(data: bytes) -> list[Record | nfnet.CaptureError | None]:
    return list(scan(io.BytesIO(data)))


@EACH
def test_a_compressed_capture_reads_as_what_is_in_it(name: str, tmp_path: Path) -> None:
    data = plain(tmp_path / "file.pcap")
    squeezed = COMPRESS[name](data)
    assert is_capture(squeezed[:4])
    assert records(squeezed) == records(data)
    path = tmp_path / "file.compressed"  # the name does not matter
    path.write_bytes(squeezed)
    with nfnet.Queue(1, transport=nfnet.replay(path)) as queue:
        assert [packet.payload for packet in queue] == PACKETS
    for source in sorted(FIXTURES.glob("*.pcapng"))[:3]:
        assert records(COMPRESS[name](source.read_bytes())) == list(read(source))


@EACH
def test_several_members_and_padding(name: str, tmp_path: Path) -> None:
    data = plain(tmp_path / "file.pcap")
    squeeze = COMPRESS[name]
    members = [squeeze(data[start : start + 100]) for start in range(0, len(data), 100)]
    assert records(b"".join(members) + bytes(512)) == records(data)
    assert records(squeeze(b"") + bytes(4) + bytes(4).join(members)) == records(data)


@EACH
def test_a_compressed_capture_that_was_cut(name: str, tmp_path: Path) -> None:
    data = plain(tmp_path / "file.pcap")
    squeezed = COMPRESS[name](data)
    whole = records(data)
    for size in range(4, len(squeezed), 7):
        *before, last = records(squeezed[:size])
        assert before == whole[: len(before)]
        assert isinstance(last, nfnet.CaptureError)
        assert f"in the middle of its {name} data" in str(last), size


@EACH
def test_a_compressed_capture_that_is_damaged(name: str, tmp_path: Path) -> None:
    data = plain(tmp_path / "file.pcap")
    squeezed = COMPRESS[name](data)
    chance = random.Random(7)
    for _ in range(200):
        bad = bytearray(squeezed)
        bad[chance.randrange(4, len(bad))] ^= 1 << chance.randrange(8)
        found = records(bytes(bad))
        assert all(isinstance(item, (Record, nfnet.CaptureError)) for item in found)
    found = records(squeezed + b"something else")
    assert found[:-1] == records(data)
    assert isinstance(found[-1], nfnet.CaptureError)
    assert f"the {name} data are damaged" in str(found[-1])


@EACH
def test_a_large_file_in_a_small_one_takes_little_memory(name: str) -> None:
    """A file of a megabyte can be one of gigabytes inside."""
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101)
    record = struct.pack("<IIII", 1, 2, 1 << 16, 1 << 16) + bytes(1 << 16)
    data = COMPRESS[name](header + record * 800)
    assert len(data) < 100_000
    with traced() as memory:
        assert sum(1 for _ in scan(io.BytesIO(data))) == 800
        assert memory()[1] < 16 << 20  # of which xz has 8 for its dictionary


def test_a_dictionary_of_xz_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file can request 4 GiB. The test lowers the limit instead of using a large dictionary."""
    monkeypatch.setattr(_compression, "_MEMORY", 1 << 16)
    (error,) = records(lzma.compress(b"x" * 100))
    assert isinstance(error, nfnet.CaptureError)
    assert "the xz data are damaged: " in str(error)  # and the words of liblzma, which PyPy does not know


@pytest.mark.parametrize("name", ["zstd", "lz4"])
def test_what_this_python_cannot_read_is_named_with_the_way_out(name: str) -> None:
    if name == "zstd" and HAS_ZSTD:
        pytest.skip("this Python reads it")
    magic = {"zstd": b"\x28\xb5\x2f\xfd", "lz4": b"\x04\x22\x4d\x18"}[name]
    (error,) = records(magic + bytes(100))
    assert isinstance(error, nfnet.CaptureError)
    assert f"compressed with {name}, which this Python cannot read" in str(error)
    assert f"{name} -dc FILE | nfnet replay -" in str(error)


def test_a_python_without_a_module_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python can be built without bz2 and lzma."""
    monkeypatch.setitem(sys.modules, "bz2", None)
    (error,) = records(bz2.compress(b"x"))
    assert "compressed with bzip2, which this Python cannot read" in str(error)


@EACH
def test_a_pipe_gives_packets_as_they_come(name: str, tmp_path: Path) -> None:
    """Each piece is a separate member, as after a flush."""
    data, half = plain(tmp_path / "file.pcap"), 24 + 16 + len(PACKETS[0])
    reading, writing = os.pipe()
    os.write(writing, COMPRESS[name](data[:half]))
    seen: list[bytes] = []

    def handler(packet: nfnet.Packet) -> None:
        seen.append(packet.payload)
        if len(seen) == 1:  # and only then the rest arrives
            os.write(writing, COMPRESS[name](data[half:]))
            os.close(writing)

    with nfnet.Queue(1, transport=nfnet.replay(f"/dev/fd/{reading}")) as queue:
        os.close(reading)
        queue.run(handler)
    assert seen == PACKETS


@pytest.mark.parametrize("name", ["gzip", "xz"])
def test_standard_input(name: str, tmp_path: Path) -> None:
    data = COMPRESS[name](plain(tmp_path / "file.pcap"))
    command = [sys.executable, "-m", "nfnet", "replay", "-"]
    done = subprocess.run(command, input=data, capture_output=True, timeout=60)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, len(PACKETS)), done.stderr


@EACH
def test_an_interrupted_replay_reads_the_file_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(COMPRESS[name](plain(tmp_path / "file.pcap")))
    replay = nfnet.replay(path)
    real, calls = _compression._Decompressed._read, iter(range(100))

    def interrupted(self: Any, size: int) -> bytes | None:
        if next(calls) == 0:
            raise KeyboardInterrupt
        return real(self, size)

    monkeypatch.setattr(_compression._Decompressed, "_read", interrupted)
    seen: list[bytes] = []
    with nfnet.Queue(1, transport=replay) as queue:
        with pytest.raises(KeyboardInterrupt):
            queue.run(lambda packet: seen.append(packet.payload))
        queue.run(lambda packet: seen.append(packet.payload))
    assert seen == PACKETS


def test_reading_a_compressed_file_is_not_slow(tmp_path: Path) -> None:
    """Records are taken out of pieces that were decompressed at once, not one by one."""
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101)
    data = header + (struct.pack("<IIII", 1, 2, 28, 28) + PACKETS[0][:28]) * 20_000
    counts = []
    real = _compression._Decompressed._read
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(
            _compression._Decompressed, "_read", lambda self, size: (counts.append(size), real(self, size))[1]
        )
        assert len(records(gzip.compress(data))) == 20_000
    assert len(counts) < 100
