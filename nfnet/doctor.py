"""Diagnosis: what the kernel supports, which privileges this process has, and problems, each with a remedy."""

from __future__ import annotations

import errno
import os
import platform
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from socket import AF_INET, IPPROTO_TCP, IPPROTO_UDP, SOCK_DGRAM, SOCK_STREAM
from typing import Literal, NamedTuple

from . import rules, stats
from ._core.flags import request_for
from ._io.native import new_socket
from ._io.netlink_socket import DEFAULT_RCVBUF, NetlinkSocket
from ._io.system import LINUX, fcntl, linux_only
from ._processes import Sockets
from .errors import KernelError, NfnetError, NotPermittedError, NotSupportedError
from .inet import Flow
from .netns import Netns, call_in, create
from .protocol import nfqnl, nfulnl
from .protocol.layout import build_attribute
from .protocol.netlink import Flag
from .protocol.nfnetlink import build_message
from .protocol.nfqnl import NFQA, Command
from .protocol.nfulnl import LogFlag
from .rules import _nftables
from .rules._actions import queues_of
from .stats import QueueStatus, process

_CAP_NET_ADMIN = 12
_CAPS_TO_SEE = (2, 19)  # CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE: other users' processes
_CAP_NEEDED = "CAP_NET_ADMIN is needed, see above"
_SIOCGIFFLAGS, _IFF_UP = 0x8913, 1
_ifreq = struct.Struct("16sH22x")  # struct ifreq with flags
_FREE = 65535  # a number that hardly any program uses; requests about it change nothing


class Finding(NamedTuple):
    """The result of one check."""

    level: Literal["ok", "warning", "failure"]
    what: str
    remedy: str = ""


def examine(netns: Netns | None = None) -> Iterator[Finding]:
    """Run all checks in a network namespace, without changing anything in it."""
    if not LINUX:
        yield Finding("failure", str(linux_only("asking the kernel")))
        return
    yield Finding("ok", f"Linux {platform.release()}, Python {platform.python_version()}")
    yield _privilege()
    try:
        sock = call_in(netns, NetlinkSocket)
    except NotSupportedError as error:
        yield Finding("failure", str(error), "load the module nfnetlink, or use a kernel with CONFIG_NETFILTER_NETLINK")
        return
    except NfnetError as error:
        yield Finding("failure", str(error))
        return
    try:
        yield from _queue_support(sock)
        yield from _log_support(sock)
        yield _buffer(sock)
    finally:
        sock.close()
    yield from _interfaces(netns)
    yield from _process_support(netns)
    yield from _rule_support()
    yield from _queues(netns)
    yield Finding("ok", "packets have timestamps only if a program requests them, as Queue(timestamps=True) does")


def _capabilities() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff")), 16)


def _privilege() -> Finding:
    try:
        effective = _capabilities()
    except (OSError, StopIteration, ValueError) as error:
        return Finding("warning", f"the capabilities of this process cannot be read: {error}")
    if effective >> _CAP_NET_ADMIN & 1:
        return Finding("ok", "this process has CAP_NET_ADMIN")
    remedy = (
        "run as root; or, for a service, AmbientCapabilities=CAP_NET_ADMIN in its systemd unit; in a container, docker"
        " run --cap-add NET_ADMIN; or setcap cap_net_admin+ep on a separate copy of the interpreter"
    )
    return Finding("failure", "this process lacks CAP_NET_ADMIN, which binding and every verdict need", remedy)


def _ask(sock: NetlinkSocket, build: Callable[[int], bytes]) -> KernelError | None:
    try:
        sock.request(build, "asking the kernel")
    except KernelError as error:
        return error
    return None


