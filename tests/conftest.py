"""Settings and fixtures of all tests."""

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

# A shell starts background processes with SIGINT ignored. Programs that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Debian installs nft, iptables and tcpdump in directories that are not in an ordinary user's PATH.
os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

# A slow machine is no failure.
settings.register_profile("nfnet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("nfnet")


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let verdicts that are sent together be sent together on a busy machine, too: none is sent because time is up."""
    monkeypatch.setattr("nfnet._core.reader._MAX_DELAY", 3600.0)
    monkeypatch.setattr("nfnet._core.flusher.Flusher.watch", lambda flusher: True)


@pytest.fixture(scope="session")
def datagrams() -> dict[str, bytes]:
    """Recorded datagrams by name, as this machine would have them; see tests/fixtures/README.md."""
    rows = json.loads((FIXTURES / "datagrams.json").read_text())
    found = {name: bytes.fromhex(data) for name, _, data in rows}
    return found if sys.byteorder == "little" else {name: turn(data, "<") for name, data in found.items()}
