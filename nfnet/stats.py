"""Counters of queues and logs, and their status in the kernel, from /proc."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from ._io.system import check_linux
from ._io.transport import SocketStatus
from ._printable import printable
from ._processes import process_with_id, process_with_socket, this_process_has_socket
from .errors import DecodeError, NfnetError, NotPermittedError, check_system, system_error
from .netns import Netns, call_in
from .protocol.nfnetlink import NETLINK_NETFILTER
from .protocol.nfqnl import CopyMode

# /proc/net belongs to the process's first thread, which may be in another namespace.
_DIRECTORY = "/proc/thread-self/net/netfilter"


class QueueCounters(NamedTuple):
    """What happened since the queue was opened, in packets.

    ``received == accepted + dropped + repeated + requeued + pending`` at any moment when no other thread is sending a
    verdict. Verdicts are counted when they are sent; STOP counts as accepted. ``pending`` packets have no verdict
    yet: they wait for the handler, or their handler left them undecided. ``lost`` counts gaps in the packet ids:
    packets that the kernel could not deliver because the receive buffer was full, or because more than 65,536 were
    waiting (dropped, or accepted if the queue is ``fail_open``); after closing, also packets lost after the last
    received one, if `QueueStatus` could be read. ``overruns`` is how often loss was noticed. ``refused`` counts the
    errors with which the kernel answered verdicts, by errno: ENOENT if the kernel had dropped the packets already,
    because a rule was removed or an interface taken down. ``malformed`` datagrams were not packets of this queue.
    """

    received: int
    accepted: int
    dropped: int
    repeated: int
    requeued: int
    pending: int
    lost: int
    overruns: int
    refused: dict[int, int]
    malformed: int


class QueueStatus(NamedTuple):
    """The kernel's status of a queue (/proc/net/netfilter/nfnetlink_queue).

    ``port_id`` is the netlink port of the socket that owns the queue; ``waiting`` packets have no verdict yet;
    ``queue_dropped`` packets arrived when ``max_len`` (or 65,536) packets were waiting; ``user_dropped`` packets did
    not fit into the receive buffer (with fail-open neither counts); ``last_id`` is the id of the newest packet, modulo
    2^32.
    """

    num: int
    port_id: int
    waiting: int
    copy_mode: CopyMode
    copy_range: int
    queue_dropped: int
    user_dropped: int
    last_id: int


class QueueStats(NamedTuple):
    """A queue's own counters, and the kernel's status of the queue and of its socket.

    ``kernel`` is None if the process cannot read it; only root of the machine can. Then ``counters.pending`` still is
    the number of packets that wait in this program, and ``socket.dropped`` the number that did not fit into the
    receive buffer, but the number that did not fit into the queue is unknown. ``socket`` is None before Linux 4.12.
    Both are None for a replay, which has no queue in the kernel, and after closing.
    """

    counters: QueueCounters
    kernel: QueueStatus | None
    socket: SocketStatus | None


class LogCounters(NamedTuple):
    """What happened since the log was opened.

    ``received`` is the number of messages; ``lost`` counts gaps in their sequence numbers, and is None without
    ``sequence=True``; ``overruns`` is how often loss was noticed; ``malformed`` datagrams could not be decoded.
    """

    received: int
    lost: int | None
    overruns: int
    malformed: int


class LogStatus(NamedTuple):
    """The kernel's status of a log group (/proc/net/netfilter/nfnetlink_log).

    ``port_id`` is the netlink port of the socket that owns the group; ``waiting`` messages are in the kernel's buffer;
    ``timeout`` is in seconds.
    """

    group: int
    port_id: int
    waiting: int
    copy_mode: CopyMode
    copy_range: int
    timeout: float


class LogStats(NamedTuple):
    """A log's own counters, and the kernel's status of the log group and of its socket; see `QueueStats`."""

    counters: LogCounters
    kernel: LogStatus | None
    socket: SocketStatus | None


def queues(netns: Netns | None = None) -> list[QueueStatus]:
    """Return all queues of a network namespace, of all processes. Raises NotPermittedError or another KernelError."""
    return [
        QueueStatus(num, port_id, waiting, CopyMode(mode), size, queue_dropped, user_dropped, last_id)
        for num, port_id, waiting, mode, size, queue_dropped, user_dropped, last_id, _ in _rows(
            "nfnetlink_queue", 9, netns
        )
    ]


def logs(netns: Netns | None = None) -> list[LogStatus]:
    """Return all log groups of a network namespace, of all processes. Raises NotPermittedError or a KernelError."""
    return [
        LogStatus(group, port_id, waiting, CopyMode(mode), size, timeout / 100)
        for group, port_id, waiting, mode, size, timeout, _ in _rows("nfnetlink_log", 7, netns)
    ]


def find_queue(num: int, netns: Netns | None = None) -> QueueStatus | None:
    """Return the status of one queue; None if no socket is bound to it, or the kernel's list cannot be read."""
    return next((queue for queue in _readable(queues, netns) if queue.num == num), None)


def find_log(group: int, netns: Netns | None = None) -> LogStatus | None:
    """Return the status of one log group; None if no socket is bound to it, or the kernel's list cannot be read."""
    return next((log for log in _readable(logs, netns) if log.group == group), None)


Status = TypeVar("Status", QueueStatus, LogStatus)


def _readable(read: Callable[[Netns | None], list[Status]], netns: Netns | None) -> list[Status]:
    try:
        return read(netns)
    except (NfnetError, ValueError):  # ValueError: the namespace is a closed file
        return []


def _rows(name: str, columns: int, netns: Netns | None) -> list[list[int]]:
    def read() -> str:
        try:
            with open(f"{_DIRECTORY}/{name}") as file:
                return file.read()
        except OSError as error:
            operation = f"reading /proc/net/netfilter/{name}"
            if isinstance(error, PermissionError):
                number = error.errno or errno.EACCES
                raise NotPermittedError(operation, number, hint="Only root of the machine may do that") from None
            raise system_error(operation, error) from None

    check_linux(f"reading /proc/net/netfilter/{name}")
    text = call_in(netns, read)
    rows = [[int(word) for word in line.split()] for line in text.splitlines()]
    if any(len(row) != columns for row in rows):
        raise DecodeError(f"/proc/net/netfilter/{name} has not {columns} columns on this kernel", 0)
    return rows


def process(port_id: int, netns: Netns | None = None) -> str:
    """Return which process owns a netfilter netlink port of a network namespace, if this process may see it."""
    inode = _inode(port_id, netns)
    found = None if inode is None else process_with_socket(inode)
    if found is None:  # the port of a process's first socket is the process id; others have arbitrary numbers
        found = process_with_id(port_id)
    if found is None:
        return f"the socket with netlink port {port_id}"
    return f"{printable(found.name)} (process {found.pid})"


def is_ours(port_id: int, netns: Netns | None = None) -> bool:
    """Return whether a netfilter netlink port of a network namespace belongs to a socket of this process."""
    inode = _inode(port_id, netns)
    return inode is not None and this_process_has_socket(inode)


def _inode(port_id: int, netns: Netns | None) -> int | None:
    """Return the inode of the netfilter netlink socket with that port, None if there is none or it cannot be read."""

    def read() -> str:
        with open("/proc/thread-self/net/netlink") as file:
            return file.read()

    try:
        table = call_in(netns, read)
    except OSError as error:
        check_system(error)
        return None
    rows = (line.split() for line in table.splitlines()[1:])
    return next((int(row[9]) for row in rows if row[1:3] == [str(NETLINK_NETFILTER), str(port_id)]), None)
