"""The wire format: bytes to values, and back. No sockets, no clocks, no files.

Every layout is a construct schema and every attribute a row of a table; `layout` derives the fast readers from them.
"""

from __future__ import annotations

import importlib
from types import ModuleType

_MODULES = ("conntrack", "enumerations", "nfnetlink", "nfqnl", "nfulnl")


def __getattr__(name: str) -> ModuleType:
    """Import a public module when it is first used."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
