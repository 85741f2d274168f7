"""Two threads that decide the same packet at once: see `tests.lockstep`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from nfnet._io.system import GIL

from .lockstep import run

ROOT = Path(__file__).parents[1]


def test_two_threads_that_decide_the_same_packet_at_once() -> None:
    assert run(3000 if GIL else 30_000) == []


def test_what_free_threaded_builds_do_in_this_one() -> None:
    """What is chosen when the package is imported, in a program that thinks that several threads execute at a time."""
    code = "import sys; sys._is_gil_enabled = lambda: False; from tests.lockstep import run; print(run(1000))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("[]\n", "")
