"""Captures of the collector under logrotate: nothing is lost or repeated, and tshark reads each file by itself."""

from __future__ import annotations

from pathlib import Path

import nfnet

from ..test_collect_capture import fields
from .collecting import collecting, finish, rotate, rotated, sending
from .programs import program
from .traffic import Way, logging


def test_logrotate(way: Way, tmp_path: Path) -> None:
    tshark = program("tshark")
    directory = tmp_path / "logs"
    directory.mkdir(mode=0o700)
    file = directory / "log.pcapng"
    with logging(way.net), collecting(way, "--to", file) as process, sending(way):
        rotate(file, f"create\npostrotate\nkill -HUP {process.pid}\nendscript", 4)
        finish(process)
    files = rotated(file)
    assert len(files) == 5
    numbers = []
    for each in files:
        with nfnet.Log(5, transport=nfnet.replay(each)) as log:
            found = [message.seq for message in log]
        assert [line[0] for line in fields(tshark, each, "nflog.prefix")] == ["said: "] * len(found)
        numbers += found
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 100
