"""Every error that nfnet raises on purpose.

All of them derive from `NfnetError`, so one ``except`` clause catches what the library says and nothing else.
An error that the operating system caused is also the `OSError` that fits, with its ``errno``; an argument that
cannot be right is also a `ValueError`.
"""

from __future__ import annotations

import errno as _errno
import os

from ._printable import printable

# The kernel's internal ENOTSUPP: it leaks to user space from nfnetlink, and no libc has a text for it.
ENOTSUPP = 524


def strerror(errno: int) -> str:
    """What an errno means, in the C library's words; also of what is no errno at all, as a damaged answer has it."""
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
    """An argument is of a type that cannot be right, which Python calls a TypeError; nothing was sent to the kernel."""


class NoElementError(ArgumentError, KeyError):
    """An element that was to be removed from a set is not in it, which Python calls a KeyError."""

    __str__ = Exception.__str__  # that of KeyError would put it in quotes


class DecodeError(NfnetError, ValueError):
    """Bytes that are no whole netlink message.

    ``what`` is what is wrong, ``offset`` where in the datagram the reading failed, in bytes from its start.
    """

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(f"{what} (at byte {offset})")
        self.what = what
        self.offset = offset


class CaptureError(DecodeError):
    """A file that is no capture, stops in the middle of a record, or has a damaged record in it.

    ``what`` is what is wrong, ``offset`` where in the file, and ``record`` the number of the record, from 1; None if it
    is none of a record.
    """

    def __init__(self, what: str, offset: int, record: int | None = None) -> None:
        super().__init__(what if record is None else f"record {record}: {what}", offset)
        self.what = what
        self.record = record


class ClosedError(NfnetError):
    """The queue, or the binding that a packet came from, is closed."""


class BusyReadingError(NfnetError):
    """The queue is being read by another loop already."""


class AlreadyDecidedError(NfnetError):
    """A second verdict on a packet; the first one stands."""


class KernelError(NfnetError, OSError):
    """The kernel refused a request, or the socket failed.

    ``operation`` is what was being done, ``errno`` the kernel's number, ``message`` the kernel's own text from the
    extended acknowledgement (None when it gave none), ``hint`` what can be done about it (or None). ``reason``
    stands in for the usual words for the errno.
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
    """The error that fits an errno, with what can be done about it."""
    if errno in (_errno.EPERM, _errno.EACCES):
        hint = (
            "CAP_NET_ADMIN over this network namespace is needed, for every verdict too: run as root, or give the"
            " process that capability"
        )
        return NotPermittedError(operation, errno, message=message, hint=hint)
    if errno in (_errno.EOPNOTSUPP, ENOTSUPP, _errno.EPROTONOSUPPORT, _errno.EAFNOSUPPORT):
        hint = "This kernel, or this container, does not offer it"
        return NotSupportedError(operation, errno, message=message, hint=hint)
    if errno == _errno.ENOSPC:
        hint = "A limit of the machine is reached or set to 0: see user.max_user_namespaces and user.max_net_namespaces"
        return KernelError(operation, errno, message=message, hint=hint)
    if errno == _errno.ENOBUFS:
        hint = "Packets were lost: handle them faster, or ask for a larger buffer (rcvbuf=)"
        return OverrunError(operation, errno, message=message, hint=hint)
    if errno == _errno.EMSGSIZE:
        hint = (
            "It is larger than the send buffer of a socket, which net.core.wmem_max limits in a user namespace: raise"
            " that, or do it in several steps"
        )
        return KernelError(operation, errno, message=message, hint=hint)
    return KernelError(operation, errno, message=message)


class NotPermittedError(KernelError, PermissionError):
    """The process lacks CAP_NET_ADMIN over the network namespace of the socket, or CAP_NET_RAW to inject (EPERM)."""


class BusyError(KernelError, PermissionError):
    """Another socket owns the queue or group. The kernel answers EPERM, as for a missing privilege."""


class NotSupportedError(KernelError):
    """This kernel lacks what was asked for (EOPNOTSUPP, ENOTSUPP, EPROTONOSUPPORT, or EINVAL for a subsystem)."""


class AckTimeoutError(KernelError, TimeoutError):
    """The kernel's answer to a request did not arrive in time (ETIMEDOUT); the request may have been executed."""


class OverrunError(KernelError):
    """The receive buffer was full and the kernel could not deliver packets (ENOBUFS)."""
