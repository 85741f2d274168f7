"""docs/interpreters.md contains the results of the runs."""

from __future__ import annotations

import json
from pathlib import Path

from . import interpreters
from .interpreters import Run


def test_the_page_is_made_of_the_runs() -> None:
    assert interpreters.PAGE.read_text() == interpreters.page(interpreters.runs()), "python -m tests.interpreters"


def test_page() -> None:
    live = {"tests/live/test_b.py": (7, 0, ["test_x"])}
    text = interpreters.page(
        [
            Run("CPython 3.15.2", {"tests/test_a.py": (1200, 1, []), **live}, (199, 200), {"a": 0.9, "b": 1.1, "c": 1}),
            Run("PyPy 8", {"tests/test_a.py": (3, 0, [])}),
        ]
    )
    assert "| CPython 3.15.2 | 1,200 in 1 files | 7 in 1 files, 1 failed | 199 of 200 | 0.90 to 1.10 |\n" in text
    assert "| PyPy 8 | 3 in 1 files | not run | not run | not measured |\n" in text
    assert "- CPython 3.15.2, tests/live/test_b.py: test_x\n" in text


def test_runs_add_up(tmp_path: Path) -> None:
    path = tmp_path / "3.15.json"
    interpreters.store(path, Run("CPython 3.15.1", {"b": (1, 0, ["old"])}))
    interpreters.store(path, Run("CPython 3.15.1", {}, (10, 10)))
    interpreters.store(path, Run("CPython 3.15.1", {"a": (2, 1, [])}, ratios={"accept": 0.9}))
    files = {"a": (2, 1, []), "b": (1, 0, ["old"])}
    assert interpreters.load(path) == Run("CPython 3.15.1", files, [10, 10], {"accept": 0.9})
    interpreters.store(path, Run("CPython 3.15.2", {"b": (3, 0, [])}))
    assert interpreters.load(path) == Run("CPython 3.15.2", {"b": (3, 0, [])}, [])


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    """Who has opened the old one, in another run, reads it to its end."""
    path = tmp_path / "3.15.json"
    interpreters.store(path, Run("CPython 3.15.1", {"a": (1, 0, [])}))
    with path.open() as old:
        interpreters.store(path, Run("CPython 3.15.1", {"b": (2, 0, [])}))
        assert old.read() == json.dumps(Run("CPython 3.15.1", {"a": (1, 0, [])})._asdict(), indent=1) + "\n"
    assert list(tmp_path.iterdir()) == [path]


def test_outcome(tmp_path: Path) -> None:
    path = tmp_path / "test_sample.py"
    path.write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\n@pytest.mark.skip\ndef test_c(): pass\n"
    )
    assert interpreters.outcome(str(path)) == (1, 1, ["test_b"])
