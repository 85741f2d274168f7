"""A short run of `make fuzz`."""

from __future__ import annotations

import random

import pytest

from . import fuzz


def test_damaged_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["fuzz", "4000", str(random.randrange(1 << 30))])
    assert fuzz.main() == 0
    assert "4,000 inputs" in capsys.readouterr().out
