"""Entries in the native protocol of the systemd journal, read by a separate parser. tests/live has a real journald."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfnet import collect
from nfnet.collect import Batch, Session
from nfnet.collect.journal import Journal, field_name

from .collector import SESSION, batch, message
from .test_syslog import NASTY, PREFIXES


def parse(data: bytes) -> list[tuple[str, bytes]]:
    """Parse an entry, according to systemd's documentation (JOURNAL_NATIVE_PROTOCOL)."""
    found = []
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, end, rest = rest[8 : 8 + size], rest[8 + size : 9 + size], rest[9 + size :]
            assert (len(value), end) == (size, b"\n")
        # The names that journald accepts; it ignores other fields without an error.
        assert re.fullmatch(rb"[A-Z][A-Z0-9_]{0,63}", name), name
        found.append((name.decode(), value))
        data = rest
    return found


@given(PREFIXES, st.dictionaries(NASTY, NASTY, max_size=3), st.integers(0, 5))
def test_every_entry_can_be_read(prefix: str, labels: dict[str, str], lost: int) -> None:
    try:
        one = message(3, prefix=prefix)
    except UnicodeEncodeError:  # no prefix contains a surrogate that represents no byte
        return
    entries = [parse(data) for data in Journal().encode(Batch(SESSION, [one], lost, labels=labels))]
    assert len(entries) == 1 + bool(lost)
    values = dict(entries[-1])
    assert values["NFNET_PREFIX"].decode() == one.prefix.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    assert values["NFNET_EVENT_SEQUENCE"] == b"3"
    assert values["PRIORITY"] == b"6"
    assert values["MESSAGE"].decode().isprintable()
    for entry in entries:
        names = [name for name, _ in entry]
        assert names[:3] == ["MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"]
        assert all(name.startswith("NFNET_") for name in names[3:])


def test_names_of_fields() -> None:
    assert field_name("nfnet.prefix") == "NFNET_PREFIX"
    assert field_name("source.ip") == "NFNET_SOURCE_IP"
    assert field_name("@timestamp") == "NFNET_TIMESTAMP"
    assert field_name("labels.größe-1") == "NFNET_LABELS_GR_E_1"


def test_a_loss_is_an_entry() -> None:
    first, _ = Journal(severity=7, identifier="wall").encode(batch(9, lost=4))
    values = dict(parse(first))
    assert values["MESSAGE"] == b"4 messages of group 5 lost"
    assert (values["PRIORITY"], values["SYSLOG_IDENTIFIER"], values["NFNET_LOST"]) == (b"4", b"wall", b"4")
    assert values["NFNET_EVENT_ACTION"] == b"messages-lost"


def test_what_is_too_large_for_a_datagram_comes_as_a_sealed_file(tmp_path: Path) -> None:
    path, label = str(tmp_path / "socket"), "x" * 1_000_000
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        server.settimeout(10)
        output = collect.output(f"journal:{path}")
        output.begin()
        output.write(Batch(Session("h", "b", 5, 1), [message(1)], labels={"long": label}))
        data, (fd, *others), _, _ = socket.recv_fds(server, 1 << 20, 8)
        output.close()
    try:
        assert (data, others) == (b"", [])
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        values = dict(parse(os.pread(fd, 1 << 21, 0)))
    finally:
        os.close(fd)
    assert values["NFNET_LABELS_LONG"] == label.encode()
