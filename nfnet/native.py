"""Python's own `select` and `_thread`, whatever stands in their place.

``gevent.monkey.patch_all()`` and ``eventlet.monkey_patch()`` put functions of their own into the modules of the
standard library, so that what would block lets other greenlets run. What they have no replacement for they remove, such
as `select.epoll`; and their threads are greenlets, which share the network namespace of the thread in which they run.
Both of these nfnet needs as they are. They leave `_socket` alone, of which `socket` is made.
"""

from __future__ import annotations

import importlib.util
from types import BuiltinFunctionType, ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["is_replaced", "select", "thread"]


def _original(name: str) -> ModuleType:
    """A module that is written in C, made anew: a copy of which nobody has changed anything."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    import _thread as thread
    import select
else:
    select = _original("select")
    thread = _original("_thread")


def is_replaced(function: Any) -> bool:
    """Whether something written in Python stands in the place of a function that is written in C."""
    return not isinstance(function, BuiltinFunctionType)
