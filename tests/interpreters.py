"""Make a page of the results of tests on several interpreters: docs/interpreters/*.json to docs/interpreters.md.

    python -m tests.interpreters                    write the page
    python -m tests.interpreters run FILE...        run test files with this interpreter, and add the results

Each file is run in a process of its own, and its newest result counts. What failed is on the page by its name.
"""

from __future__ import annotations

import argparse
import json
import platform
import string
import subprocess
import sys
import sysconfig
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "docs" / "interpreters"
PAGE = ROOT / "docs" / "interpreters.md"
BOUND = 900  # seconds, for a file

_HEAD = """# Which interpreters

nfnet supports CPython 3.10 and later, also free-threaded builds, and PyPy. Each row is the result of
`tests/interpreters.py` with that interpreter: the number of tests that passed, and of test files; not all files were
run. Tests that are skipped because the machine lacks a feature or a program are not counted.

"""

_TAIL = """
## Free-threaded builds

Threads execute Python code at the same time there. Any thread can give verdicts: if two threads decide the same packet
at once, one of them gets AlreadyDecidedError. Each verdict costs one uncontended lock more than in other builds.

## PyPy

- An iteration that the program left by `break` ends only when the garbage collector finds it.
  Until then, verdicts given in the iteration are sent within two milliseconds, and packets that its body left without a
  verdict are in `pending`. Another loop, and `open`, run the garbage collector before they raise BusyReadingError or
  BusyError, which takes some ten milliseconds. `contextlib.closing(iter(queue))` ends an iteration at once.
- There is no eventfd; a pipe is used in its place.
- A signal handler that raises, as Python's own for Ctrl-C does, can leave a lock locked. One that calls `Queue.stop` is
  safe.
- The first packets take longer, until the code that runs for each packet is compiled.
"""


class Run(NamedTuple):
    """The results of one interpreter: of each file (passed, skipped, names of tests that failed)."""

    interpreter: str
    files: dict[str, tuple[int, int, list[str]]]


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
    return Run(data["interpreter"], {name: (each[0], each[1], each[2]) for name, each in data["files"].items()})


def store(path: Path, name: str, found: dict[str, tuple[int, int, list[str]]]) -> None:
    """Add results to those of earlier runs of the same version."""
    files: dict[str, Any] = {}
    if path.exists() and load(path).interpreter == name:
        files = dict(load(path).files)
    files.update(found)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"interpreter": name, "files": dict(sorted(files.items()))}, indent=1) + "\n")


def outcome(file: str) -> tuple[int, int, list[str]]:
    """Run a file of tests."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report.name}", file]
        try:
            done = subprocess.run(command, cwd=ROOT, timeout=BOUND, stdout=subprocess.DEVNULL, check=False)
        except subprocess.TimeoutExpired:
            return 0, 0, [f"did not end within {BOUND} s"]
        if done.returncode not in (0, 1, 5):
            return 0, 0, ["could not be run"]
        cases = list(ElementTree.parse(report.name).iter("testcase"))
    failed = sorted(
        {case.get("name", "") for case in cases if case.find("failure") is not None or case.find("error") is not None}
    )
    skipped = sum(case.find("skipped") is not None for case in cases)
    return len(cases) - skipped - len(failed), skipped, failed


def _cell(files: Iterable[tuple[int, int, list[str]]]) -> str:
    rows = list(files)
    if not rows:
        return "not run"
    passed, failed = sum(each[0] for each in rows), sum(len(each[2]) for each in rows)
    return f"{passed:,} in {len(rows)} files" + (f", {failed} failed" if failed else "")


def page(runs: Iterable[Run]) -> str:
    """Return the page."""
    lines = ["| interpreter | unit tests | on the kernel |", "| --- | --- | --- |"]
    failures: list[str] = []
    for run in runs:
        live = {name: each for name, each in run.files.items() if "/live/" in name}
        unit = {name: each for name, each in run.files.items() if name not in live}
        lines.append(f"| {run.interpreter} | {_cell(unit.values())} | {_cell(live.values())} |")
        for name, (_, _, failed) in run.files.items():
            failures += [f"- {run.interpreter}, {name}: {each}" for each in failed]
    text = _HEAD + "\n".join(lines) + "\n"
    if failures:
        text += "\nWhat failed:\n\n" + "\n".join(failures) + "\n"
    return text + _TAIL


def runs() -> list[Run]:
    """Return all runs, in the order of the page."""

    def key(path: Path) -> tuple[bool, list[int], str]:
        number = path.stem.lstrip(string.ascii_letters)
        return path.stem[0].isalpha(), [int(part.rstrip("t")) for part in number.split(".")], path.stem

    return [load(path) for path in sorted(RUNS.glob("*.json"), key=key)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.interpreters")
    parser.add_argument("files", nargs="*", help='"run", and files of tests')
    words = parser.parse_args().files
    if words and words[0] != "run":
        parser.error(f"{words[0]}: only run is known")
    name, label = interpreter()
    for file in words[1:]:
        result = outcome(file)
        print(f"{label}: {file}: {result[0]} passed, {result[1]} skipped", *result[2], flush=True)
        store(RUNS / f"{name}.json", label, {file: result})
    PAGE.write_text(page(runs()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
