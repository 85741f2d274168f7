"""What all tests share."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from .swap import turn

FIXTURES = Path(__file__).parent / "fixtures"

# What a shell starts in the background ignores Ctrl-C, and so would the programs that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Debian has nft, iptables and tcpdump where an ordinary user does not look for programs.
os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

# What counts is what is found, not how long this machine took for it.
settings.register_profile("nfnet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("nfnet")


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What leaves together does so on a machine that is busy with other things, too: it has all the time there is."""
    monkeypatch.setattr("nfnet._core.reader._MAX_DELAY", 3600.0)
    monkeypatch.setattr("nfnet._core.flusher.Flusher.watch", lambda flusher: True)


@pytest.fixture(scope="session")
def datagrams() -> dict[str, bytes]:
    """Recorded datagrams by name, as this machine would have them; see tests/fixtures/README.md."""
    rows = json.loads((FIXTURES / "datagrams.json").read_text())
    found = {name: bytes.fromhex(data) for name, _, data in rows}
    return found if sys.byteorder == "little" else {name: turn(data, "<") for name, data in found.items()}
