"""Python's own `select` and `_thread`, even if gevent or eventlet has replaced them.

``gevent.monkey.patch_all()`` and ``eventlet.monkey_patch()`` replace functions in the modules of the standard library,
so that a function that would block lets other greenlets run. They remove functions for which they have no replacement,
such as `select.epoll`; and their threads are greenlets, which share the network namespace of the thread in which they
run. nfnet needs the original `select` and `_thread`. `_socket`, on which `socket` is built, is not replaced.
"""

from __future__ import annotations

import _socket
import importlib.util
import select as standard_select
from types import BuiltinFunctionType, ModuleType
from typing import TYPE_CHECKING

__all__ = ["among_greenlets", "new_socket", "select", "thread"]


def _original(name: str) -> ModuleType:
    """Return a new copy of a module that is written in C, without the changes made to the imported one."""
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


def among_greenlets() -> bool:
    """Return whether `select.select` was replaced by a Python function, which lets other greenlets run."""
    return not isinstance(standard_select.select, BuiltinFunctionType)


# Not `socket.socket`: gevent and eventlet replace it by a class whose `recv` waits in spite of MSG_DONTWAIT.
def new_socket(family: int, kind: int, protocol: int = 0) -> _socket.socket:
    """Return a new socket, not inheritable, whose methods do exactly what the system calls do.

    After `socket.setdefaulttimeout` new sockets have a timeout, and Python waits before each system call, even with
    MSG_DONTWAIT. This socket has none.
    """
    sock = _socket.socket(family, kind, protocol)
    sock.settimeout(None)
    return sock
