"""docs/kernels.md contains the results of the runs, and the results are stored correctly."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from .live import conftest, matrix
from .live.conftest import LACKS, FeatureRecorder

RUNS = sorted(matrix.RUNS.glob("*.json"))


def test_the_page_is_made_of_the_runs() -> None:
    page = matrix.page([matrix.load(path) for path in RUNS])
    assert matrix.PAGE.read_text() == page, "python -m tests.live.matrix makes it anew"


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_runs_have_no_failures(path: Path) -> None:
    """A feature that is newer than the run is "not tried" on the page."""
    run = matrix.load(path)
    assert set(run.features) <= set(matrix.names())
    assert [name for name, result in run.features.items() if result.startswith("fails")] == []
    assert run.kernel.startswith(path.stem + ".")


def test_page() -> None:
    everything = dict.fromkeys(matrix.names(), matrix.WORKS)
    new = matrix.Run((6, 12), "6.12.1", everything)
    old = matrix.Run((6, 1), "6.1.1", {**everything, "gso": "this", "nlmon": "that", "uid_gid": "this"})
    text = matrix.page([new, old])
    assert "|  | 6.1.1 | 6.12.1 |\n| --- | --- | --- |\n" in text
    assert "| gso | no (1) | yes |\n| uid_gid | no (1) | yes |\n" in text
    assert "| nlmon | no (2) | yes |\n" in text
    assert "1. this\n2. that\n" in text


def test_runs_add_up(tmp_path: Path) -> None:
    path = tmp_path / "6.1.json"
    matrix.store(path, "6.1.1", {"nlmon": "fails", "gso": "works"})
    matrix.store(path, "6.1.1", {"nlmon": "works"})
    assert matrix.load(path) == matrix.Run((6, 1), "6.1.1", {"gso": "works", "nlmon": "works"})
    matrix.store(path, "6.1.2", {"bypass": "works"})
    assert matrix.load(path).features == {"bypass": "works"}


def test_outcomes(tmp_path: Path) -> None:
    def report(feature: str, outcome: str, when: str = "call", reason: str = "") -> Any:
        longrepr = ("file", 1, f"Skipped: {reason}") if reason else None
        flags = {name: name == outcome for name in ("passed", "failed", "skipped")}
        return SimpleNamespace(
            user_properties=[("other", 1), ("feature", feature)], nodeid="x", when=when, longrepr=longrepr, **flags
        )

    recorder = FeatureRecorder(tmp_path / "6.1.json")
    for seen in (
        report("gso", "passed"),
        report("priority", "passed"),
        report("priority", "skipped", reason=LACKS + "it"),  # one of its tests is enough
        report("priority", "passed"),
        report("cgroup", "skipped", reason="no pytest here"),  # which says nothing of the kernel
        report("bypass", "failed", "setup"),
        report("bypass", "passed"),
        report("bypass", "skipped", reason=LACKS + "it"),
        report("nlmon", "passed", "setup"),
    ):
        recorder.pytest_runtest_logreport(seen)
    recorder.pytest_sessionfinish()
    run = matrix.load(tmp_path / "6.1.json")
    assert run.version == (6, 1)
    assert run.features == {"bypass": "fails: x", "gso": "works", "priority": "it"}
    assert list(run.features) == ["bypass", "gso", "priority"]


@pytest.mark.parametrize(
    ("arguments", "outcome"),
    [
        ({}, pytest.skip.Exception),
        ({"option": "CONFIG_NFT"}, pytest.skip.Exception),  # though CONFIG_NFT_LOG is there
        ({"option": "CONFIG_NFT_LOG"}, pytest.fail.Exception),
        ({"option": "CONFIG_VETH"}, pytest.fail.Exception),
        ({"option": "CONFIG_NLMON"}, pytest.skip.Exception),
        ({"since": (6, 2)}, pytest.skip.Exception),
        ({"since": (6, 1)}, pytest.fail.Exception),
        ({"since": (5, 18)}, pytest.fail.Exception),
    ],
)
def test_no_excuses(monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], outcome: Any) -> None:
    configuration = {"CONFIG_NFT_LOG=y", "CONFIG_VETH=m", "# CONFIG_NLMON is not set"}
    monkeypatch.setattr(conftest, "kernel_version", lambda: (6, 1))
    monkeypatch.setattr(conftest, "kernel_configuration", lambda: configuration)
    with pytest.raises(outcome, match="something"):
        conftest.kernel_lacks("something", **arguments)
