"""What users see of the package: every name has a docstring, and types that a checker understands."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import nfnet

PUBLIC = (
    *("nfnet", "nfnet.captures", "nfnet.compat", "nfnet.compat.netfilterqueue", "nfnet.compat.nflogr", "nfnet.doctor"),
    *("nfnet.errors", "nfnet.inet", "nfnet.log", "nfnet.metrics", "nfnet.netns", "nfnet.packet", "nfnet.protocol"),
    *("nfnet.protocol.conntrack", "nfnet.protocol.nfnetlink", "nfnet.protocol.nfqnl", "nfnet.protocol.nfulnl"),
    *("nfnet.queue", "nfnet.rules", "nfnet.stats", "nfnet.testing", "nfnet._io.transport", "nfnet.workers"),
)


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The classes and functions that a module offers."""
    own = [name for name, item in vars(module).items() if getattr(item, "__module__", "") == module.__name__]
    for name in getattr(module, "__all__", own):
        item = getattr(module, name)
        if not name.startswith("_") and (inspect.isclass(item) or inspect.isfunction(item)):
            yield name, item


def members(kind: type) -> Iterator[str]:
    for name in dir(kind):
        what = inspect.getattr_static(kind, name)
        if not name.startswith("_") and (inspect.isfunction(what) or isinstance(what, (property, classmethod))):
            yield name


@pytest.mark.parametrize("module", PUBLIC)
def test_everything_public_has_a_docstring(module: str) -> None:
    lacking = []
    for name, item in public(importlib.import_module(module)):
        if not inspect.getdoc(item):
            lacking.append(name)
        if inspect.isclass(item):
            lacking += [f"{name}.{member}" for member in members(item) if not inspect.getdoc(getattr(item, member))]
    assert lacking == []


def test_exported_names_are_there() -> None:
    assert sorted(set(nfnet.__all__)) == sorted(nfnet.__all__)
    for name in nfnet.__all__:
        assert getattr(nfnet, name) is not None


@pytest.mark.parametrize("name", [*PUBLIC[1:], "nfnet.AsyncQueue", "nfnet.AsyncLog"])
def test_public_names_are_there_after_one_import(name: str) -> None:
    parent, _, last = name.rpartition(".")
    code = f"import nfnet; assert {last!r} in dir({parent}), 'not in dir()'; {name}; assert hasattr({name}, '__doc__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["nfnet.no_such", "nfnet.compat.no_such"])
def test_names_that_are_not_there(name: str) -> None:
    parent, _, last = name.rpartition(".")
    with pytest.raises(AttributeError, match=f"module '{parent}' has no attribute '{last}'"):
        getattr(importlib.import_module(parent), last)


def test_a_typed_script_of_a_user_has_no_errors(tmp_path: Path) -> None:
    """Strictly, with nothing but what is exported."""
    done = check_types(Path(__file__).parent / "typed_script.py", tmp_path)
    assert done.stdout.startswith("Success"), done.stdout + done.stderr


def test_type_checkers_see_wrong_names_and_arguments(tmp_path: Path) -> None:
    """Also behind what is imported late."""
    script = tmp_path / "script.py"
    wrong = ("nfnet.no_such", "nfnet.testing.no_such", "nfnet.testing.udp(5)", "nfnet.AsyncQueue('1')")
    script.write_text("\n".join(["import nfnet", *wrong, "nfnet.testing.udp(b'')", "nfnet.AsyncQueue(1)"]))
    done = check_types(script, tmp_path)
    assert re.findall(r"script.py:(\d+): error", done.stdout) == ["2", "3", "4", "5"], done.stdout


def check_types(script: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--cache-dir", str(directory), str(script)]
    return subprocess.run(command, capture_output=True, text=True, cwd=directory)


DIRECTIVE = re.compile(
    r"^\.\. (?:(currentmodule)|auto(?:class|function|exception|data|module)):: ([\w.]+)", re.MULTILINE
)


def test_exported_names_are_the_documented_ones() -> None:
    documented = set()
    for page in (Path(__file__).parent.parent / "docs" / "reference").glob("*.md"):
        module = ""
        for current, name in DIRECTIVE.findall(page.read_text()):
            if current:
                module = f"{name}."
            else:
                documented.add(name if name.startswith("nfnet.") else module + name)
    own = {name.removeprefix("nfnet.") for name in documented}
    modules = {name for name in nfnet.__all__ if inspect.ismodule(getattr(nfnet, name))}
    lacking = {name for name in nfnet.__all__ if not name.startswith("__")} - own
    assert {name for name in lacking if name not in modules or not any(n.startswith(f"{name}.") for n in own)} == set()
    assert {name for name in own if "." not in name} - set(nfnet.__all__) - {"inet", "rules", "stats"} == set()
