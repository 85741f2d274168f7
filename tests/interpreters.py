"""Make a page of the results of tests on several interpreters: docs/interpreters/*.json to docs/interpreters.md.

    python -m tests.interpreters                    write the page
    python -m tests.interpreters run [FILE...]      run test files (default: all) with this interpreter
    python -m tests.interpreters flood [NUMBER]     run tests/flood.py NUMBER times (default: 200) in all
    python -m tests.interpreters ratio [ROUNDS]     measure the processor time for a packet relative to NetfilterQueue

The last three add their results to the file of this interpreter. Each test file is run in a process of its own, and its
newest result counts. Tests that failed are on the page by their names. `flood` counts earlier runs, and starts over if
a program failed. `ratio` runs benchmarks/queue_drain.py in the environment of this interpreter, where NetfilterQueue
must be installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import string
import subprocess
import sys
import sysconfig
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "docs" / "interpreters"
PAGE = ROOT / "docs" / "interpreters.md"
BOUND = 3600  # seconds, for a file

_HEAD = """# Which interpreters

nfnet supports CPython 3.10 and later, also free-threaded builds, and PyPy. Each row is the result of
`tests/interpreters.py` with that interpreter:

- Tests: the number of tests that passed, and of test files; not all files were run with each. Tests that are
  skipped because the machine lacks a feature or a program are not counted.
- Interrupted programs: `tests/flood.py`, whose program reads a queue under a flood of packets, decides them in two
  threads, and is interrupted 300 times by a signal handler that raises. It must end with every packet decided.
- Processor time: that for a packet relative to NetfilterQueue under the same interpreter, in the cases of
  `benchmarks/queue_drain.py`. Below 1, nfnet takes less.

"""

_TAIL = """
## Free-threaded builds

Threads execute Python code at the same time there. Any thread can give verdicts: if two threads decide the same packet
at once, one of them gets AlreadyDecidedError. Each verdict costs one uncontended lock more than in other builds.

## CPython 3.10

If the handlers of two signals raise exceptions within microseconds, the second exception can prevent the cleanup after
the first one. A queue releases its locks when the thread reads again or closes the queue; the lock of a recording can
stay locked. Later versions do not have this problem.

## PyPy

- An iteration that the program left by `break` ends only when the garbage collector finds it.
  Until then, verdicts given in the iteration are sent within two milliseconds, and packets that its body left without a
  verdict are in `pending`. Another loop, and `open`, run the garbage collector before they raise BusyReadingError or
  BusyError, which takes some ten milliseconds. `contextlib.closing(iter(queue))` ends an iteration at once.
- There is no eventfd; a pipe is used in its place.
- A signal handler that raises, as Python's own for Ctrl-C does, can leave a lock locked, or a packet without a verdict.
  One that calls `Queue.stop` is safe.
- Each verdict costs one uncontended lock more than in CPython, since another thread can run between any two
  instructions.
- `eventlet.monkey_patch()` does not return there, also without nfnet. gevent was not tried.
- The first packets take longer, until the code that runs for each packet is compiled.
"""


class Run(NamedTuple):
    """The results of one interpreter.

    files: of each test file (passed, skipped, names of tests that failed).
    flood: programs of tests/flood.py that ended, and programs that were run.
    ratios: of each case of benchmarks/queue_drain.py, the processor time relative to NetfilterQueue.
    """

    interpreter: str
    files: dict[str, tuple[int, int, list[str]]]
    flood: Sequence[int] = ()
    ratios: dict[str, float] | None = None


def interpreter() -> tuple[str, str]:
    """Return the name of this interpreter's file, and its name on the page."""
    free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    short = f"{sys.version_info[0]}.{sys.version_info[1]}" + "t" * free
    if sys.implementation.name != "cpython":
        version = ".".join(map(str, sys.implementation.version[:3]))
        return f"{sys.implementation.name}{short}", f"{platform.python_implementation()} {version} (Python {short})"
    return short, f"CPython {platform.python_version()}" + ", free-threaded" * free


def load(path: Path) -> Run:
    data = json.loads(path.read_text())
    files = {name: (each[0], each[1], each[2]) for name, each in data["files"].items()}
    return Run(data["interpreter"], files, data.get("flood", ()), data.get("ratios"))


