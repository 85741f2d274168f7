"""Stands in for the packages NetfilterQueue and nflogr, so that scripts written for them run unchanged.

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
    """The modules, imported when somebody asks for them."""
    if name in MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})


def install() -> None:
    """From now on ``import netfilterqueue`` and ``import nflogr`` give this package's modules, in this process.

    The packages of these names, if they are installed, are left as they are; who has imported one keeps it.
    """
    for name in MODULES:
        sys.modules[name] = importlib.import_module(f"{__name__}.{name}")
