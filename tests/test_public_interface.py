"""The public interface: every name has a docstring, and type annotations that checkers accept."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pydoc
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pytest

import nfnet
from nfnet.protocol import nfqnl, nfulnl
from nfnet.queue import WorkerOptions

from .kernel import packet_message

PUBLIC = (
    *(
        "nfnet",
        "nfnet.aio",
        "nfnet.captures",
        "nfnet.collect",
        "nfnet.compat",
        "nfnet.compat.netfilterqueue",
        "nfnet.compat.nflogr",
        "nfnet.doctor",
    ),
    *("nfnet.errors", "nfnet.inet", "nfnet.log", "nfnet.metrics", "nfnet.netns", "nfnet.packet", "nfnet.protocol"),
    *(
        "nfnet.protocol.enumerations",
        "nfnet.protocol.conntrack",
        "nfnet.protocol.nfnetlink",
        "nfnet.protocol.nfqnl",
        "nfnet.protocol.nfulnl",
    ),
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


# Programs do not make these: functions and other classes do.
MADE_FOR_THEM = {"Rule", "Nflog", "NflogData", "LogBinding"}


@pytest.mark.parametrize("module", PUBLIC)
def test_docstrings_of_classes_name_all_arguments(module: str) -> None:
    """In the class, in its __init__, or in a base class that documents them for all of its kind."""
    lacking = []
    for name, item in public(importlib.import_module(module)):
        if not inspect.isclass(item) or name in MADE_FOR_THEM or "__init__" not in vars(item):
            continue
        if getattr(item, "_is_protocol", False):
            continue
        texts = [kind.__doc__ or "" for kind in item.__mro__ if kind.__module__.startswith("nfnet")]
        text = "\n".join([*texts, vars(item)["__init__"].__doc__ or ""])
        fields = getattr(item, "__dataclass_fields__", {})  # these have docstrings of their own
        for argument in inspect.signature(item).parameters:
            if argument not in fields and not re.search(rf"(^ *|, ){argument}[:,]|``{argument}``", text, re.MULTILINE):
                lacking.append(f"{name}({argument})")
    assert lacking == []


@pytest.mark.parametrize("module", PUBLIC)
def test_docstrings_describe_each_argument_on_a_line_of_its_own(module: str) -> None:
    """As docs/conf.py expects: ``name: text`` in the middle of a line would not be shown as an argument."""
    wrong = []
    for name, item in public(importlib.import_module(module)):
        methods = [getattr(item, member) for member in members(item)] if inspect.isclass(item) else []
        for subject in (item, *methods):
            settings = getattr(subject, "settings", {})
            try:
                arguments = {*inspect.signature(subject).parameters, *(settings if isinstance(settings, dict) else ())}
            except (TypeError, ValueError):
                continue
            found = re.findall(r"[.;] (?:\w+, )*(\w+): ", inspect.getdoc(subject) or "")
            wrong += [f"{name}: {argument}" for argument in found if argument in arguments]
    assert wrong == []


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


@pytest.mark.parametrize("name", [name for name in PUBLIC if "." in name and "._" not in name])
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


@pytest.mark.parametrize("name", nfnet.__all__)
def test_exported_names_are_imported_when_they_are_asked_for(name: str) -> None:
    """Each can be imported by itself, and always is the same object."""
    code = f"import nfnet; first = nfnet.{name}; from nfnet import {name}; assert first is {name} is nfnet.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_type_checkers_see_is_what_is_there() -> None:
    """The imports of the package that only type checkers read name the modules that its table does."""
    block = next(
        node
        for node in ast.parse(Path(nfnet.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    modules, names = set(), {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        if node.module is None:
            modules |= {alias.name for alias in node.names}
        else:
            names |= {alias.name: f"nfnet.{node.module}" for alias in node.names}
    assert names.keys() | (modules & set(nfnet.__all__)) == set(nfnet.__all__)
    for name, module in names.items():
        assert getattr(importlib.import_module(module), name) is getattr(nfnet, name)
    for name in modules:
        assert getattr(nfnet, name) is importlib.import_module(f"nfnet.{name}")
    assert modules | names.keys() | {"__doc__", "__version__"} == set(dir(nfnet))


def test_a_name_with_a_slip_gets_the_right_one_suggested() -> None:
    done = subprocess.run([sys.executable, "-c", "import nfnet; nfnet.Quueue"], capture_output=True, text=True)
    assert re.search(r"module 'nfnet' has no attribute 'Quueue'. Did you mean:? '\.?Queue'", done.stderr), done.stderr


def test_dir_shows_what_is_public() -> None:
    modules = {name.split(".")[1] for name in PUBLIC if name != "nfnet" and not name.split(".")[1].startswith("_")}
    assert set(dir(nfnet)) == {*nfnet.__all__, *modules, "__doc__", "__version__"}


def test_help_shows_what_is_public() -> None:
    """help() shows each name in the overview, and below with its docstring, also names that are imported late."""
    overview = set(re.findall(r"\w+", nfnet.__doc__ or ""))
    assert set(nfnet.__all__) - overview == set()
    text = pydoc.plain(pydoc.render_doc(nfnet))
    for name, item in public(nfnet):
        kind = "class " if inspect.isclass(item) else ""
        first = (inspect.getdoc(item) or "").splitlines()[0]
        assert re.search(rf"^    {kind}{name}\(", text, re.MULTILINE), name
        assert first in text, name


def test_a_typed_script_of_a_user_has_no_errors(tmp_path: Path) -> None:
    """In strict mode, with exported names only."""
    done = check_types(Path(__file__).parent / "typed_script.py", tmp_path)
    assert done.stdout.startswith("Success"), done.stdout + done.stderr


WRONG = Path(__file__).parent / "wrong_script.py"


def wrong_lines() -> set[int]:
    return {number for number, line in enumerate(WRONG.read_text().splitlines(), 1) if "# wrong" in line}


def test_mypy_refuses_wrong_names_and_arguments(tmp_path: Path) -> None:
    """Also for names that are imported late."""
    done = check_types(WRONG, tmp_path)
    assert {int(number) for number in re.findall(r"wrong_script.py:(\d+): error", done.stdout)} == wrong_lines()


@pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not installed")
@pytest.mark.parametrize("script", ["wrong_script.py", "typed_script.py"])
def test_pyright_says_the_same(script: str, tmp_path: Path) -> None:
    path = Path(__file__).parent / script
    command = ["pyright", "--outputjson", "--pythonpath", sys.executable, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    found = json.loads(done.stdout)["generalDiagnostics"]
    lines = {problem["range"]["start"]["line"] + 1 for problem in found if problem["severity"] == "error"}
    assert lines == (wrong_lines() if path == WRONG else set()), done.stdout


def check_types(script: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    if sys.implementation.name == "pypy":
        pytest.skip("mypy does not run on PyPy")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--cache-dir", str(directory), str(script)]
    return subprocess.run(command, capture_output=True, text=True, cwd=directory)


def callables() -> Iterator[tuple[str, Any]]:
    """Yield all public functions, classes and methods, also those that are imported late."""
    for name in PUBLIC:
        for short, item in public(importlib.import_module(name)):
            yield f"{name}.{short}", item
            if inspect.isclass(item):
                for member in members(item):
                    what = inspect.getattr_static(item, member)
                    if isinstance(what, property) and not inspect.isfunction(what.fget):
                        continue  # a field of a named tuple, on PyPy
                    yield f"{name}.{short}.{member}", what.fget if isinstance(what, property) else getattr(item, member)


def test_signatures_and_types_can_be_asked_for_at_run_time() -> None:
    """As pydantic, IDEs and documentation do: every name in annotations must exist at run time."""
    problems = []
    for name, item in callables():
        looks = [partial(get_type_hints, item)]
        if not inspect.isclass(item):
            looks.append(partial(inspect.signature, item))
        elif (getattr(item.__init__, "__module__", None) or "").startswith("nfnet"):  # else it is Python's own
            looks += [partial(inspect.signature, item), partial(get_type_hints, item.__init__)]
        for look in looks:
            try:
                look()
            except Exception as error:
                problems.append(f"{look.func.__name__} of {name}: {error!r}")
    assert problems == []


@pytest.mark.parametrize(
    ("kind", "options"), [(nfnet.Queue, nfnet.QueueOptions), (nfnet.Log, nfnet.LogOptions)], ids=["Queue", "Log"]
)
def test_options_are_the_arguments(kind: Any, options: Any) -> None:
    """The options are the keyword arguments of the class: same names and types, all optional."""
    hints = get_type_hints(kind.__init__)
    arguments = [p for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert get_type_hints(options) == {argument.name: hints[argument.name] for argument in arguments}
    assert options.__required_keys__ == frozenset()
    assert all(argument.default is not argument.empty for argument in arguments)


def test_accept_takes_its_options_and_no_others() -> None:
    assert set(get_type_hints(nfnet.AcceptOptions)) == {
        *{"mark", "payload", "priority", "vlan", "l2header", "ct_mark", "ct_labels", "connection"}
    }
    packet = nfnet.Packet.from_bytes(packet_message(1))
    with pytest.raises(TypeError, match="unexpected keyword argument 'marks'"):
        packet.accept(marks=7)  # type: ignore[call-arg]
    for name in get_type_hints(nfnet.AcceptOptions):
        options: nfnet.AcceptOptions = {name: False if name == "connection" else None}  # type: ignore[misc]
        with pytest.raises(nfnet.ClosedError, match="there is no queue that could decide it"):
            nfnet.Packet.from_bytes(packet_message(1)).accept(**options)


@pytest.mark.parametrize(
    ("rows", "flags", "options"),
    [
        (nfqnl.FLAG_OPTIONS, nfqnl.QueueFlag, nfnet.QueueOptions),
        (nfulnl.FLAG_OPTIONS, nfulnl.LogFlag, nfnet.LogOptions),
    ],
    ids=["queue", "log"],
)
def test_each_flag_is_a_row_and_an_option(rows: Any, flags: Any, options: Any) -> None:
    assert [row.flag for row in sorted(rows, key=lambda row: row.flag)] == list(flags)
    types = get_type_hints(options)
    assert [types.get(row.name) for row in rows] == [bool] * len(rows)


def test_workers_take_the_options_that_processes_can_share() -> None:
    options = get_type_hints(nfnet.QueueOptions)
    assert get_type_hints(WorkerOptions) == {n: t for n, t in options.items() if n not in ("transport", "record")}


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