def _queue_support(sock: NetlinkSocket) -> Iterator[Finding]:
    error = _ask(sock, lambda seq: nfqnl.config(_FREE, command=Command.PF_BIND, seq=seq, ack=True))
    if isinstance(error, NotPermittedError):
        yield Finding("failure", "the kernel does not let this process use NFQUEUE", _CAP_NEEDED)
        return
    if error is not None:
        yield Finding("failure", f"no NFQUEUE here: {error.strerror}", "modprobe nfnetlink_queue")
        return
    yield Finding("ok", "NFQUEUE")
    for option in nfqnl.FLAG_OPTIONS:
        error = _ask(sock, request_for(option, partial(nfqnl.config, _FREE)))
        if isinstance(error, NotSupportedError):
            yield Finding("warning", f"Queue({option.name}=True) is not supported", option.remedy)
        else:
            yield Finding("ok", f"Queue({option.name}=True)")
    error = _ask(sock, _short_priority)
    if error is not None and error.errno == errno.ERANGE:
        yield Finding("ok", "packet.priority")
    else:
        text = "packet.priority is always 0, and a verdict with a priority does not change it"
        yield Finding("warning", text, "this needs Linux 5.18")


def _short_priority(seq: int) -> bytes:
    """Return a verdict that a kernel answers with ERANGE if it knows NFQA_PRIORITY: it checks the sizes first."""
    flags = Flag.REQUEST | Flag.ACK
    return build_message(nfqnl.MSG_VERDICT, _FREE, build_attribute(NFQA.PRIORITY, b"\0\0"), flags=flags, seq=seq)


def _log_support(sock: NetlinkSocket) -> Iterator[Finding]:
    # Not PF_BIND, which would replace the kernel's own logger. The kernel answers this with ENODEV: no group is bound.
    error = _ask(sock, lambda seq: nfulnl.config(_FREE, flags=LogFlag(0), seq=seq, ack=True))
    if isinstance(error, NotPermittedError):
        yield Finding("failure", "the kernel does not let this process use NFLOG", _CAP_NEEDED)
        return
    if error is not None and error.errno == errno.EINVAL:
        yield Finding("failure", "no NFLOG here", "modprobe nfnetlink_log")
        return
    yield Finding("ok", "NFLOG")


def _buffer(sock: NetlinkSocket) -> Finding:
    if sock.rcvbuf >= DEFAULT_RCVBUF:
        return Finding("ok", f"receive buffers of {sock.rcvbuf:,} bytes")
    most = Path("/proc/sys/net/core/rmem_max")
    limit = most.read_text().strip() if most.exists() else "?"
    remedy = f"sysctl net.core.rmem_max={DEFAULT_RCVBUF} (it is {limit}), or root of the machine"
    return Finding("warning", f"receive buffers have {sock.rcvbuf:,} bytes at most, and overflow early", remedy)


def _interfaces(netns: Netns | None) -> Iterator[Finding]:
    """Report a namespace in which no packets pass, as is a new one."""
    try:
        if not call_in(netns, _one_is_up):
            remedy = "ip link set lo up; or give the namespace that has the packets: nfnet doctor --netns NAME"
            yield Finding("warning", "no network interface of this namespace is up: no packets pass here", remedy)
    except OSError as error:
        yield Finding("warning", f"the network interfaces cannot be listed: {error}")


def _one_is_up() -> bool:
    with closing(new_socket(AF_INET, SOCK_DGRAM)) as sock:
        up = [_is_up(sock.fileno(), name) for _, name in socket.if_nameindex()]
    return any(up)


def _is_up(fd: int, name: str) -> bool:
    answer = fcntl.ioctl(fd, _SIOCGIFFLAGS, _ifreq.pack(os.fsencode(name), 0))
    return bool(_ifreq.unpack(answer)[1] & _IFF_UP)


