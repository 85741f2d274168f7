"""Find the process on this machine that sends or receives a packet.

This takes two steps. First, sock_diag reports the socket of a connection or port: its inode, and its user. The kernel
finds that socket in the same way as the receiver of a packet, so listening sockets, wildcards, IPv6 sockets that accept
IPv4, and SO_REUSEPORT need no code here. The request takes a few microseconds and is repeated each time, so that no
answer is about an earlier socket. Second, the kernel does not report which process has a socket of that inode, so this
is looked up in the links of /proc/PID/fd, which takes about two microseconds for each open file of each process. The
result is cached, and the one link is read again before each use.
"""

from __future__ import annotations

import _socket
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, BinaryIO, NamedTuple, TypeVar

from ._arguments import check, wrong_type
from ._io import at_fork
from ._io.native import new_socket
from ._io.netlink_socket import KERNEL
from ._io.system import check_linux
from ._printable import printable
from .errors import ArgumentError, NfnetError, check_system, system_error
from .inet import Flow
from .netns import Netns, call_in, call_in_open, check_netns
from .protocol import rtnetlink, sock_diag
from .protocol.netlink import HOST
from .protocol.sock_diag import NETLINK_SOCK_DIAG, TcpState

_log = logging.getLogger("nfnet")

_T = TypeVar("_T")

_MOST_SOCKETS = 16384  # cached sockets with their processes, before the cache is cleared
_MOST_CLOSED = 4096  # closed connections whose process is still cached
_MOST_MISSING = 1024
# After a search that found nothing, the same socket is not searched for during this many times its duration.
_PAUSE = 10
_RECENT = 8  # processes that are searched first, because they were found before, unless they have more files than
_MANY_FILES = 1024
_STANDARD_FILES = 3
_MOST_ANCESTORS = 64
_MOST_BYTES = 0x10000  # of a file in /proc
_DATAGRAM = 8192
_NO_FILE_YET = (TcpState.ESTABLISHED, TcpState.SYN_RECV, TcpState.CLOSE_WAIT)
_MAPPED = bytes(10) + b"\xff\xff"  # IPv6 sockets that accept IPv4 represent 192.0.2.1 as ::ffff:192.0.2.1
_PING_TABLES = {socket.IPPROTO_ICMP: "icmp", socket.IPPROTO_ICMPV6: "icmp6"}

_UNIT = re.compile(r".+\.(?:service|scope|socket|mount|swap)")
_CONTAINER = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


class Process(NamedTuple):
    """A process of this machine, as it was at the time of the look-up.

    ``str(process)`` is for people: "curl (process 4711, /usr/bin/curl)". A process can choose both of these names;
    characters that control a terminal are shown as their bytes, ``[1b]``. The attributes contain the unchanged names.
    """

    pid: int
    """Its process id, in the pid namespace of this program."""
    name: str
    """Its name (/proc/PID/comm), 15 bytes at most: any program can choose any name."""
    executable: str | None = None
    """The path of its program (/proc/PID/exe), in its own mount namespace; followed by " (deleted)" if the file was
    replaced or removed since. None if this program may not read it."""
    command_line: tuple[str, ...] | None = None
    """Its arguments, the program's name first, at most 64 KiB; a process can change them. Empty while the process
    is in execve, and for kernel threads. None if this program may not read them."""
    uid: int = 0
    """The owner of the socket: the effective user id of the process when it created the socket, in the user
    namespace of this program. ``meta skuid`` compares this id."""
    cgroup: str | None = None
    """The path of its control group in the unified hierarchy; in systemd's hierarchy if that path is the root."""

    def __str__(self) -> str:
        where = "" if self.executable is None else f", {self.executable}"
        return printable(f"{self.name} (process {self.pid}{where})")

    @property
    def unit(self) -> str | None:
        """The systemd unit it runs in, the innermost except slices: "sshd.service", "session-3.scope"; or None."""
        names = (self.cgroup or "").split("/")
        return next((name for name in reversed(names) if _UNIT.fullmatch(name)), None)

    @property
    def container(self) -> str | None:
        """The id of the container it runs in, 64 hexadecimal digits; or None.

        Docker, podman, containerd and CRI-O put it into the path of the control group.
        """
        for name in reversed((self.cgroup or "").split("/")):
            if "conmon" not in name and (found := _CONTAINER.search(name)):
                return found[0]
        return None


