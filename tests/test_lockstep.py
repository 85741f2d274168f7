"""Two threads that decide the same packet at once: see `tests.lockstep`."""

from __future__ import annotations

import dis
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

from nfnet import Packet
from nfnet._io.system import SWITCHES_ANYWHERE

from .lockstep import run

ROOT = Path(__file__).parents[1]


def test_two_threads_that_decide_the_same_packet_at_once() -> None:
    assert run(30_000 if SWITCHES_ANYWHERE else 3000) == []


def test_what_free_threaded_builds_do_in_this_one() -> None:
    """What is chosen when the package is imported, in a program that thinks that several threads execute at a time."""
    code = "import sys; sys._is_gil_enabled = lambda: False; from tests.lockstep import run; print(run(1000))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.skipif(SWITCHES_ANYWHERE, reason="locks do that here")
@pytest.mark.parametrize("method", [Packet.accept, Packet.drop, Packet._change])
def test_nothing_comes_between_the_check_and_the_assignment(method: object) -> None:
    """Another thread or a signal handler could: at a call, and at a jump (which the instructions after a condition that
    holds do not begin with).
    """
    instructions = list(dis.get_instructions(method))  # type: ignore[arg-type]
    stores = [each for each in instructions if each.opname == "STORE_ATTR" and each.argval == "_decision"]
    assert len(stores) == 1
    before = list(takewhile(lambda each: each is not stores[0], instructions))
    checks = [place for place, each in enumerate(before) if each.opname == "LOAD_ATTR" and each.argval == "_decision"]
    between = before[checks[-1] + 1 :]
    assert not [each for each in between if each.is_jump_target or each.opname.startswith("CALL")], between
    assert sum("JUMP" in each.opname for each in between) == 1
