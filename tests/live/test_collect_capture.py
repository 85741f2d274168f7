"""Captures of the collector under logrotate: nothing is lost or repeated, and tshark reads each file by itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nfnet

from ..test_collect_capture import fields
from .collecting import collecting, finish, sending
from .conftest import TIMEOUT, wait_for
from .programs import program
from .traffic import Way, logging


def test_logrotate(way: Way, tmp_path: Path) -> None:
    logrotate, tshark = program("logrotate"), program("tshark")
    directory = tmp_path / "logs"
    directory.mkdir(mode=0o700)
    file = directory / "log.pcapng"
    with logging(way.net), collecting(way, "--to", file) as process, sending(way):
        config = tmp_path / "logrotate.conf"
        signal = f"postrotate\nkill -HUP {process.pid}\nendscript"
        config.write_text(f"{file} {{\nrotate 50\ncreate\n{signal}\n}}\n")
        config.chmod(0o600)
        for turn in range(4):
            assert wait_for(lambda: file.exists() and file.stat().st_size > 5000)
            command = [logrotate, "--force", "--state", str(tmp_path / "state"), str(config)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
            assert (done.returncode, done.stderr) == (0, ""), turn
        finish(process)
    files = sorted(directory.iterdir(), key=lambda path: -int(path.suffix[1:]) if path.suffix[1:].isdecimal() else 0)
    assert len(files) == 5
    numbers = []
    for each in files:
        with nfnet.Log(5, transport=nfnet.replay(each)) as log:
            found = [message.seq for message in log]
        assert [line[0] for line in fields(tshark, each, "nflog.prefix")] == ["said: "] * len(found)
        numbers += found
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 100
