"""Replacements of the packages NetfilterQueue and nflogr, with which scripts written for them run unchanged.

    python -m nfnet.compat script.py arguments ...

or, in a program, before it imports them::

    import nfnet.compat
    nfnet.compat.install()

or import `nfnet.compat.netfilterqueue` and `nfnet.compat.nflogr` themselves.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from ._run import run as run

MODULES = ("netfilterqueue", "nflogr")


def __getattr__(name: str) -> ModuleType:
    """Import a module when it is first used."""
    if name in MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})


def install() -> None:
    """Make ``import netfilterqueue`` and ``import nflogr`` import this package's modules from now on in this process.

    Installed packages of these names are not changed. Modules that have already imported one of them keep it.
    """
    for name in MODULES:
        sys.modules[name] = importlib.import_module(f"{__name__}.{name}")