def process_of(flow: Flow, *, netns: Netns | None = None) -> Process | None:
    """Return the process on this machine that sends the packets of a flow, or else the one that receives them, or None.

    flow: a result of `Packet.flow` or `nfnet.inet.flow`, or a tuple of protocol, source, source port, destination,
        destination port.
    netns: the network namespace of the flow, as for `Queue` (default: that of the calling thread).

    `Packet.process` describes which processes are found. Unlike this function, it knows which end of the flow is local.

    Raises ArgumentError for an invalid flow, KernelError if the namespace cannot be entered, or the kernel has no
    sock_diag.
    """
    if not isinstance(flow, Flow):
        raise wrong_type("flow", flow, "a nfnet.inet.Flow")
    check_netns(netns)
    _check_flow(flow)
    sockets = Sockets(partial(call_in, netns))
    try:
        return sockets.process(flow, sends=True) or sockets.process(flow, sends=False)
    finally:
        sockets.close()


def _check_flow(flow: Flow) -> None:
    check("protocol", flow.protocol, 0, 255)
    for name, port in (("source_port", flow.source_port), ("destination_port", flow.destination_port)):
        if port is not None:
            check(name, port, 0, 0xFFFF)
    try:
        ends = _packed(flow.source), _packed(flow.destination)
    except (OSError, TypeError):
        raise ArgumentError(f"{flow.source!r} and {flow.destination!r} must be IPv4 or IPv6 addresses") from None
    if len(ends[0]) != len(ends[1]):
        raise ArgumentError(f"{flow.source} and {flow.destination} must be of the same IP version")


def _packed(address: str) -> bytes:
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    return packed.removeprefix(_MAPPED) if len(packed) == 16 else packed


class Processes(at_fork.AtFork):
    """The processes behind the packets of one queue or log. Its methods raise no errors: see `find`.

    ``open_netns`` opens the network namespace of the packets, and returns None if they do not come from a kernel.
    """

    def __init__(self, open_netns: Callable[[], BinaryIO | None]) -> None:
        # Not a method of this object: because of the reference cycle the queue's socket would outlive the queue until
        # Python's garbage collector runs, and keep the queue bound.
        self._sockets = Sockets(partial(_call_there, open_netns))
        self._closed = False
        self._complained = False
        at_fork.register(self)

    def find(
        self, flow: Flow, *, sends: bool, interface: int = 0, certain: bool = False, echo: int | None = None
    ) -> Process | None:
        """Like `Sockets.process`, but log an error once instead of raising it."""
        if self._closed:
            return None
        try:
            return self._sockets.process(flow, sends=sends, interface=interface, certain=certain, echo=echo)
        except _NowhereError:
            self._closed = True
        except (NfnetError, OSError) as error:
            if not isinstance(error, NfnetError):
                check_system(error)
            if not (self._complained or self._closed):
                self._complained = True
                _log.warning("the processes that send and receive packets cannot be determined: %s", error)
        return None

    def close(self) -> None:
        """Close the sockets; from now on no process is found."""
        self._closed = True
        self._sockets.close()

    def after_fork(self) -> None:
        self._sockets.close()  # otherwise either of the two processes could receive the answers


def _call_there(open_netns: Callable[[], BinaryIO | None], function: Callable[[], _T]) -> _T:
    """Call a function in the network namespace of the packets."""
    netns = open_netns()
    if netns is None:
        raise _NowhereError
    with netns:
        return call_in_open(netns, function)


class _NowhereError(Exception):
    """The packets come from a recording or a test."""