def store(path: Path, found: Run) -> None:
    """Add results to those of earlier runs of the same version."""
    old = load(path) if path.exists() else found
    if old.interpreter == found.interpreter:
        files = dict(sorted({**old.files, **found.files}.items()))
        found = Run(found.interpreter, files, found.flood or old.flood, found.ratios or old.ratios)
    path.parent.mkdir(exist_ok=True)
    _write(path, json.dumps(found._asdict(), indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    """Replace a file at once: runs of other interpreters read it meanwhile, to make the page."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(text)
    new.replace(path)


def all_files() -> list[str]:
    """Return all test files, those for the kernel last."""
    return [
        str(path.relative_to(ROOT))
        for place in ("tests", "tests/live")
        for path in sorted((ROOT / place).glob("test_*.py"))
    ]


def outcome(file: str) -> tuple[int, int, list[str]]:
    """Run a file of tests."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report.name}", file]
        try:
            done = subprocess.run(command, cwd=ROOT, timeout=BOUND, stdout=subprocess.PIPE, check=False)
        except subprocess.TimeoutExpired:
            return 0, 0, [f"did not end within {BOUND} s"]
        if done.returncode not in (0, 5):
            sys.stdout.buffer.write(done.stdout)
        if done.returncode not in (0, 1, 5):
            return 0, 0, ["could not be run"]
        cases = list(ElementTree.parse(report.name).iter("testcase"))
    failed = sorted(
        {case.get("name", "") for case in cases if case.find("failure") is not None or case.find("error") is not None}
    )
    skipped = sum(case.find("skipped") is not None for case in cases)
    return len(cases) - skipped - len(failed), skipped, failed


def ratios(rounds: int) -> dict[str, float]:
    """Return the processor time for a packet relative to NetfilterQueue, by the case of the benchmark."""
    with tempfile.NamedTemporaryFile(suffix=".json") as figures:
        command = [sys.executable, "benchmarks/queue_drain.py", "--without-asyncio-and-compat"]
        command += ["--packets", "20000", "--rounds", str(rounds), "--json", figures.name]
        subprocess.run(command, cwd=ROOT, check=True)
        rows = json.load(figures)
    return {
        row["case"]: round(row["ratio"], 2)
        for row in rows
        if (row["subject"], row["program"]) == ("nfnet", "NetfilterQueue")
    }


def _tests(files: Iterable[tuple[int, int, list[str]]]) -> str:
    rows = list(files)
    if not rows:
        return "not run"
    passed, failed = sum(each[0] for each in rows), sum(len(each[2]) for each in rows)
    return f"{passed:,} in {len(rows)} files" + (f", {failed} failed" if failed else "")


def _ratios(run: Run) -> str:
    return " to ".join(f"{edge(run.ratios.values()):.2f}" for edge in (min, max)) if run.ratios else "not measured"


def page(runs: Iterable[Run]) -> str:
    """Return the page."""
    lines = ["| interpreter | unit tests | on the kernel | interrupted programs that ended | processor time |"]
    lines.append("| --- " * 5 + "|")
    failures: list[str] = []
    for run in runs:
        live = [each for name, each in run.files.items() if "/live/" in name]
        unit = [each for name, each in run.files.items() if "/live/" not in name]
        flood = "{} of {}".format(*run.flood) if run.flood else "not run"
        lines.append(f"| {run.interpreter} | {_tests(unit)} | {_tests(live)} | {flood} | {_ratios(run)} |")
        for name, (_, _, failed) in run.files.items():
            failures += [f"- {run.interpreter}, {name}: {each}" for each in failed]
    text = _HEAD + "\n".join(lines) + "\n"
    if failures:
        text += "\nWhat failed:\n\n" + "\n".join(failures) + "\n"
    return text + _TAIL


def write_page() -> None:
    """Write the page, of all runs in the order of their versions."""
    _write(PAGE, page(runs()))


def runs() -> list[Run]:
    """Return all runs, in the order of the page."""

    def key(path: Path) -> tuple[bool, list[int], str]:
        number = path.stem.lstrip(string.ascii_letters)
        return path.stem[0].isalpha(), [int(part.rstrip("t")) for part in number.split(".")], path.stem

    return [load(path) for path in sorted(RUNS.glob("*.json"), key=key)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.interpreters")
    actions = parser.add_subparsers(dest="action")
    actions.add_parser("run").add_argument("files", nargs="*")
    actions.add_parser("flood").add_argument("number", nargs="?", type=int, default=200)
    actions.add_parser("ratio").add_argument("rounds", nargs="?", type=int, default=15)
    options = parser.parse_args()
    name, label = interpreter()

    path = RUNS / f"{name}.json"

    def add(**found: Any) -> None:
        store(path, Run(label, found.pop("files", {}), **found))
        write_page()

    failed = False
    if options.action == "run":
        for file in options.files or all_files():
            result = outcome(file)
            print(f"{label}: {file}: {result[0]} passed, {result[1]} skipped", *result[2], flush=True)
            add(files={file: result})
            failed |= bool(result[2])
    elif options.action == "flood":
        from . import flood

        before = load(path).flood if path.exists() and load(path).interpreter == label else ()
        done = before[1] if before and before[0] == before[1] else 0
        for ended, number in flood.repeat(options.number - done):
            add(flood=(done + ended, done + number))
            failed = ended < number
    elif options.action == "ratio":
        add(ratios=ratios(options.rounds))
    else:
        write_page()
    return failed


if __name__ == "__main__":
    sys.exit(main())
