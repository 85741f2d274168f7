"""The rule that feeds a queue or a log, installed without any program: nf_tables through pyroute2.

    with nfnet.rules.queue(1, hook="output", protocol="udp", destination_port=53), nfnet.Queue(1) as queue:
        ...

Each rule lives in a table of its own, so nothing of anybody else's is touched. Mind that the kernel, when a base
chain goes away, drops what waits in *every* queue of the network namespace: leave the block of the rule after that of
the queue, as above.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .checks import check, check_choice
from .errors import ArgumentError, KernelError, NotSupportedError, kernel_error
from .netns import Netns, call_in
from .protocol.layout import build_attribute
from .protocol.netlink import Flag
from .protocol.nfnetlink import Subsystem, build_message, message_type
from .transport import NetlinkSocket

_FAMILIES = {"inet": 1, "ip": 2, "ip6": 10, "bridge": 7}  # NFPROTO_*
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
_PROTOCOLS = {
    "icmp": socket.IPPROTO_ICMP,
    "tcp": socket.IPPROTO_TCP,
    "udp": socket.IPPROTO_UDP,
    "icmpv6": socket.IPPROTO_ICMPV6,
    "sctp": socket.IPPROTO_SCTP,
}

# linux/netfilter/nf_tables.h
_META_MARK, _META_L4PROTO = 3, 16
_PAYLOAD_TRANSPORT_HEADER = 2
_CMP_EQ, _CMP_NEQ = 0, 1
_REGISTER = 1
_POLICY_ACCEPT = 1
_QUEUE_NUM, _QUEUE_TOTAL, _QUEUE_FLAGS = 1, 2, 3
_QUEUE_BYPASS = 1
_LOG_GROUP, _LOG_PREFIX, _LOG_SNAPLEN, _LOG_QTHRESHOLD = 1, 2, 3, 4
_MAX_PREFIX = 127
_MSG_GETGEN = 16

_numbers = itertools.count(1)


@contextmanager
def queue(
    num: int,
    *,
    hook: str = "output",
    family: str = "inet",
    protocol: str | int | None = None,
    source_port: int | None = None,
    destination_port: int | None = None,
    mark: int | None = None,
    not_mark: int | None = None,
    priority: int = 0,
    bypass: bool = True,
    netns: Netns | None = None,
) -> Iterator[None]:
    """While the block runs, packets that match go to queue ``num``.

    hook: where: "prerouting", "input", "forward", "output" or "postrouting".
    family: whose packets: "inet" (IPv4 and IPv6), "ip", "ip6" or "bridge".
    protocol: "tcp", "udp", "icmp", "icmpv6", "sctp" or a number.
    source_port, destination_port: of TCP, UDP or SCTP, which then must be the protocol.
    mark, not_mark: only packets with this mark, or with any other one, so that a packet that is marked and repeated
        does not come back.
    priority: among the chains of the hook, lower ones first; 0 is that of "filter".
    bypass: let packets pass while nobody listens to the queue, instead of dropping them.
    netns: the network namespace to install it in; see `nfnet.Queue`.

    Raises ArgumentError; NotPermittedError without CAP_NET_ADMIN; NotSupportedError where the kernel has no nf_tables
    or no way to queue from it; KernelError.
    """
    num = check("queue number", num, 0, 0xFFFF)
    matches = list(_matches(protocol, source_port, destination_port, mark, not_mark))
    flags = _QUEUE_BYPASS if bypass else 0
    with _table(f"queueing packets to queue {num}", hook, family, priority, netns) as add:
        try:
            add(
                [
                    *matches,
                    _raw_expression(
                        "queue", {_QUEUE_NUM: _be16(num), _QUEUE_TOTAL: _be16(1), _QUEUE_FLAGS: _be16(flags)}
                    ),
                ]
            )
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            # A kernel without nft's own queue expression may still have the target of iptables.
            info = struct.pack("=HHHxx", num, 1, flags)  # struct xt_NFQ_info_v3
            add([*matches, _expression("target", name="NFQUEUE", rev=3, info=info)])
        yield


@contextmanager
def log(
    group: int,
    *,
    prefix: str = "",
    snaplen: int | None = None,
    threshold: int | None = None,
    hook: str = "output",
    family: str = "inet",
    protocol: str | int | None = None,
    source_port: int | None = None,
    destination_port: int | None = None,
    mark: int | None = None,
    not_mark: int | None = None,
    priority: int = 0,
    netns: Netns | None = None,
) -> Iterator[None]:
    """While the block runs, packets that match are logged to group ``group`` (see `nfnet.Log`), and go on as ever.

    group: number of the group, 0 to 65535.
    prefix: what the messages shall say, at most 127 bytes in UTF-8.
    snaplen: how many bytes of each packet to log, 0 to 2^32-1; all if not given.
    threshold: how many messages the kernel may collect before it sends them, 1 to 65535; the log's if not given or
        higher than that.
    The others are those of `queue`.

    Raises as `queue`.
    """
    group = check("log group", group, 0, 0xFFFF)
    text = prefix.encode("utf-8", "surrogateescape")
    if len(text) > _MAX_PREFIX or b"\0" in text:
        raise ArgumentError(f"prefix has {len(text)} bytes and must have at most {_MAX_PREFIX}, none of them 0")
    values = {_LOG_GROUP: _be16(group)}
    if text:
        values[_LOG_PREFIX] = text + b"\0"
    if snaplen is not None:
        values[_LOG_SNAPLEN] = check("snaplen", snaplen, 0, 0xFFFFFFFF).to_bytes(4, "big")
    if threshold is not None:
        values[_LOG_QTHRESHOLD] = _be16(check("threshold", threshold, 1, 0xFFFF))
    matches = list(_matches(protocol, source_port, destination_port, mark, not_mark))
    with _table(f"logging packets to group {group}", hook, family, priority, netns) as add:
        add([*matches, _raw_expression("log", values)])
        yield


@contextmanager
def _table(
    operation: str, hook: str, family: str, priority: int, netns: Netns | None
) -> Iterator[Callable[[list[Any]], None]]:
    """A table with one base chain on the hook; gives a function that adds a rule to it."""
    check_choice("hook", hook, _HOOKS)
    check_choice("family", family, tuple(_FAMILIES))
    priority = check("priority", priority, -0x80000000, 0x7FFFFFFF)
    number = _FAMILIES[family]
    name = f"nfnet-{os.getpid()}-{next(_numbers)}"

    def change(work: Callable[[Any], None]) -> None:
        _with_nftables(operation, number, netns, work)

    def create(nft: Any) -> None:
        nft.table("add", name=name)
        try:
            nft.chain(
                "add", table=name, name="rules", hook=hook, type="filter", policy=_POLICY_ACCEPT, priority=priority
            )
        except BaseException:
            nft.table("del", name=name)
            raise

    change(create)
    try:
        yield lambda expressions: change(
            lambda nft: nft.rule("add", table=name, chain="rules", expressions=[[item] for item in expressions])
        )
    finally:
        try:
            change(lambda nft: nft.table("del", name=name))
        except KernelError as error:
            if error.errno != errno.ENOENT:  # somebody flushed the ruleset
                raise


def _with_nftables(operation: str, family: int, netns: Netns | None, work: Callable[[Any], None]) -> None:
    # pyroute2 takes over 100 ms to import. It runs an event loop of its own, which it cannot where the caller's
    # thread runs one already: hence a thread, also where there is no namespace to enter.
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.nftables.main import NFTables

    def call() -> None:
        _check_permitted(operation)
        nft = NFTables(nfgen_family=family)
        try:
            work(nft)
        finally:
            nft.close()

    try:
        call_in(netns, call)
    except NetlinkError as error:
        raise kernel_error(operation, error.code) from None
    except OSError as error:
        if isinstance(error, KernelError):
            raise
        raise kernel_error(operation, error.errno or errno.EIO) from None


def _check_permitted(operation: str) -> None:
    """Ask something harmless of nf_tables (NFT_MSG_GETGEN), and raise what it answers.

    To a batch without the privilege the kernel answers for its first message alone, and pyroute2 would wait for the
    others for ever.
    """
    kind = message_type(Subsystem.NFTABLES, _MSG_GETGEN)
    sock = NetlinkSocket()
    try:
        sock.request(lambda seq: build_message(kind, 0, flags=Flag.REQUEST | Flag.ACK, seq=seq), operation)
    except KernelError as error:
        if error.errno == errno.EINVAL:  # nfnetlink knows no such subsystem
            hint = "This kernel has no nf_tables: load the module nf_tables"
            raise NotSupportedError(operation, errno.EINVAL, hint=hint) from None
        raise
    finally:
        sock.close()


def _expression(kind: str, /, **values: Any) -> Any:
    from pyroute2.nftables.expressions import genex

    return genex(kind, values)


def _raw_expression(kind: str, values: dict[int, bytes]) -> Any:
    """An expression whose attributes are encoded here.

    pyroute2 (0.9.7) takes be16 attributes of the log expression for be32, which makes every group 0, and the flags of
    the queue expression have no encoder. It knows no expression by a name of type bytes, and leaves its data alone.
    """
    data = b"".join(build_attribute(number, value) for number, value in values.items())
    return {"attrs": [("NFTA_EXPR_NAME", kind.encode() + b"\0"), ("NFTA_EXPR_DATA", data)]}


def _be16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _compare(value: bytes, operator: int = _CMP_EQ) -> Any:
    return _expression("cmp", sreg=_REGISTER, op=operator, data={"attrs": [("NFTA_DATA_VALUE", value)]})


def _matches(
    protocol: str | int | None,
    source_port: int | None,
    destination_port: int | None,
    mark: int | None,
    not_mark: int | None,
) -> Iterator[Any]:
    """The expressions that let a packet through to the end of the rule."""
    if protocol is not None:
        if isinstance(protocol, str):
            check_choice("protocol", protocol, tuple(_PROTOCOLS))
            protocol = _PROTOCOLS[protocol]
        number = check("protocol", protocol, 0, 0xFF)
        yield _expression("meta", key=_META_L4PROTO, dreg=_REGISTER)
        yield _compare(bytes([number]))
    for name, port, offset in (("source_port", source_port, 0), ("destination_port", destination_port, 2)):
        if port is None:
            continue
        if protocol not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP):
            raise ArgumentError(f"{name} needs protocol to be 'tcp', 'udp' or 'sctp'")
        value = check(name, port, 0, 0xFFFF).to_bytes(2, "big")
        yield _expression("payload", dreg=_REGISTER, base=_PAYLOAD_TRANSPORT_HEADER, offset=offset, len=2)
        yield _compare(value)
    for name, wanted, operator in (("mark", mark, _CMP_EQ), ("not_mark", not_mark, _CMP_NEQ)):
        if wanted is not None:
            value = struct.pack("=I", check(name, wanted, 0, 0xFFFFFFFF))  # in a register it is in host order
            yield _expression("meta", key=_META_MARK, dreg=_REGISTER)
            yield _compare(value, operator)
