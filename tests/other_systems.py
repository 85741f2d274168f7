"""A simulation of macOS and Windows: nfnet sees only those parts of the system that exist there.

    python -m tests.other_systems win32 script.py
    NFNET_SYSTEM=darwin python -m pytest -p tests.other_systems tests/test_testing.py

When modules of nfnet, and only these, import `os`, `socket`, `sys` and so on, they get replacements: these have another
`sys.platform`, and lack the names that the other system lacks. Modules that it lacks cannot be imported, and there is
no /proc. For Windows, `select` accepts only sockets, and functions of `os` refuse descriptors of directories. The
missing names are those that typeshed puts behind conditions on ``sys.platform``; typeshed comes with mypy, and is
compared with the real interpreters of each system. Not simulated: different behaviour of functions that exist there
(other errnos, `os.name`, the file system of Windows, kqueue), and the rest of the standard library.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import importlib.util
import os
import runpy
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

SYSTEMS = ("darwin", "win32")
# Modules whose names depend on the system. Their stubs import names from each other.
MODULES = ("os", "select", "signal", "socket", "_socket", "sys", "time", "errno", "platform")
_SIMULATED = ("nfnet", "pytest_nfnet")  # the modules that see the simulation
_HIDDEN_PATHS = ("/proc", "/sys", "/run")


def _typeshed() -> Path:
    spec = importlib.util.find_spec("mypy")
    assert spec is not None
    assert spec.origin is not None, "the stubs of the standard library come with mypy"
    return Path(spec.origin).parent / "typeshed" / "stdlib"


def _stub(name: str) -> Path:
    file = _typeshed() / f"{name}.pyi"
    return file if file.exists() else _typeshed() / name / "__init__.pyi"


def _holds(condition: ast.expr, system: str) -> bool:
    """Evaluate a condition of a stub on ``sys.platform`` and ``sys.version_info``."""

    class FakeSys:
        platform = system
        version_info = sys.version_info

    return bool(eval(compile(ast.Expression(condition), "stub", "eval"), {"sys": FakeSys, "TYPE_CHECKING": True}))


def _statements(body: list[ast.stmt], system: str) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, ast.If):
            yield from _statements(statement.body if _holds(statement.test, system) else statement.orelse, system)
        elif isinstance(statement, ast.Try):
            yield from _statements(statement.body, system)
        else:
            yield statement


@functools.cache
def names(module: str, system: str) -> frozenset[str]:
    """Return the names of a module of the standard library on a system, with this version of Python."""
    return frozenset(_defined(ast.parse(_stub(module).read_text()).body, system, taken=True))


def _defined(body: list[ast.stmt], system: str, *, taken: bool = False) -> Iterator[str]:
    """Yield the names that a stub defines; with ``taken`` also those that it imports from other stubs."""
    for statement in _statements(body, system):
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield statement.name
        elif isinstance(statement, ast.ClassDef):
            yield statement.name
            if any(ast.unparse(base) in ("IntEnum", "IntFlag") for base in statement.bases):
                yield from _defined(statement.body, system)  # its members are also names of the module
        elif isinstance(statement, ast.ImportFrom):
            for alias in statement.names if taken else ():
                if alias.name == "*":
                    assert statement.module is not None
                    yield from (name for name in names(statement.module, system) if not name.startswith("_"))
                else:
                    yield alias.asname or alias.name
        else:
            yield from (target.id for target in _targets(statement))


def _targets(statement: ast.stmt) -> Iterator[ast.Name]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    for target in targets:
        if isinstance(target, ast.Name):
            yield target


def lacking(module: str, system: str) -> frozenset[str]:
    """Return the names that a module has on Linux but not on the other system."""
    return names(module, "linux") - names(module, system)


@functools.cache
def missing_module(module: str, system: str) -> bool:
    """Return whether a module of the standard library exists on Linux, but is missing or empty on the other system."""
    if module.split(".")[0] not in sys.stdlib_module_names or not _stub(module).exists():
        return False
    return _has_content(module, "linux") and not _has_content(module, system)


def _has_content(module: str, system: str) -> bool:
    body = ast.parse(_stub(module).read_text()).body
    if not any(isinstance(each, ast.If) and "sys.platform" in ast.unparse(each.test) for each in body):
        return True
    return any(not name.startswith("_") for name in _defined(body, system))


class _Simulated(ModuleType):
    """A module of the standard library as on the other system."""

    def __init__(self, real: ModuleType, system: str, **others: Any) -> None:
        super().__init__(real.__name__, real.__doc__)
        self.__dict__.update(_real=real, _lacking=lacking(real.__name__, system), **others)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__["_lacking"]:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on the simulated system")
        return getattr(self.__dict__["_real"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_real"], name, value)


def _of_windows(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of `os` that refuses descriptors of directories."""

    @functools.wraps(function)
    def refuse(*arguments: Any, **options: Any) -> Any:
        if "dir_fd" in options:
            raise NotImplementedError("dir_fd unavailable on this platform")
        return function(*arguments, **options)

    return refuse


def _select_of_windows(reading: list[Any], writing: list[Any], others: list[Any], timeout: float | None = None) -> Any:
    import select

    for file in (*reading, *writing, *others):
        number = file if isinstance(file, int) else file.fileno()
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            raise OSError(10038, "an operation was attempted on something that is not a socket")
    return select.select(reading, writing, others, timeout)


def _hide_paths(event: str, arguments: tuple[Any, ...]) -> None:
    """Hide /proc from the modules of nfnet."""
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(_HIDDEN_PATHS):
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.split(".")[0] in _SIMULATED:
            raise FileNotFoundError(2, "No such file or directory", arguments[0])


def pretend(system: str) -> None:
    """Simulate another system for nfnet. Must be called before nfnet is imported."""
    assert system in SYSTEMS
    assert "nfnet" not in sys.modules, "nfnet was imported already"
    others: dict[str, dict[str, Any]] = {name: {} for name in MODULES}
    others["sys"] = {"platform": system}
    if system == "win32":
        others["os"] = {
            name: _of_windows(getattr(os, name)) for name in ("open", "stat", "readlink", "mkdir", "unlink")
        }
        others["os"].update(O_BINARY=0)
        others["select"] = {"select": _select_of_windows}
    simulated = {name: _Simulated(importlib.import_module(name), system, **others[name]) for name in MODULES}
    simulated["os"].__dict__["path"] = os.path
    really_import = builtins.__import__

    def import_there(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> ModuleType:
        importer = (globals or {}).get("__name__", "").split(".")[0]
        if level or importer not in _SIMULATED:
            return really_import(name, globals, locals, fromlist, level)
        if missing_module(name, system):
            raise ModuleNotFoundError(f"No module named {name!r} on the simulated system", name=name)
        found = really_import(name, globals, locals, fromlist, level)
        return simulated.get(found.__name__, found)

    builtins.__import__ = import_there
    sys.addaudithook(_hide_paths)
    # nfnet copies this module without an import statement.
    native = importlib.import_module("nfnet._io.native")
    native.select = simulated["select"]  # type: ignore[attr-defined]


def pytest_report_header() -> str:
    return f"a simulation of {os.environ.get('NFNET_SYSTEM')}, see tests/other_systems.py"


if os.environ.get("NFNET_SYSTEM") and __name__ != "__main__":  # imported as a plugin of pytest
    pretend(os.environ["NFNET_SYSTEM"])

if __name__ == "__main__":
    system, script, *sys.argv = sys.argv[1], sys.argv[2], *sys.argv[2:]
    pretend(system)
    runpy.run_path(script, run_name="__main__")
