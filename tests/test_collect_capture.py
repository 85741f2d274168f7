"""Capture files of the collector: rotated, moved, begun by other programs. tshark reads each of them."""

from __future__ import annotations

import gzip
import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfnet import captures, collect
from nfnet.collect import OutputError
from nfnet.collect.capture import Capture

from .collector import batch, numbers, outputs
from .test_tshark import tshark as tshark  # the fixture

Make = Callable[..., collect.Output]


@pytest.fixture(params=["pcapng", "pcap"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"log.{request.param}"


@pytest.fixture
def make(file: Path) -> Iterator[Make]:
    with outputs(file) as make:
        yield make


def records(*files: Path) -> list[int]:
    """Sequence numbers, as our reader finds them."""
    found = []
    for file in files:
        if file.suffix == ".gz":
            unpacked = file.with_name(f"{file.name}.unpacked")
            unpacked.write_bytes(gzip.decompress(file.read_bytes()))
            file = unpacked
        with collect_log(file) as log:
            found += [int(message.prefix) for message in log]
    return found


def collect_log(file: Path) -> Any:
    import nfnet

    return nfnet.Log(5, transport=nfnet.replay(file))


def rotated(file: Path) -> list[Path]:
    return sorted(file.parent.glob(f"{file.name}.2*"))


def fields(tshark: str, file: Path, *names: str) -> list[list[str]]:
    """Return the fields that tshark reads in a file; it must not report errors."""
    options = [option for name in names for option in ("-e", name)]
    done = subprocess.run([tshark, "-r", str(file), "-T", "fields", *options], capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if "Running as user" not in line]
    assert (done.returncode, complaints) == (0, [])
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.mark.parametrize("compress", [False, True])
def test_each_rotated_file_is_a_capture_by_itself(make: Make, file: Path, compress: bool, tshark: str) -> None:
    output = make(rotate_size="400", keep=50, compress=compress)
    for number in range(20):
        output.write(batch(number, lost=int(number == 7)))
    output.close()
    make(compress=True).close() if compress else None  # rotated files that the thread had not compressed yet
    files = rotated(file)
    assert len(files) > 2
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in files)
    if compress:
        assert all(each.suffix == ".gz" for each in files)
    read = [line for each in (*files, file) for line in fields(tshark, each, "nflog.prefix", "frame.comment")]
    prefixes = [prefix for prefix, *_ in read]
    expected = [*map(str, range(7)), "nfnet: 1 message lost", *map(str, range(7, 20))]
    assert prefixes == expected
    if file.suffix == ".pcapng":
        assert [comment for _, comment in read] == expected


def test_a_file_of_another_process_is_renamed_and_kept(make: Make, file: Path) -> None:
    for number in range(3):
        output = make()
        output.write(batch(number))
        output.close()
    make().close()  # no messages: the next output finds only a header, and renames that file, too
    found = [records(each) for each in rotated(file)]
    assert found == [[0], [1], [2]]
    assert records(file) == []


def test_a_file_that_is_moved_away_is_followed_by_a_new_one(make: Make, file: Path, tmp_path: Path) -> None:
    output = make()
    output.write(batch(1))
    file.rename(tmp_path / f"moved1{file.suffix}")
    output.write(batch(2))
    file.rename(tmp_path / f"moved2{file.suffix}")
    file.touch(0o600)  # as logrotate does with "create"
    output.reopen()
    output.write(batch(3))
    output.reopen()  # the file is unchanged: the output continues it
    output.write(batch(4))
    with file.open("r+b") as truncated:
        truncated.truncate(0)  # as logrotate does with "copytruncate"
    output.write(batch(5))
    assert [records(tmp_path / f"moved{n}{file.suffix}") for n in (1, 2)] == [[1], [2]]
    assert records(file) == [5]
    assert rotated(file) == []


def test_a_file_that_others_put_there_is_kept(make: Make, file: Path) -> None:
    output = make()
    output.write(batch(1))
    file.unlink()
    file.write_bytes(b"precious")
    output.write(batch(2))
    (precious,) = rotated(file)
    assert precious.read_bytes() == b"precious"
    assert records(file) == [2]


def test_a_file_is_made_anew_if_that_is_asked_for(file: Path) -> None:
    file.write_bytes(b"what was there")
    output = Capture(str(file), anew=True)
    assert file.read_bytes() == b"what was there"
    output.begin()
    output.write(batch(1))
    output.close()
    assert records(file) == [1]
    assert rotated(file) == []


def test_a_write_that_fails_leaves_no_half_record(make: Make, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    output, write = make(), os.write
    output.write(batch(1))

    def full(fd: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(28, "No space left on device")
        return write(fd, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        output.write(batch(2, 3))
    assert not caught.value.lasting
    monkeypatch.undo()
    output.write(batch(2, 3))
    assert records(file) == [1, 2, 3]


def test_prefixes_of_any_bytes_are_comments(tmp_path: Path, tshark: str) -> None:
    from .collector import SESSION, message

    file = tmp_path / "log.pcapng"
    output = collect.output(str(file))
    output.begin()
    prefixes = ["über: ", b"\xff\xfe!".decode("utf-8", "surrogateescape"), "a\tb\x1b[31m\n"]
    output.write(collect.Batch(SESSION, [message(n, prefix=prefix) for n, prefix in enumerate(prefixes)]))
    output.close()
    assert [record.comment for record in captures.read(file)] == ["über: ", "\ufffd\ufffd!", "a\tb\x1b[31m\n"]
    done = subprocess.run([tshark, "-r", str(file), "-T", "json"], capture_output=True, text=True, check=True)
    frames = [frame["_source"]["layers"] for frame in json.loads(done.stdout)]
    assert [str(frame).count("über: ") > 0 for frame in frames] == [True, False, False]


def test_standard_output_is_a_capture(tshark: str) -> None:
    """``nfnet collect --to pcapng:- | tshark -r -``."""
    program = (
        "from nfnet import collect; from tests.test_collect import batch\n"
        "output = collect.output('pcapng:-'); output.begin(); output.write(batch(1)); output.write(batch(2))"
    )
    made = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout
    done = subprocess.run([tshark, "-r", "-", "-T", "fields", "-e", "nflog.prefix"], input=made, capture_output=True)
    assert done.stdout.split() == [b"1", b"2"]


# --- lines that were cut short


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        (b'{"@timestamp": "2026-11-27T', b""),  # ours: it goes
        (b'{"@tim', b""),
        (b"{", b""),
        (b'{"@timestamp": "' + b"x" * 100_000, b""),
        (b"somebody's own words", b"somebody's own words\n"),
        (b"", b""),
    ],
)
def test_a_line_that_was_cut_short_does_not_spoil_the_next_one(
    left: bytes, kept: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "log.jsonl"
    output = collect.output(str(file))
    output.begin()
    output.write(batch(1))
    output.close()
    whole = file.read_bytes()
    file.write_bytes(whole + left)
    output = collect.output(str(file))
    output.begin()
    output.write(batch(2))
    output.close()
    data = file.read_bytes()
    assert data.startswith(whole + kept)
    assert bool(caplog.messages) == (left != b"" and kept == b"")
    shutil.copy(file, tmp_path / "copy")
    file.write_bytes(data.replace(kept, b"") if kept else data)
    assert numbers(file) == [1, 2]


def test_a_part_of_a_record_that_a_killed_process_left_is_removed(
    make: Make, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At every place where it can have been cut: what is whole stays, and the file can be read to its end."""
    output = make()
    header = file.stat().st_size
    output.write(batch(1))
    first = file.stat().st_size
    output.write(batch(2))
    output.close()
    data = file.read_bytes()
    expected = {0: [3], header: [3], first: [1, 3], len(data): [1, 2, 3]}
    for size in sorted({*range(1, len(data), 5), *expected, header - 1, header + 1, first + 1, len(data) - 1}):
        for each in rotated(file):
            each.unlink()
        file.write_bytes(data[:size])
        caplog.clear()
        output = make()
        output.write(batch(3))
        output.close()
        whole = max(place for place in expected if place <= size)
        assert [each.read_bytes() for each in rotated(file)] == ([data[:whole]] if whole else [])
        assert records(*rotated(file), file) == expected[whole]
        assert bool(caplog.messages) == (whole < size and whole > 0)


def test_a_part_of_a_record_is_removed_before_the_file_is_compressed(make: Make, file: Path, tshark: str) -> None:
    output = make()
    output.write(batch(1, 2))
    output.close()
    file.write_bytes(file.read_bytes()[:-7])
    make(compress=True).close()
    (compressed,) = rotated(file)
    assert compressed.suffix == ".gz"
    assert fields(tshark, compressed, "nflog.prefix") == [["1"]]


@pytest.mark.parametrize("damage", [bytes(100), b"\xff" * 100])
def test_what_is_no_part_of_a_record_is_kept(make: Make, file: Path, damage: bytes) -> None:
    output = make()
    output.write(batch(1))
    output.close()
    data = file.read_bytes() + damage
    file.write_bytes(data)
    make().close()
    assert [each.read_bytes() for each in rotated(file)] == [data]
