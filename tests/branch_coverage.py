"""Branch coverage of the package that holds a packet's state, by file: ``make coverage``.

    python -m tests.branch_coverage [arguments of pytest]

Runs pytest in this process and prints what was covered. The exit status is 1 if a test failed, nfnet/_core
is below 95 %, or a file of it below 90 %. Needs root for the live tests, as ``make test`` does.

Forked children and programs that the tests start are counted. coverage sees the threads of the module `threading` only:
the flusher's is started by `_thread`, so this module gives it the tracer too.
"""

from __future__ import annotations

import _thread
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coverage
import pytest

ROOT = Path(__file__).parent.parent
LEAST = 95  # of the package
LEAST_OF_A_FILE = 90  # some lines are reached only if threads happen to meet
# Tests of queues and logs, except those that trace the interpreter themselves.
UNIT = (
    "aio",
    "connections",
    "compat_netfilterqueue",
    "compat_nflogr",
    "errors",
    "families",
    "locks",
    "log",
    "loss",
    "hostile_input",
)
UNIT += ("packet", "processes", "queue", "reader", "replay", "testing", "workers")
LIVE = ("aio", "connections", "faults", "log", "process", "processes", "queue", "record", "sockets")
TESTS = [*(f"tests/test_{name}.py" for name in UNIT), *(f"tests/live/test_{name}.py" for name in LIVE)]


def trace_all_threads() -> None:
    start = _thread.start_new_thread

    def traced(function: Callable[..., Any], *arguments: Any) -> int:
        def run(*values: Any, **named: Any) -> None:
            sys.settrace(threading.gettrace())
            function(*values, **named)

        return start(run, *arguments)

    _thread.start_new_thread = traced


class Tracing:
    """A plugin of pytest that sets the tracer again, which a test that traces for itself has removed."""

    def __init__(self) -> None:
        self._tracer = sys.gettrace()

    def pytest_runtest_setup(self) -> None:
        if sys.gettrace() is not self._tracer:
            sys.settrace(self._tracer)


CONFIGURATION = """
[run]
branch = true
parallel = true
include = {root}/nfnet/*
data_file = {directory}/data
disable_warnings = no-data-collected
patch =
    _exit
    fork
    subprocess

[report]
exclude_also =
    if TYPE_CHECKING:
    @abstractmethod
    raise NotImplementedError
    raise AssertionError
"""


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="coverage-") as directory:
        file = Path(directory) / "coveragerc"
        file.write_text(CONFIGURATION.format(root=ROOT, directory=directory))
        measured = coverage.Coverage(config_file=str(file))
        trace_all_threads()
        measured.start()
        status = pytest.main(
            ["-q", "-p", "no:cacheprovider", "-k", "not under_a_flood", *(arguments or TESTS)], plugins=[Tracing()]
        )
        measured.stop()
        measured.save()
        del os.environ["COVERAGE_PROCESS_CONFIG"]
        whole = coverage.Coverage(config_file=str(file))
        whole.combine()
        whole.report(include=["nfnet/_core/*"], show_missing=True, skip_empty=True)
        whole.json_report(include=["nfnet/_core/*"], outfile=f"{directory}/report.json")
        report = json.loads((Path(directory) / "report.json").read_text())
    found = {name: (file["summary"]["percent_covered"], LEAST_OF_A_FILE) for name, file in report["files"].items()}
    found["all"] = (report["totals"]["percent_covered"], LEAST)
    short = {name: row for name, row in found.items() if row[0] < row[1]}
    for name, (percent, least) in short.items():
        print(f"{name}: {percent:.1f} %, and must have {least} %")
    return int(status) or bool(short)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
