"""Send the request that binds a queue or a log group, and explain why the kernel refused it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from .._io.transport import Transport
from ..errors import BusyError, KernelError, NotPermittedError, NotSupportedError
from ..protocol import nfqnl
from ..protocol.nfqnl import Command
from .flags import Request


def bind(
    transport: Transport,
    name: str,
    request: Request,
    *,
    module: str,
    flags: Iterable[tuple[str, Request]],
    owner: Callable[[], tuple[str, str | None]],
) -> None:
    """Send the request that binds ``name``.

    module: the kernel's module, which may be missing.
    flags: options that a kernel may lack, each with a request that the kernel refuses if it does.
    owner: called if another socket owns the queue or group; returns a description of the owner, and a remedy.

    Raises BusyError, NotPermittedError, NotSupportedError, or another KernelError.
    """
    operation = f"binding {name}"
    try:
        transport.request(request, operation)
    except NotPermittedError:
        # The kernel answers EPERM both if another socket owns the queue and if the process lacks CAP_NET_ADMIN.
        if not _may(transport, operation):
            raise
        reason, hint = owner()
        raise BusyError(operation, errno.EPERM, reason=reason, hint=hint) from None
    except NotSupportedError as error:
        lacking = [option for option, ask in flags if not _supports(transport, ask)]
        hint = f"This kernel has no support for {' and '.join(lacking)}" if lacking else error.hint
        raise NotSupportedError(operation, error.errno or 0, message=error.message, hint=hint) from None
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
        # The request is valid, so nfnetlink does not know the subsystem: the module is missing.
        hint = f"This kernel cannot do that: load the module {module}"
        raise NotSupportedError(operation, errno.EINVAL, message=error.message, hint=hint) from None


def _may(transport: Transport, operation: str) -> bool:
    """Return whether the process has CAP_NET_ADMIN. The kernel checks this first."""
    try:  # this request has no effect
        transport.request(lambda seq: nfqnl.config(0, command=Command.PF_BIND, seq=seq, ack=True), operation)
    except NotPermittedError:
        return False
    except KernelError:
        pass
    return True


def _supports(transport: Transport, request: Request) -> bool:
    """Return whether the kernel knows a flag. It checks flags before it changes anything, and nothing is bound yet."""
    try:
        transport.request(request, "asking for a flag")
    except NotSupportedError:
        return False
    except KernelError:  # ENODEV: nothing is bound
        pass
    return True
