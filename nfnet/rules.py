"""The rule that feeds a queue or a log, installed without any program: nf_tables through pyroute2.

    with nfnet.rules.queue(1, hook="output", protocol="udp", destination_port=53), nfnet.Queue(1) as queue:
        ...

Each rule lives in a table of its own, so nothing of anybody else's is touched. The table belongs to a socket that is
open while the block runs, so the kernel removes it however the process ends (since Linux 5.12). Mind that the kernel,
when a base chain goes away, drops what waits in *every* queue of the network namespace: leave the block of the rule
after that of the queue, as above.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .checks import check, check_choice
from .errors import ArgumentError, ClosedError, KernelError
from .netns import Netns, call_in
from .protocol.layout import build_attribute
from .protocol.netlink import Flag
from .protocol.nfnetlink import Hook, Subsystem, build_message, message_type
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

# linux/netfilter/nf_tables.h and nfnetlink.h
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0, 2, 3, 6
_CREATE = 0x400  # NLM_F_CREATE
_TABLE_OWNER = 0x2  # the table goes when the socket does
_META_MARK, _META_L4PROTO = 3, 16
_PAYLOAD_TRANSPORT_HEADER = 2
_CMP_EQ, _CMP_NEQ = 0, 1
_REGISTER = 1
_POLICY_ACCEPT = 1
_QUEUE_NUM, _QUEUE_TOTAL, _QUEUE_FLAGS = 1, 2, 3
_QUEUE_BYPASS = 1
_LOG_GROUP, _LOG_PREFIX, _LOG_SNAPLEN, _LOG_QTHRESHOLD = 1, 2, 3, 4
_MAX_PREFIX = 127


@contextmanager
def queue(
    num: int,
    *,
    hook: str | Hook = "output",
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
    native = _raw_expression("queue", {_QUEUE_NUM: _be16(num), _QUEUE_TOTAL: _be16(1), _QUEUE_FLAGS: _be16(flags)})
    # A kernel without nft's own queue expression may still have the target of iptables.
    info = struct.pack("=HHHxx", num, 1, flags)  # struct xt_NFQ_info_v3
    target = _expression("target", name="NFQUEUE", rev=3, info=info)
    operation = f"queueing packets to queue {num}"
    with _rule(operation, hook, family, priority, netns, [*matches, native], [*matches, target]):
        yield


@contextmanager
def log(
    group: int,
    *,
    prefix: str = "",
    snaplen: int | None = None,
    threshold: int | None = None,
    hook: str | Hook = "output",
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
    expressions = [*matches, _raw_expression("log", values)]
    with _rule(f"logging packets to group {group}", hook, family, priority, netns, expressions):
        yield


@contextmanager
def _rule(
    operation: str, hook: str | Hook, family: str, priority: int, netns: Netns | None, *choices: list[Any]
) -> Iterator[None]:
    """A rule in a table of its own; of several lists of expressions the first that the kernel knows."""
    if isinstance(hook, Hook):
        hook = hook.name.lower()
    check_choice("hook", hook, _HOOKS)
    check_choice("family", family, tuple(_FAMILIES))
    priority = check("priority", priority, -0x80000000, 0x7FFFFFFF)
    # Not the process id alone: containers may share the namespace, and each has a process 1.
    name = f"nfnet-{os.getpid()}-{os.urandom(4).hex()}"
    nfproto = _FAMILIES[family]
    chain = [
        ("NFTA_CHAIN_TABLE", name),
        ("NFTA_CHAIN_NAME", "rules"),
        ("NFTA_CHAIN_TYPE", "filter"),
        ("NFTA_CHAIN_POLICY", _POLICY_ACCEPT),
        ("NFTA_CHAIN_HOOK", {"attrs": [("NFTA_HOOK_HOOKNUM", _HOOKS.index(hook)), ("NFTA_HOOK_PRIORITY", priority)]}),
    ]

    in_chain: list[Any] = [("NFTA_RULE_TABLE", name), ("NFTA_RULE_CHAIN", "rules")]

    def install(sock: NetlinkSocket, flags: int, expressions: list[Any]) -> None:
        batch: list[tuple[int, list[Any]]] = [
            (_NEWTABLE, [("NFTA_TABLE_NAME", name), ("NFTA_TABLE_FLAGS", flags)]),
            (_NEWCHAIN, chain),
            (_NEWRULE, [*in_chain, ("NFTA_RULE_EXPRESSIONS", expressions)]),
        ]
        sock.request(lambda seq: _batch(nfproto, seq, batch), operation)

    sock = call_in(netns, NetlinkSocket)
    try:
        for flags, expressions in itertools.product((_TABLE_OWNER, 0), choices):
            try:
                install(sock, flags, expressions)
                break
            except KernelError as error:
                # ENOENT: no such expression or target. EOPNOTSUPP, before Linux 5.12: no table can have an owner.
                if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP) or (flags, expressions) == (0, choices[-1]):
                    raise
        yield
    finally:
        try:
            # ENOENT if somebody flushed the ruleset; and in a forked child, where the socket is closed, it stays.
            with suppress(KernelError, ClosedError):
                delete = [(_DELTABLE, [("NFTA_TABLE_NAME", name)])]
                sock.request(lambda seq: _batch(nfproto, seq, delete), f"removing the rule for {operation}")
        finally:
            sock.close()


def _batch(family: int, seq: int, messages: list[tuple[int, list[Any]]]) -> bytes:
    """A transaction. All its messages have one sequence number: the first answer to it is that to the whole.

    pyroute2 encodes them. Its socket would wait for ever where the kernel refuses a batch as a whole, for lack of the
    privilege: that is answered once, for the message that begins the batch.
    """
    from pyroute2.netlink.nfnetlink import nftsocket

    classes = {
        _NEWTABLE: nftsocket.nft_table_msg,
        _DELTABLE: nftsocket.nft_table_msg,
        _NEWCHAIN: nftsocket.nft_chain_msg,
        _NEWRULE: nftsocket.nft_rule_msg,
    }
    parts = [build_message(_BATCH_BEGIN, Subsystem.NFTABLES, flags=Flag.REQUEST, seq=seq)]
    for place, (operation, attributes) in enumerate(messages):
        last = place == len(messages) - 1
        message = classes[operation]()
        message["nfgen_family"] = family
        message["attrs"] = attributes
        message["header"]["type"] = message_type(Subsystem.NFTABLES, operation)
        message["header"]["flags"] = Flag.REQUEST | _CREATE | (Flag.ACK if last else 0)
        message["header"]["sequence_number"] = seq
        message.encode()
        parts.append(bytes(message.data))
    parts.append(build_message(_BATCH_END, Subsystem.NFTABLES, flags=Flag.REQUEST, seq=seq))
    return b"".join(parts)


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