def _process_support(netns: Netns | None) -> Iterator[Finding]:
    """Look up the owner of two sockets that this process has created."""
    for name, kind, protocol in (("TCP", SOCK_STREAM, IPPROTO_TCP), ("UDP", SOCK_DGRAM, IPPROTO_UDP)):
        module = f"{name.lower()}_diag"
        try:
            with closing(call_in(netns, partial(new_socket, AF_INET, kind))) as sock:
                sock.bind(("0.0.0.0", 0))
                if kind == SOCK_STREAM:
                    sock.listen()
                flow = Flow(protocol, "0.0.0.0", sock.getsockname()[1], "0.0.0.0", _FREE)
                with closing(Sockets(partial(call_in, netns))) as sockets:
                    found = sockets.process(flow, sends=True, certain=True)
        except OSError as error:
            yield Finding("warning", f"packet.process of {name} cannot be determined: {error}")
            return
        if found is None:
            yield Finding("warning", f"packet.process of {name} is always None", f"modprobe {module}")
            return
    try:
        all_seen = all(_capabilities() >> number & 1 for number in _CAPS_TO_SEE)
    except (OSError, StopIteration, ValueError):
        all_seen = False
    if all_seen:
        yield Finding("ok", "packet.process")
    else:
        remedy = "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, to see those of other users"
        yield Finding("ok", "packet.process, only for processes of this user", remedy)


def _rule_support() -> Iterator[Finding]:
    """Try rules in a new network namespace."""
    try:
        with create() as place:
            for what, rule, remedy in (
                (
                    "nfnet.rules.queue",
                    rules.queue(1, hook="output", netns=place),
                    "modprobe -a nf_tables nft_queue nft_compat xt_NFQUEUE",
                ),
                (
                    "nfnet.rules.log",
                    rules.log(1, hook="output", netns=place),
                    "modprobe -a nf_tables nft_log nft_compat xt_NFLOG",
                ),
                (
                    "rules that fan out by flow",
                    rules.queue(range(2), hook="output", balance="flow", netns=place),
                    "modprobe -a nft_queue nft_hash, or a kernel with CONFIG_NFT_QUEUE and CONFIG_NFT_HASH",
                ),
                (
                    "rules that look at connections",
                    rules.log(1, hook="output", state="new", netns=place),
                    "modprobe nft_ct",
                ),
            ):
                try:
                    with rule:
                        yield Finding("ok", what)
                except NotPermittedError:
                    yield Finding("failure", f"{what}: not permitted", _CAP_NEEDED)
                except KernelError as error:
                    level: Literal["failure", "warning"] = "failure" if what.startswith("nfnet") else "warning"
                    yield Finding(level, f"{what}: this kernel cannot do it ({error.strerror})", remedy)
    except NfnetError as error:
        yield Finding("warning", f"rules could not be tried: {error}")


def _queues(netns: Netns | None) -> Iterator[Finding]:
    try:
        queues, logs = stats.queues(netns), stats.logs(netns)
    except NfnetError as error:
        yield Finding("warning", f"the owners of queues cannot be determined: {error}")
        return
    for queue in queues:
        yield _queue(queue, netns)
    for log in logs:
        yield Finding("ok", f"log group {log.group} is read by {process(log.port_id, netns)}")
    fed = call_in(netns, _fed_queues)
    for num, bypass in sorted(fed.items()):
        if num not in {queue.num for queue in queues}:
            text = "its packets are accepted (bypass)" if bypass else "its packets are dropped"
            remedy = f"start the program that reads queue {num}, or remove the rule"
            yield Finding("warning", f"a rule feeds queue {num}, which no program reads: {text}", remedy)


def _queue(queue: QueueStatus, netns: Netns | None) -> Finding:
    text = f"queue {queue.num} is read by {process(queue.port_id, netns)}, {queue.waiting} packets wait"
    if queue.queue_dropped or queue.user_dropped:
        remedy = "a faster handler, several queues (run_workers), more room (max_len=, rcvbuf=), or fail_open=True"
        drops = (
            f"{queue.queue_dropped} dropped because it was full, {queue.user_dropped} because the receive buffer was"
        )
        return Finding("warning", f"{text}; {drops}", remedy)
    return Finding("ok", text)


def _fed_queues() -> dict[int, bool]:
    """Return the queues that nf_tables rules feed, and whether all these rules have bypass; not of iptables-legacy."""
    sock = NetlinkSocket()
    try:
        found: dict[int, bool] = {}
        for name, values in _nftables.expressions(sock):
            numbers, flags = queues_of(name, values)
            for number in numbers:
                found[number] = found.get(number, True) and bool(flags & 1)
        return found
    except KernelError:
        return {}
    finally:
        sock.close()