class Sockets:
    """The sockets of a network namespace, in which ``call`` calls a function.

    Several threads, or a signal handler and the interrupted code, can use this at the same time: each takes an unused
    netlink socket, or opens one. If an exception is raised before the answer was read, the socket is not reused.
    """

    def __init__(self, call: Callable[[Callable[[], Any]], Any]) -> None:
        self._call = call
        self._idle: dict[int, list[_socket.socket]] = {NETLINK_SOCK_DIAG: [], rtnetlink.NETLINK_ROUTE: []}

    def process(
        self, flow: Flow, *, sends: bool, interface: int = 0, certain: bool = False, echo: int | None = None
    ) -> Process | None:
        """Return the process at one end of a flow, None if it cannot be found or is not local.

        sends: whether to look up the source; if not, the destination.
        interface: index of the packet's outgoing or incoming interface, 0 if unknown.
        certain: whether the address is known to belong to this namespace.
        echo: the identifier, if the packet is an ICMP echo.
        """
        local, remote = _packed(flow.source), _packed(flow.destination)
        local_port, remote_port = flow.source_port, flow.destination_port
        if not sends:
            local, local_port, remote, remote_port = remote, remote_port, local, local_port
        if echo is not None:
            found = self._find_ping(flow.protocol, local, echo)
        elif local_port is None or remote_port is None:
            return None
        else:
            found = self._find(flow.protocol, local, local_port, remote, remote_port, interface)
        # A wildcard socket receives packets to any address, but only those delivered locally, not forwarded ones.
        if found is None or not (certain or any(found.source) or self._is_local(local)):
            return None
        if not found.inode:
            return _holders.closed.get(found.cookie)
        process = _holders.process(found.inode, found.uid)
        if process is not None and flow.protocol == socket.IPPROTO_TCP:
            if len(_holders.closed) >= _MOST_CLOSED:
                _holders.closed.clear()
            _holders.closed[found.cookie] = process
        return process

    def _find(
        self, protocol: int, local: bytes, local_port: int, remote: bytes, remote_port: int, interface: int
    ) -> sock_diag.Socket | None:
        def ask(port: int) -> sock_diag.Socket | None:
            request = sock_diag.build_request(protocol, local, local_port, remote, port, interface)
            return sock_diag.parse_socket(self._ask(NETLINK_SOCK_DIAG, request))

        found = ask(remote_port)
        if found is not None and not found.inode and found.state in _NO_FILE_YET:
            found = ask(0)  # the connection is not accepted yet: take the listening socket
        return found

    def _find_ping(self, protocol: int, local: bytes, identifier: int) -> sock_diag.Socket | None:
        """Return the socket of an ICMP echo (``socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP)``), which sock_diag lacks."""

        def read() -> str:
            check_linux("looking for the socket of an ICMP echo")
            with open(f"/proc/thread-self/net/{_PING_TABLES[protocol]}") as file:
                return file.read()

        for line in self._call(read).splitlines()[1:]:
            words = line.split()
            address, _, port = words[1].partition(":")
            source = b"".join(
                int(address[place : place + 8], 16).to_bytes(4, HOST)  # each word is printed in host byte order
                for place in range(0, len(address), 8)
            )
            if int(port, 16) == identifier and (source == local or not any(source)):
                return sock_diag.Socket(TcpState.CLOSE, source, b"", int(words[7]), int(words[9]))
        return None

    def _is_local(self, address: bytes) -> bool:
        return rtnetlink.is_local(self._ask(rtnetlink.NETLINK_ROUTE, rtnetlink.build_request(address)))

    def _ask(self, protocol: int, request: bytes) -> bytes:
        try:
            sock = self._idle[protocol].pop()
        except IndexError:
            sock = self._open(protocol)
        try:
            sock.sendto(request, KERNEL)
            answer = sock.recv(_DATAGRAM, socket.MSG_DONTWAIT)  # the kernel has queued it before `sendto` returns
        except OSError as error:
            raise system_error("asking the kernel for a socket", error) from None
        self._idle[protocol].append(sock)
        return answer

    def _open(self, protocol: int) -> _socket.socket:
        def make() -> _socket.socket:
            check_linux("asking the kernel for a socket")
            return new_socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)

        try:
            sock: _socket.socket = self._call(make)
            sock.connect(KERNEL)
        except OSError as error:
            if isinstance(error, NfnetError):
                raise
            raise system_error(f"opening a netlink socket of protocol {protocol}", error) from None
        return sock

    def close(self) -> None:
        """Close the unused sockets."""
        for idle in self._idle.values():
            while idle:
                idle.pop().close()


class _Holders:
    """The processes that have sockets open, for all network namespaces: an inode belongs to one socket on the machine.

    No locks: each step is one operation on a dict, and an entry that another thread overwrites is found again.
    """

    def __init__(self) -> None:
        self.closed: dict[bytes, Process] = {}
        """By cookie. The kernel continues to send for a TCP connection after its program has closed it, or ended."""
        self._found: dict[int, tuple[int, int]] = {}  # inode to pid and file descriptor
        self._seen: dict[int, tuple[int, int]] = {}  # the same, found during a search for another socket
        self._missing: dict[int, float] = {}  # inode to the time of the next permitted search
        self._recent: list[int] = []  # the pids found last, latest first

    def process(self, inode: int, uid: int) -> Process | None:
        """Return the process that has the socket."""
        for _ in range(2):  # the cached entry can be out of date
            place = self._found.get(inode) or self._look_for(inode)
            if place is None:
                return None
            process = _read(place[0], uid)
            # Check this last: while the process has the socket its pid is not reused, so the data read is about it.
            if process is not None and _has(*place, inode):
                return process
            self._found.pop(inode, None)
        return None

    def _look_for(self, inode: int) -> tuple[int, int] | None:
        began = time.monotonic()
        if began < self._missing.get(inode, 0):
            return None
        place = self._seen.pop(inode, None)
        if place is None or not _has(*place, inode):
            place = self._search(inode)
        if place is None:
            if len(self._missing) >= _MOST_MISSING:
                self._missing.clear()
            now = time.monotonic()
            self._missing[inode] = now + _PAUSE * (now - began)
            return None
        place = _oldest(*place, inode)
        if len(self._found) >= _MOST_SOCKETS:
            self._found.clear()
        self._found[inode] = place
        self._recent = [place[0], *(pid for pid in self._recent if pid != place[0])][:_RECENT]
        return place

    def _search(self, inode: int) -> tuple[int, int] | None:
        recent = self._recent
        for pid in recent:
            if _count_files(pid) <= _MANY_FILES and (place := self.search_in(pid, inode)):
                return place
        # New programs first. Most processes with only the standard files are idle and have no socket; reading their
        # files would be half of all the work.
        try:
            others = sorted((int(name) for name in os.listdir("/proc") if name.isdecimal()), reverse=True)
        except OSError as error:
            raise system_error("looking for processes in /proc", error) from None
        few = []
        counted = _count_files(os.getpid()) > 0
        for pid in others:
            if pid in recent and _count_files(pid) <= _MANY_FILES:
                continue
            if counted and _count_files(pid) <= _STANDARD_FILES:
                few.append(pid)
            elif place := self.search_in(pid, inode):
                return place
        for pid in few:
            if place := self.search_in(pid, inode):
                return place
        return None

    def search_in(self, pid: int, inode: int) -> tuple[int, int] | None:
        """Read all links of a process, and remember its sockets."""
        directory = f"/proc/{pid}/fd"
        try:
            names = os.listdir(directory)
        except OSError as error:  # it has ended, or belongs to another user
            check_system(error)
            return None
        found = None
        if len(self._seen) >= _MOST_SOCKETS:
            self._seen.clear()
        for name in names:
            try:
                link = os.readlink(f"{directory}/{name}")
            except OSError as error:
                check_system(error)
                continue
            if link.startswith("socket:["):
                number, place = int(link[8:-1]), (pid, int(name))
                self._seen[number] = place
                if number == inode and found is None:
                    found = place
        return found


