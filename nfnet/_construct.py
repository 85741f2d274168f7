"""What nfnet uses of construct.

construct imports pdb, Python's debugger, which from Python 3.14 on imports asyncio and ssl, and takes longer to import
than all the rest. So an empty module takes its place, unless pdb was imported before: it is executed, and thus becomes
pdb, when a program first reads one of its attributes. (importlib.util.LazyLoader would execute it already in
construct's import statement, which reads the attribute ``__spec__``.)
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from ._io.locks import RLock


class _Unexecuted(ModuleType):
    """A module that is executed when an attribute is read that it does not have."""

    def __getattr__(self, name: str) -> Any:
        _execute(self)
        return ModuleType.__getattribute__(self, name)  # not super(): the class of `self` has changed

    def __dir__(self) -> list[str]:
        _execute(self)
        return sorted(self.__dict__)


_lock = RLock()  # other threads wait until the module is complete
_unexecuted: dict[str, ModuleSpec] = {}


def _execute(module: ModuleType) -> None:
    with _lock:
        spec = _unexecuted.pop(module.__name__, None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module(module)
            module.__class__ = ModuleType


def _postpone(name: str) -> None:
    """Let the next import statement import a module without executing it."""
    spec = None if name in sys.modules else find_spec(name)
    if spec is not None:
        _unexecuted[name] = spec
        module = sys.modules[name] = _Unexecuted(name)
        module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin


_postpone("pdb")

from construct import (  # noqa: E402
    Bytes,
    Const,
    Construct,
    ConstructError,
    Default,
    FormatField,
    GreedyBytes,
    GreedyRange,
    Int8ub,
    Int16ub,
    Int16ul,
    Int32ub,
    Int32ul,
    Int64sb,
    Int64sl,
    Int64ub,
    NullStripped,
    Optional,
    Padded,
    Padding,
    Rebuild,
    Renamed,
    Struct,
    this,
)

__all__ = [
    "Bytes",
    "Const",
    "Construct",
    "ConstructError",
    "Default",
    "FormatField",
    "GreedyBytes",
    "GreedyRange",
    "Int8ub",
    "Int16ub",
    "Int16ul",
    "Int32ub",
    "Int32ul",
    "Int64sb",
    "Int64sl",
    "Int64ub",
    "NullStripped",
    "Optional",
    "Padded",
    "Padding",
    "Rebuild",
    "Renamed",
    "Struct",
    "this",
]
