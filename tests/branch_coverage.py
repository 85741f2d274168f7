"""Branch coverage of the package that holds a packet's state, by file: ``make coverage``.

    python -m tests.branch_coverage [arguments of pytest]

Runs pytest in this process and prints what was covered. The exit status is 1 if a test failed or a file of nfnet/_core
is below 95 %. Needs root for the live tests, as ``make test`` does.

coverage sees the threads of the module `threading` only. The flusher's is started by `_thread`, so this module gives
it the tracer too. What runs in forked children is not counted.
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coverage
import pytest

ROOT = Path(__file__).parent.parent
LEAST = 95
# What has to do with queues and logs; not the tests that trace the interpreter themselves.
UNIT = ("aio", "compat_netfilterqueue", "compat_nflogr", "errors", "families", "locks", "log", "loss", "hostile_input")
UNIT += ("packet", "queue", "replay", "testing", "workers")
LIVE = ("aio", "faults", "log", "process", "queue", "sockets")
TESTS = [*(f"tests/test_{name}.py" for name in UNIT), *(f"tests/live/test_{name}.py" for name in LIVE)]


def trace_all_threads() -> None:
    start = _thread.start_new_thread

    def traced(function: Callable[..., Any], *arguments: Any) -> int:
        def run(*values: Any, **named: Any) -> None:
            sys.settrace(threading.gettrace())
            function(*values, **named)

        return start(run, *arguments)

    _thread.start_new_thread = traced


def main(arguments: list[str]) -> int:
    measured = coverage.Coverage(data_file=None, branch=True, include=[str(ROOT / "nfnet/*")])
    measured.exclude("if TYPE_CHECKING:")
    measured.exclude("@abstractmethod")
    trace_all_threads()
    measured.start()
    status = pytest.main(["-q", "-p", "no:cacheprovider", *(arguments or TESTS)])
    measured.stop()
    measured.report(include=["nfnet/_core/*"], show_missing=True, skip_empty=True)
    short = []
    for path in sorted((ROOT / "nfnet/_core").glob("*.py")):
        found = measured._analyze(str(path)).numbers
        if found.n_statements and found.pc_covered < LEAST:
            short.append(f"{path.relative_to(ROOT)}: {found.pc_covered:.1f} %, and must have {LEAST} %")
    print("\n".join(short) or f"each file of nfnet/_core has at least {LEAST} %")
    return int(status) or bool(short)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
