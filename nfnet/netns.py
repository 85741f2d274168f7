"""Network namespaces: work in another one, or in a new one, without moving the calling thread."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol, TypeVar

from ._arguments import check, wrong_type
from ._io.locks import uninterrupted
from ._io.native import thread
from ._io.system import check_linux
from .errors import ArgumentError, KernelError, NotPermittedError, check_system, system_error

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

_WHAT = "a name in /run/netns, a path, an open file or a file descriptor"
_USER_NAMESPACES = "CAP_SYS_ADMIN is needed for that, or a machine on which users may create user namespaces"

_T = TypeVar("_T")


class _File(Protocol):
    def fileno(self) -> int: ...


Netns = str | os.PathLike[str] | int | _File
"""The name of a namespace in /run/netns, a path, an open file, or an int, the file descriptor of one.

The namespace of a process is the path /proc/PID/ns/net. A file must stay open as long as a queue or log uses it.
"""


def _libc(call: str, *arguments: int) -> None:
    import ctypes  # the import takes a millisecond; os.unshare and os.setns need Python 3.12

    if ctypes.CDLL(None, use_errno=True)[call](*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces (``unshare(2)``); CLONE_NEWUSER needs a process of one thread.

    Raises NotPermittedError or another KernelError.
    """
    check_linux("making a namespace of our own")
    try:
        _libc("unshare", flags)
    except PermissionError as error:
        check_system(error)
        operation = "making a namespace of our own"
        raise NotPermittedError(operation, error.errno or errno.EPERM, hint=_USER_NAMESPACES) from None
    except OSError as error:
        raise system_error("making a namespace of our own", error) from None


def enter(netns: Netns) -> None:
    """Move the calling thread into a network namespace (``setns(2)``). Raises ArgumentError, KernelError."""
    check_netns(netns)
    operation = f"entering the network namespace {netns!r}"
    check_linux(operation)
    try:
        if isinstance(netns, (str, os.PathLike)):
            path = os.fspath(netns)
            path = path if "/" in path else f"/run/netns/{path}"
            operation = f"entering network namespace {path}"
            with open(path) as file:
                _libc("setns", file.fileno(), CLONE_NEWNET)
        elif isinstance(netns, int):
            operation = f"entering the network namespace that file descriptor {netns} is open on"
            _libc("setns", netns, CLONE_NEWNET)
        else:
            _libc("setns", _descriptor(netns), CLONE_NEWNET)
    except PermissionError as error:
        check_system(error)
        hint = "CAP_SYS_ADMIN is needed to enter a namespace, and CAP_NET_ADMIN in it"
        raise NotPermittedError(operation, error.errno or errno.EPERM, hint=hint) from None
    except OSError as error:
        check_system(error)
        if isinstance(netns, int) and error.errno is not None:
            hint = f"The namespace of process {netns} is netns='/proc/{netns}/ns/net'"
            raise KernelError(operation, error.errno, hint=hint) from None
        if isinstance(error, FileNotFoundError):
            hint = "The command ip netns lists names; the namespace of a process is /proc/PID/ns/net"
            raise KernelError(operation, errno.ENOENT, hint=hint) from None
        raise system_error(operation, error) from None


def _descriptor(file: _File) -> int:
    try:
        return file.fileno()
    except ValueError:  # raised for a closed file
        raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None


def check_netns(netns: Netns | None) -> None:
    """Raise ArgumentError for a value that cannot specify a network namespace, whether or not the namespace exists."""
    if netns is None:
        return
    if isinstance(netns, int):
        check("netns (a file descriptor)", netns, 0, 0x7FFFFFFF)
    elif isinstance(netns, (str, os.PathLike)):
        path = os.fspath(netns)
        if not path or "\0" in path:
            raise ArgumentError(f"netns is {path!r} and must be {_WHAT}")
    elif not hasattr(netns, "fileno"):
        raise wrong_type("netns", netns, _WHAT)


def become_root() -> None:
    """Move the process, which must have one thread, into a new user namespace in which it is root.

    There, an ordinary user can create network namespaces and has all privileges in them. Raises KernelError if the
    machine does not allow it.
    """
    check_linux("becoming root of a namespace of our own")
    uid, gid = os.geteuid(), os.getegid()
    # A joined thread may not have left the process yet, and the kernel still counts it.
    deadline = time.monotonic() + 1
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    unshare(CLONE_NEWUSER)
    try:
        for file, line in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{file}", "w") as stream:
                stream.write(line)
    except PermissionError as error:
        check_system(error)
        operation = "becoming root of a namespace of our own"
        raise NotPermittedError(operation, error.errno or errno.EPERM, hint=_USER_NAMESPACES) from None
    except OSError as error:
        raise system_error("becoming root of a namespace of our own", error) from None


def create() -> BinaryIO:
    """Create a network namespace, and return an open file that keeps it alive. Raises KernelError."""

    def make() -> BinaryIO:
        unshare(CLONE_NEWNET)
        return open("/proc/thread-self/ns/net", "rb")

    return _in_thread(make)


def call_in(netns: Netns | None, function: Callable[[], _T]) -> _T:
    """Call ``function`` in a network namespace and return its result; the calling thread does not move.

    None is the namespace of the calling thread.

    A socket belongs permanently to the namespace in which it was created. Each thread has its own current namespace, so
    this starts a thread, which ends with the call. Raises KernelError if the namespace does not exist or must not be
    entered.
    """
    if netns is None:
        return function()

    def work() -> _T:
        enter(netns)
        return function()

    return _in_thread(work)


def call_in_open(netns: BinaryIO, function: Callable[[], _T]) -> _T:
    """Like `call_in`, for an open namespace; if this thread is in it already, call here, without any privilege."""
    try:
        here = os.stat("/proc/thread-self/ns/net")
    except OSError as error:
        raise system_error("finding the network namespace of this thread", error) from None
    return function() if os.path.samestat(os.fstat(netns.fileno()), here) else call_in(netns, function)


def _in_thread(function: Callable[[], _T]) -> _T:
    """Call a function in a new thread, whose namespace it can change.

    `threading.Thread` cannot be used: if gevent has made it a greenlet, the namespace would be the caller's.
    """
    outcome: dict[str, Any] = {}
    working = thread.allocate_lock()
    working.acquire()

    def work() -> None:
        try:
            outcome["result"] = function()
        except BaseException as error:
            outcome["error"] = error
        finally:
            working.release()

    def wait() -> None:
        while not outcome:
            working.acquire()

    for _ in uninterrupted(thread.start_new_thread, work, ()):
        try:
            wait()
        finally:
            wait()  # also after KeyboardInterrupt: the thread must not outlive this call
    try:
        if "error" in outcome:
            raise outcome["error"]
        result: _T = outcome["result"]
        return result
    finally:
        outcome.clear()  # otherwise the error keeps the objects in its traceback's frames alive
