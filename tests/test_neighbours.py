"""Hostile neighbours: names that command a terminal, links in /tmp, captures that want to be large or code."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import os
import sqlite3
import stat
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import capture, cli, doctor, files, metrics, rules, testing
from nfnet.capture import LinkType, Writer, read
from nfnet.cli import decode, lines
from nfnet.cli import log as log_command
from nfnet.log import LogMessage
from nfnet.netns import Netns
from nfnet.protocol import nfqnl
from nfnet.stats import LogRow, QueueRow
from nfnet.text import printable

from .conftest import FIXTURES
from .test_capture import block, interface, pcap, section

NASTY = "\x1b[2J\x9b31m\n\r\x07\u202e\u2066\udc9b\udcff\0"
NASTY_BYTES = NASTY.encode("utf-8", "surrogateescape")


def is_harmless(text: str) -> bool:
    return all(c == "\n" or c.isprintable() for c in text)


# --- files


def make(path: Path) -> None:
    Writer(path, LinkType.RAW).close()


@pytest.fixture
def everybodys(tmp_path: Path) -> Path:
    """A directory like /tmp."""
    directory = tmp_path / "everybodys"
    directory.mkdir()
    directory.chmod(0o1777)
    return directory


def test_captures_are_for_their_owner_even_over_an_older_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make(tmp_path / "new.pcap")
        old = tmp_path / "old.pcap"
        old.write_bytes(b"x" * 1000)
        old.chmod(0o666)
        make(old)
    finally:
        os.umask(before)
    for path in (tmp_path / "new.pcap", old):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_size == 24


def test_links_of_ours_are_followed(everybodys: Path, tmp_path: Path) -> None:
    (everybodys / "link.pcap").symlink_to(tmp_path / "target.pcap")
    make(everybodys / "link.pcap")
    assert (tmp_path / "target.pcap").stat().st_size == 24
    make(Path("/dev/null"))


@pytest.mark.skipif("os.geteuid() != 0", reason="only root makes files of others")
def test_links_and_files_of_others_are_refused_where_everybody_may_make_them(everybodys: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    link = everybodys / "link.pcap"
    link.symlink_to(precious)
    os.lchown(link, 12345, 12345)
    with pytest.raises(PermissionError, match="somebody else's"):
        make(link)
    dangling = everybodys / "dangling.pcap"
    dangling.symlink_to(tmp_path / "nologin")
    os.lchown(dangling, 12345, 12345)
    with pytest.raises(PermissionError, match="somebody else's"):
        make(dangling)
    assert not (tmp_path / "nologin").exists()
    theirs = everybodys / "theirs.pcap"
    theirs.write_bytes(b"theirs")
    os.chown(theirs, 12345, 12345)
    with pytest.raises(PermissionError, match="somebody else's"):
        make(theirs)
    assert (precious.read_bytes(), theirs.read_bytes()) == (b"precious", b"theirs")
    everybodys.chmod(0o755)  # where they could have done nothing
    make(link)
    assert precious.stat().st_size == 24


def test_a_database_keeps_what_is_in_it(tmp_path: Path) -> None:
    file = tmp_path / "log.db"
    file.write_bytes(b"x")
    os.close(files.create(file, truncate=False))
    assert file.read_bytes() == b"x"
    os.close(files.create(tmp_path / "new.db", truncate=False))
    assert stat.S_IMODE((tmp_path / "new.db").stat().st_mode) == 0o600
