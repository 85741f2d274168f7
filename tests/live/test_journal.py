"""The systemd journal: what a real journald stores of the collector's messages, and what happens while it is down."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfnet import rules

from .collecting import burst, collecting, finish
from .conftest import TIMEOUT, said, wait_for
from .syslog_servers import Journald, directory
from .traffic import PORT, Way, logging


@pytest.fixture
def journald(net: Any) -> Iterator[Journald]:
    """After the network, for which an ordinary user became root of a namespace."""
    with directory() as where:
        server = Journald(where)
        server.start()
        yield server
        server.stop()


def numbers(server: Journald) -> list[int]:
    return [int(entry["NFNET_EVENT_SEQUENCE"]) for entry in server.entries() if "NFNET_EVENT_SEQUENCE" in entry]


def test_fields_are_in_the_journal(way: Way, journald: Journald) -> None:
    settings = ("severity=notice",)
    with logging(way.net), collecting(way, "--to", f"journal:{journald.path}", *settings) as process:
        burst(way, 20)
        assert wait_for(lambda: numbers(journald) == list(range(20)))
        assert finish(process) == "20 messages\n"
    first = journald.entries()[0]
    assert first["MESSAGE"].startswith("said: to-client > to-server UDP 10.81.1.1.")
    assert first["PRIORITY"] == "5"
    assert first["NFNET_PREFIX"] == "said: "
    assert first["NFNET_SOURCE_IP"] == "10.81.1.1"
    assert first["NFNET_DESTINATION_PORT"] == str(PORT)
    assert first["NFNET_OBSERVER_INGRESS_INTERFACE_NAME"] == "to-client"
    assert first["_PID"] == str(process.pid)
    assert first["_TRANSPORT"] == "journal"
    assert len(journald.entries("NFNET_SOURCE_IP=10.81.1.1")) == 20  # journalctl can select by them
    assert journald.entries("NFNET_SOURCE_IP=10.81.1.9") == []


PREFIXES = {
    "line ends": ("a\nMESSAGE=forged\nb", "a\nMESSAGE=forged\nb"),
    "control characters": ("\x1b[31mred", "\x1b[31mred"),
    "no UTF-8": (b"\xff\xfe".decode("utf-8", "surrogateescape"), "\ufffd\ufffd"),
}


@pytest.mark.parametrize("what", PREFIXES)
def test_prefixes_of_any_bytes(way: Way, journald: Journald, what: str) -> None:
    prefix, stored = PREFIXES[what]
    rule = rules.log(5, prefix=prefix, hook="forward", protocol="udp", netns=way.net.hosts["router"])
    with rule, collecting(way, "--to", f"journal:{journald.path}") as process:
        burst(way, 1)
        assert wait_for(lambda: len(journald.entries()) == 1)
        finish(process)
    (entry,) = journald.entries()
    found = entry["NFNET_PREFIX"]
    if isinstance(found, list):  # of bytes, for unprintable values
        found = bytes(found).decode()
    assert found == stored
    assert "forged" not in str(entry["MESSAGE"]) or "[0a]MESSAGE=forged" in entry["MESSAGE"]


def test_what_is_too_large_for_a_datagram(way: Way, journald: Journald, tmp_path: Path) -> None:
    config = tmp_path / "collect.toml"
    config.write_text(f'[labels]\nlong = "{"x" * 500_000}"\n')
    with logging(way.net), collecting(way, "--config", config, "--to", f"journal:{journald.path}") as process:
        burst(way, 3)
        assert wait_for(lambda: numbers(journald) == [0, 1, 2])
        finish(process)
    assert [len(entry["NFNET_LABELS_LONG"]) for entry in journald.entries()] == [500_000] * 3


def test_a_journald_that_is_stopped_and_started_gets_all(way: Way, journald: Journald) -> None:
    with logging(way.net), collecting(way, "--to", f"journal:{journald.path}") as process:
        burst(way, 10)
        assert wait_for(lambda: numbers(journald) == list(range(10)))
        journald.stop()
        burst(way, 10)
        assert process.stderr is not None
        wait_line(process.stderr.readline, "messages are kept, to be stored later")
        burst(way, 10)
        journald.start()
        assert wait_for(lambda: numbers(journald) == list(range(10, 30)))  # it has a new and empty journal
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert said(errors).endswith("30 messages\n")


def wait_line(readline: Callable[[], str], text: str) -> None:
    while text not in (line := readline()):
        assert line, "the collector has ended"


def test_syslog_messages_in_the_local_format_are_understood(way: Way, journald: Journald) -> None:
    """At /dev/log of most machines it is journald that listens."""
    to = ("--to", f"syslog:{journald.local}", "format=local", "facility=local2")
    with logging(way.net), collecting(way, *to) as process:
        burst(way, 3)
        assert wait_for(lambda: len(journald.entries()) == 3)
        finish(process)
    first = journald.entries()[0]
    assert first["MESSAGE"].startswith("said: to-client > to-server UDP 10.81.1.1.")
    assert (first["PRIORITY"], first["SYSLOG_FACILITY"]) == ("6", "18")
    assert first["SYSLOG_PID"] == str(process.pid)
