"""A short run of `python -m tests.kills`."""

from __future__ import annotations

from pathlib import Path

from .. import kills
from .conftest import UID, cannot_run


def test_every_packet_is_accounted_for_after_each_kill(privileges: str | None, tmp_path: Path) -> None:
    if UID:
        cannot_run(privileges or "only root of the machine may make a network namespace here")
    report = kills.run(3, tmp_path)
    assert "database: " in report
