"""What all tests share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import settings

FIXTURES = Path(__file__).parent / "fixtures"

# What counts is what is found, not how long this machine took for it.
settings.register_profile("nfnet", deadline=None)
settings.load_profile("nfnet")


@pytest.fixture(scope="session")
def datagrams() -> dict[str, bytes]:
    """Recorded datagrams by name; see tests/fixtures/README.md."""
    rows = json.loads((FIXTURES / "datagrams.json").read_text())
    return {name: bytes.fromhex(data) for name, _, data in rows}
