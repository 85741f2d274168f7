"""Run tests as on a machine that pauses: stop pytest, or a process that a test started, for a second, repeatedly.

    python -m tests.paused tests/live/test_queue.py

A test that fails in this way depends on the time that something takes, and can fail on a busy machine.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

BETWEEN = (0.05, 1.5)  # seconds
PAUSE = 1.0


def family(pid: int) -> Iterator[int]:
    """Yield the ids of a process and of its descendants."""
    yield pid
    with contextlib.suppress(OSError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def is_running(pid: int) -> bool:
    """Return whether a process can be paused: it has not ended, and is not stopped by another program."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("R", "S", "D")
    return False


def pause(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(PAUSE)
        os.kill(pid, signal.SIGCONT)


def main() -> int:
    with subprocess.Popen([sys.executable, "-m", "pytest", *sys.argv[1:]]) as tests:
        while tests.poll() is None:
            time.sleep(random.uniform(*BETWEEN))
            own, *others = family(tests.pid)
            chosen = own if not others or random.random() < 0.5 else random.choice(others)
            if is_running(chosen):
                pause(chosen)
    return tests.returncode


if __name__ == "__main__":
    sys.exit(main())
