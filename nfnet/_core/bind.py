"""Binding a queue or a log group, and what it means if the kernel refuses."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping

from .._arguments import check_flag
from .._io.transport import Transport
from ..errors import BusyError, KernelError, NotPermittedError, NotSupportedError
from ..protocol import nfqnl
from ..protocol.nfnetlink import FlagOption
from ..protocol.nfqnl import Command

Request = Callable[[int], bytes]
"""Makes a request for a sequence number."""


def asked_for(options: Iterable[FlagOption], values: Mapping[str, bool]) -> int:
    """The flags whose arguments are True. Raises ArgumentTypeError for what is neither True nor False."""
    return sum(option.flag for option in options if check_flag(option.name, values[option.name]))


def request_for(option: FlagOption, config: Callable[..., bytes]) -> Request:
    """The request for one flag alone."""
    return lambda seq: config(flags=option.flag, seq=seq, ack=True)


def one_by_one(
    options: Iterable[FlagOption], flags: int, config: Callable[..., bytes]
) -> Iterator[tuple[str, Request]]:
    """Those of the flags that a kernel may lack, each with the request for it alone."""
    return ((option.name, request_for(option, config)) for option in options if option.optional and flags & option.flag)


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
    owner: says who has the queue or group, if another socket has, and what to do about it.

    Raises BusyError, NotPermittedError, NotSupportedError, or another KernelError.
    """
    operation = f"binding {name}"
    try:
        transport.request(request, operation)
    except NotPermittedError:
        # The kernel answers EPERM to "somebody has it" and to "you may not".
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
        # The request is valid, so this is nfnetlink that knows no such subsystem.
        hint = f"This kernel cannot do that: load the module {module}"
        raise NotSupportedError(operation, errno.EINVAL, message=error.message, hint=hint) from None


def _may(transport: Transport, operation: str) -> bool:
    """Whether this process has the privilege, for which the kernel looks before everything else."""
    try:  # a request without effect
        transport.request(lambda seq: nfqnl.config(0, command=Command.PF_BIND, seq=seq, ack=True), operation)
    except NotPermittedError:
        return False
    except KernelError:
        pass
    return True


def _supports(transport: Transport, request: Request) -> bool:
    """Whether the kernel knows a flag; it looks at that before anything else, so this changes nothing."""
    try:
        transport.request(request, "asking for a flag")
    except NotSupportedError:
        return False
    except KernelError:  # ENODEV: nothing is bound
        pass
    return True
