"""Python's own `select` and `_thread`, whatever stands in their place.

``gevent.monkey.patch_all()`` and ``eventlet.monkey_patch()`` put functions of their own into the modules of the
standard library, so that what would block lets other greenlets run. What they have no replacement for they remove, such
as `select.epoll`; and their threads are greenlets, which share the network namespace of the thread in which they run.
Both of these nfnet needs as they are. They leave `_socket` alone, of which `socket` is made.
"""

from __future__ import annotations

import _socket
import importlib.util
import select as standard_select
import socket
from types import BuiltinFunctionType, ModuleType
from typing import TYPE_CHECKING

__all__ = ["among_greenlets", "new_socket", "select", "thread"]


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


def among_greenlets() -> bool:
    """Whether something written in Python stands in the place of `select.select`, which lets other greenlets run."""
    return not isinstance(standard_select.select, BuiltinFunctionType)


# Not `socket.socket`, in whose place gevent and eventlet put a class of which `recv` waits although it is told not to.
def new_socket(family: int, kind: int, protocol: int = 0) -> _socket.socket:
    """A new socket, not inheritable, whose methods do just what the system calls do.

    With `socket.setdefaulttimeout` sockets are born with a timeout, for which Python waits before each system call,
    whatever its flags say, MSG_DONTWAIT among them.
    """
    sock = _socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    sock.settimeout(None)
    return sock