_holders = _Holders()


def process_with_socket(inode: int) -> Process | None:
    """Return the process that has the socket open, None if none is found. The user of the socket is not looked up."""
    try:
        return _holders.process(inode, 0)
    except NfnetError:  # /proc cannot be read
        return None


def process_with_id(pid: int) -> Process | None:
    """Return the process with that id, or None if it does not exist. The user of a socket is not looked up."""
    return _read(pid, 0)


def this_process_has_socket(inode: int) -> bool:
    """Return whether this process has the socket open."""
    return _holders.search_in(os.getpid(), inode) is not None


def _count_files(pid: int) -> int:
    """Return how many files a process has open; 0 if it has ended, and always before Linux 6.2."""
    try:
        return os.stat(f"/proc/{pid}/fd").st_size
    except OSError as error:
        check_system(error)
        return 0


def _has(pid: int, file: int, inode: int) -> bool:
    """Return whether a file of a process is the socket."""
    try:
        return os.readlink(f"/proc/{pid}/fd/{file}") == f"socket:[{inode}]"
    except OSError as error:
        check_system(error)
        return False


def _oldest(pid: int, file: int, inode: int) -> tuple[int, int]:
    """Return the oldest of the process and the ancestors from which it inherited the socket that still has it."""
    for _ in range(_MOST_ANCESTORS):
        status = _contents(f"/proc/{pid}/stat")
        if status is None:
            break
        parent = int(status.rpartition(b")")[2].split()[1])
        if not parent or not _has(parent, file, inode):
            break
        pid = parent
    return pid, file


def _read(pid: int, uid: int) -> Process | None:
    """Read the data about a process from /proc; None if it has ended."""
    directory = f"/proc/{pid}"
    name = _contents(f"{directory}/comm")
    if name is None:
        return None
    try:
        executable = os.readlink(f"{directory}/exe")
    except OSError as error:
        check_system(error)
        executable = None
    arguments = _contents(f"{directory}/cmdline")
    command_line = None if arguments is None else _command_line(arguments)
    groups = _contents(f"{directory}/cgroup")
    cgroup = None if groups is None else _cgroup(os.fsdecode(groups).splitlines())
    return Process(pid, os.fsdecode(name.removesuffix(b"\n")), executable, command_line, uid, cgroup)


def _command_line(arguments: bytes) -> tuple[str, ...]:
    """Split the arguments in /proc/PID/cmdline, each of which ends with a zero byte."""
    # A kernel thread, a zombie, and a process in the middle of execve have none: the kernel sets the new name first.
    return tuple(map(os.fsdecode, arguments.removesuffix(b"\0").split(b"\0"))) if arguments else ()


def _cgroup(lines: Iterable[str]) -> str | None:
    """Find the path in the unified hierarchy, or in systemd's if that is separate, in the lines of the file."""
    paths: dict[str, str] = {}
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths[controllers] = path
    unified, named = paths.get(""), paths.get("name=systemd")
    return named if unified in (None, "/") and named is not None else unified


def _contents(path: str) -> bytes | None:
    """Return the beginning of a file, None if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(_MOST_BYTES)
    except OSError as error:
        check_system(error)
        return None
