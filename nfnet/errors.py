"""The errors that nfnet raises.

All of them derive from `NfnetError`, so one ``except`` clause catches the errors of this library and no others.
An error that the operating system caused is also an `OSError`, of the subclass for its ``errno``; the error for an
invalid argument is also a `ValueError`.
"""

from __future__ import annotations

import errno as _errno
import os
import sys

from ._printable import printable

# The kernel's internal ENOTSUPP: nfnetlink returns it to user space, and no C library has a text for it.
ENOTSUPP = 524

_PACKAGE = f"{__package__}."


def strerror(errno: int) -> str:
    """Return the C library's text for an errno, or "Unknown error N" for any other number, from a damaged answer."""
    if errno == ENOTSUPP:
        return "Operation not supported"
    try:
        return os.strerror(errno)
    except OverflowError:
        return f"Unknown error {errno}"


class NfnetError(Exception):
    """The root of all errors of this package."""


class ArgumentError(NfnetError, ValueError):
    """An argument is outside its range; nothing was sent to the kernel."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument has a wrong type, so this is also a TypeError; nothing was sent to the kernel."""


class NoElementError(ArgumentError, KeyError):
    """An element to be removed from a set is not in it, so this is also a KeyError."""

    __str__ = Exception.__str__  # KeyError would put the message in quotes


class DecodeError(NfnetError, ValueError):
    """Bytes that are not a complete, well-formed netlink message.

    ``what`` describes the problem; ``offset`` is its position in the datagram, in bytes from the start.
    """

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(f"{what} (at byte {offset})")
        self.what = what
        self.offset = offset


class CaptureError(DecodeError):
    """A file that is not a capture, ends in the middle of a record, or contains a damaged record.

    ``what`` describes the problem; ``offset`` is its position in the file, in bytes from the start; ``record`` is the
    number of the record, from 1, or None if the problem is not in a record.
    """

    def __init__(self, what: str, offset: int, record: int | None = None) -> None:
        super().__init__(what if record is None else f"record {record}: {what}", offset)
        self.what = what
        self.record = record


class ClosedError(NfnetError):
    """The queue, or the binding that a packet came from, is closed."""


class BusyReadingError(NfnetError):
    """Another loop is reading the queue already."""


class AlreadyDecidedError(NfnetError):
    """The packet has a verdict already; the second one was not sent."""


class KernelError(NfnetError, OSError):
    """The kernel refused a request, or the socket failed.

    ``operation`` describes the failed operation, ``errno`` is the kernel's number, ``message`` the kernel's text from
    the extended acknowledgement (or None), and ``hint`` a remedy (or None). ``reason`` replaces the C library's text
    for the errno.
    """

    def __init__(
        self,
        operation: str,
        errno: int,
        *,
        message: str | None = None,
        hint: str | None = None,
        reason: str | None = None,
    ) -> None:
        text = reason or strerror(errno).lower()
        OSError.__init__(self, errno, text)
        self.operation = operation
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        assert self.errno is not None
        name = "ENOTSUPP" if self.errno == ENOTSUPP else _errno.errorcode.get(self.errno, str(self.errno))
        text = f"{self.operation}: {self.strerror} [{name}]"
        if self.message:
            text += f'; the kernel says "{printable(self.message)}"'
        if self.hint:
            text += f". {self.hint}"
        return text


def kernel_error(operation: str, errno: int, *, message: str | None = None) -> KernelError:
    """Return the error for an errno, with a hint for a remedy."""
    if errno in (_errno.EPERM, _errno.EACCES):
        hint = (
            "CAP_NET_ADMIN over this network namespace is needed, also for every verdict: run as root, or give the"
            " process that capability"
        )
        return NotPermittedError(operation, errno, message=message, hint=hint)
    if errno in (_errno.EOPNOTSUPP, ENOTSUPP, _errno.EPROTONOSUPPORT, _errno.EAFNOSUPPORT):
        hint = "This kernel, or this container, does not support it"
        return NotSupportedError(operation, errno, message=message, hint=hint)
    if errno == _errno.ENOSPC:
        hint = "A limit of the machine is reached or set to 0: see user.max_user_namespaces and user.max_net_namespaces"
        return KernelError(operation, errno, message=message, hint=hint)
    if errno == _errno.ENOBUFS:
        hint = "Packets were lost: handle them faster, or use a larger buffer (rcvbuf=)"
        return OverrunError(operation, errno, message=message, hint=hint)
    if errno == _errno.EMSGSIZE:
        hint = (
            "It is larger than the send buffer of a socket, which net.core.wmem_max limits in a user namespace: raise"
            " that limit, or split the request"
        )
        return KernelError(operation, errno, message=message, hint=hint)
    return KernelError(operation, errno, message=message)


def system_error(operation: str, error: OSError) -> OSError:
    """Return the error to raise in place of an OSError that occurred in a system call.

    This is ``error`` itself if a signal handler raised it, because the program expects to catch that.
    """
    return error if error.errno is None or raised_by_program(error) else kernel_error(operation, error.errno)


def check_system(error: OSError) -> None:
    """Raise an OSError that a signal handler raised, so that it is not taken for one of a system call."""
    if raised_by_program(error):
        raise error


def raised_by_program(error: OSError) -> bool:
    """Return whether a signal handler of the program raised an OSError during a system call of this package.

    It has no errno, as in ``raise TimeoutError``; or its traceback contains a function that belongs neither to this
    package nor to the standard library: the signal handler could not open a file, for instance.
    """
    if error.errno is None:
        return True
    trace = error.__traceback__ and error.__traceback__.tb_next  # the first function is the one that caught it
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__") or ""
        if not module.startswith(_PACKAGE) and module.partition(".")[0] not in sys.stdlib_module_names:
            return True
        trace = trace.tb_next
    return False


class NotPermittedError(KernelError, PermissionError):
    """The process lacks CAP_NET_ADMIN over the network namespace of the socket, or CAP_NET_RAW to inject (EPERM)."""


class BusyError(KernelError, PermissionError):
    """Another socket owns the queue or group. The kernel answers EPERM, as for a missing privilege."""


class NotSupportedError(KernelError):
    """This kernel lacks the requested feature (EOPNOTSUPP, ENOTSUPP, EPROTONOSUPPORT, or EINVAL for a subsystem)."""


class AckTimeoutError(KernelError, TimeoutError):
    """The kernel's answer to a request did not arrive in time (ETIMEDOUT); the kernel may have executed it."""


class OverrunError(KernelError):
    """The receive buffer was full, so the kernel could not deliver packets (ENOBUFS)."""
