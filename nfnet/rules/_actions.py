"""The actions of rules: a class for each, with its expressions and its words in nft, iptables and the command line."""

from __future__ import annotations

import shlex
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from .._arguments import check, check_choice, check_flag, wrong_type
from ..errors import ArgumentError
from ..protocol import netlink
from ..protocol.markbits import DEFAULT_BITS, MarkBits
from ._expressions import (
    CT_DIRECTION,
    CT_PACKETS,
    CT_STATE,
    ICMP_UNREACHABLE,
    ICMPX_UNREACHABLE,
    LESS_OR_EQUAL,
    META_MARK,
    NOT_EQUAL,
    REGISTER,
    TCP_RESET,
    Expression,
    be16,
    be32,
    be64,
    compare,
    ct,
    host32,
    immediate,
    masked,
    meta,
    network_order,
    reject,
    set_meta,
    verdict,
)
from ._values import HOOKS, NoWordsError, check_words

Balance = Literal["addresses", "cpu", "flow"]
Refusal = Literal["port-unreachable", "admin-prohibited", "host-unreachable", "no-route"]

# NFTA_QUEUE_*, NFTA_HASH_*, NFTA_LOG_*, NFTA_TARGET_*, and values of these.
_QUEUE_NUM, _QUEUE_TOTAL, _QUEUE_FLAGS, _QUEUE_SREG = 1, 2, 3, 4
_BYPASS, _CPU_FANOUT = 1, 2
_HASH_DREG, _HASH_MODULUS, _HASH_OFFSET, _HASH_TYPE = 2, 4, 6, 7
_SYMMETRIC = 1
_LOG_GROUP, _LOG_PREFIX, _LOG_SNAPLEN, _LOG_QTHRESHOLD = 1, 2, 3, 4
_TARGET_NAME, _TARGET_REV, _TARGET_INFO = 1, 2, 3
_MAX_PREFIX, _MAX_IPTABLES_PREFIX = 127, 63  # bytes
_DROP, _ACCEPT = 0, 1  # NF_*
_INVALID, _UNTRACKED = 1, 64  # NF_CT_STATE_*_BIT
_MOST_FIRST = 0xFFFFFFFF
_xt_nfq_info = struct.Struct(netlink.PREFIX + "HHHxx")  # struct xt_NFQ_info_v3, of the target of iptables


class Case(NamedTuple):
    """An additional condition of an action, in expressions and in words of nft and iptables."""

    steps: list[Expression]
    nft: str
    iptables: str


class KernelAction(ABC):
    """The action of one rule of the kernel."""

    only_tcp: ClassVar[bool] = False
    """Whether the action applies only to TCP segments."""

    def cases(self) -> list[Case]:
        """Return alternative conditions. The kernel gets a rule for each of them."""
        return [Case([], "", "")]

    @abstractmethod
    def choices(self, family: str) -> list[list[Expression]]:
        """Return alternative expressions for a table of a family; the first that the kernel knows are used."""

    @abstractmethod
    def nft(self, family: str) -> str:
        """Return the words of nft. Raises NoWordsError."""

    @abstractmethod
    def iptables(self, version: int) -> str:
        """Return the words of iptables (4) or ip6tables (6), quoted for the shell. Raises NoWordsError."""


class Action(ABC):
    """The action of a rule, for which the kernel can need several rules."""

    name: ClassVar[str] = ""
    """The function of `nfnet.rules` that makes the rule."""
    reroutes: ClassVar[bool] = False
    """Whether the kernel must route an outgoing packet again, because the action can change its mark."""

    @abstractmethod
    def __str__(self) -> str:
        """Return a description for errors: "queueing packets"."""

    def hooks(self, family: str) -> tuple[str, ...]:
        """Return the hooks at which the kernel can carry out the action in tables of a family."""
        return (*HOOKS, "ingress")

    @abstractmethod
    def parts(self) -> tuple[KernelAction, ...]:
        """Return the kernel's actions, each for a rule of its own. The first one that applies to a packet decides."""

    def words(self) -> list[str]:
        """Return the words of the command line."""
        return [self.name]


class SimpleAction(Action, KernelAction):
    """An action for which the kernel needs one rule."""

    def parts(self) -> tuple[KernelAction, ...]:
        return (self,)


@dataclass(frozen=True)
class QueueAction(SimpleAction):
    """Hands packets to a program, which decides on them."""

    name = "queue"
    numbers: range
    bypass: bool
    balance: Balance
    first: int | None
    bits: MarkBits | None
    """The bits of marks in which decisions on connections are stored; None: they are not stored."""
    passes_over: int | None = None
    """The mark of packets that are not queued; None: all packets are queued."""

    @classmethod
    def of(
        cls,
        num: int | range,
        bypass: bool,
        balance: Balance,
        first: int | None = None,
        remember: bool = False,
        bits: int | None = None,
    ) -> QueueAction:
        """Check the arguments of `nfnet.rules.queue`. Raises ArgumentError."""
        if isinstance(num, range):
            if not num or num.step != 1:
                raise ArgumentError(f"queue numbers are {num} and must be a range without gaps")
            numbers = num
        else:
            num = check("queue number", num, 0, 0xFFFF, what="a number, or a range of them")
            numbers = range(num, num + 1)
        check("queue number", numbers[0], 0, 0xFFFF)
        check("queue number", numbers[-1], 0, 0xFFFF)
        if len(numbers) > 0xFFFF:
            raise ArgumentError("a rule shares its packets among 65535 queues at most, not 65536")
        check_choice("balance", balance, ("addresses", "cpu", "flow"))
        if first is not None:
            first = check("first", first, 1, _MOST_FIRST)
        if not check_flag("remember", remember):
            if bits is not None:
                raise ArgumentError("bits are those in which remember=True has connections remembered: give both")
            return cls(numbers, check_flag("bypass", bypass), balance, first, None)
        mark_bits = MarkBits(DEFAULT_BITS if bits is None else bits)
        return cls(numbers, check_flag("bypass", bypass), balance, first, mark_bits)

    def __str__(self) -> str:
        if len(self.numbers) == 1:
            return f"queueing packets to queue {self.numbers[0]}"
        return f"queueing packets to queues {self.numbers[0]} to {self.numbers[-1]}"

    def hooks(self, family: str) -> tuple[str, ...]:
        return HOOKS

    @property
    def is_tracked(self) -> bool:
        """Whether the action needs connection tracking."""
        return self.first is not None or self.bits is not None

    def cases(self) -> list[Case]:
        cases = [Case([], "", "")] if self.first is None else _first(self.first)
        if (mark := self.passes_over) is not None:
            steps = [meta(META_MARK), compare(host32(mark), NOT_EQUAL)]
            nft, iptables = f"meta mark != {mark:#x}", f"-m mark ! --mark {mark:#x}"
            cases = [
                Case([*steps, *case.steps], f"{nft} {case.nft}".rstrip(), f"{iptables} {case.iptables}".rstrip())
                for case in cases
            ]
        return cases

    def choices(self, family: str) -> list[list[Expression]]:
        first, total = self.numbers[0], len(self.numbers)
        flags = (_BYPASS if self.bypass else 0) | (_CPU_FANOUT if self.balance == "cpu" and total > 1 else 0)
        if self.balance == "flow" and total > 1:
            values = {_HASH_DREG: be32(REGISTER), _HASH_MODULUS: be32(total), _HASH_OFFSET: be32(first)}
            by_hash = {_QUEUE_SREG: be32(REGISTER), _QUEUE_FLAGS: be16(flags)}
            return [[("hash", {**values, _HASH_TYPE: be32(_SYMMETRIC)}), ("queue", by_hash)]]
        native = {_QUEUE_NUM: be16(first), _QUEUE_TOTAL: be16(total), _QUEUE_FLAGS: be16(flags)}
        # A kernel without nft's own queue expression can still have the target of iptables.
        info = _xt_nfq_info.pack(first, total, flags)
        target = ("target", {_TARGET_NAME: b"NFQUEUE\0", _TARGET_REV: be32(3), _TARGET_INFO: info})
        return [[("queue", native)], [target]]

    def nft(self, family: str) -> str:
        if self.balance == "flow" and len(self.numbers) > 1:
            offset = f" offset {self.numbers[0]}" if self.numbers[0] else ""
            bypass = "flags bypass " if self.bypass else ""
            return f"queue {bypass}to symhash mod {len(self.numbers)}{offset}"
        flags = ["bypass"] * self.bypass + ["fanout"] * (self.balance == "cpu" and len(self.numbers) > 1)
        return " ".join(["queue num", _span(self.numbers, "-"), *([",".join(flags)] if flags else [])])

    def iptables(self, version: int) -> str:
        if len(self.numbers) == 1:
            words = ["-j NFQUEUE --queue-num", str(self.numbers[0])]
        elif self.balance == "flow":
            raise NoWordsError("balance='flow'")
        else:
            words = ["-j NFQUEUE --queue-balance", _span(self.numbers, ":")]
            words += ["--queue-cpu-fanout"] * (self.balance == "cpu")
        return " ".join(words + ["--queue-bypass"] * self.bypass)

    def words(self) -> list[str]:
        words = [self.name, _span(self.numbers, "-")] + ["bypass=no"] * (not self.bypass)
        words += [] if self.first is None else [f"first={self.first}"]
        if self.bits is not None:
            words += ["remember=yes"] + [f"bits={self.bits.mask:#x}"] * (self.bits.mask != DEFAULT_BITS)
        return words + [f"balance={self.balance}"] * (len(self.numbers) > 1)


def _first(packets: int) -> list[Case]:
    """Return conditions for the first packets of each direction of a connection, and for packets without a connection.

    A packet without a connection matches no condition on directions, so it would not be queued without a third one.
    """
    cases = []
    for number, direction in enumerate(("original", "reply")):
        steps = [ct(CT_DIRECTION), compare(bytes([number]))]
        # In network order, because the kernel compares bytes.
        steps += [ct(CT_PACKETS, number), network_order(8), compare(be64(packets), LESS_OR_EQUAL)]
        nft = f"ct direction {direction} ct {direction} packets <= {packets}"
        iptables = f"-m conntrack --ctdir {direction.upper()}"
        iptables += f" -m connbytes --connbytes 0:{packets} --connbytes-dir {direction} --connbytes-mode packets"
        cases.append(Case(steps, nft, iptables))
    steps = [ct(CT_STATE), masked(host32(_INVALID | _UNTRACKED)), compare(bytes(4), NOT_EQUAL)]
    return [*cases, Case(steps, "ct state invalid,untracked", "-m conntrack --ctstate INVALID,UNTRACKED")]


@dataclass(frozen=True)
class LogAction(SimpleAction):
    """Hands copies of packets to a program. The packets continue with the next rule."""

    name = "log"
    group: int
    prefix: str
    snaplen: int | None
    threshold: int | None

    @classmethod
    def of(cls, group: int, prefix: str, snaplen: int | None, threshold: int | None) -> LogAction:
        """Check the arguments of `nfnet.rules.log`. Raises ArgumentError."""
        group = check("log group", group, 0, 0xFFFF)
        if not isinstance(prefix, str):
            raise wrong_type("prefix", prefix, "text")
        try:
            text = prefix.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise ArgumentError(f"prefix is {prefix!r} and must be text") from None
        if len(text) > _MAX_PREFIX or b"\0" in text:
            raise ArgumentError(f"prefix has {len(text)} bytes and must have at most {_MAX_PREFIX}, none of them 0")
        if snaplen is not None:
            snaplen = check("snaplen", snaplen, 0, 0xFFFFFFFF)
        if threshold is not None:
            threshold = check("threshold", threshold, 1, 0xFFFF)
        return cls(group, prefix, snaplen, threshold)

    def __str__(self) -> str:
        return f"logging packets to group {self.group}"

    def choices(self, family: str) -> list[list[Expression]]:
        values = {_LOG_GROUP: be16(self.group)}
        if self.prefix:
            values[_LOG_PREFIX] = self.prefix.encode("utf-8", "surrogateescape") + b"\0"
        if self.snaplen is not None:
            values[_LOG_SNAPLEN] = be32(self.snaplen)
        if self.threshold is not None:
            values[_LOG_QTHRESHOLD] = be16(self.threshold)
        return [[("log", values)]]

    def nft(self, family: str) -> str:
        check_words("a prefix", self.prefix, '"$')  # in nft, $ begins the name of a variable
        words = ["log", *([f'prefix "{self.prefix}"'] if self.prefix else []), f"group {self.group}"]
        words += [] if self.snaplen is None else [f"snaplen {self.snaplen}"]
        words += [] if self.threshold is None else [f"queue-threshold {self.threshold}"]
        return " ".join(words)

    def iptables(self, version: int) -> str:
        check_words("a prefix", self.prefix)
        if len(self.prefix.encode()) > _MAX_IPTABLES_PREFIX:
            raise NoWordsError(f"a prefix of more than {_MAX_IPTABLES_PREFIX} bytes")
        words = ["-j NFLOG --nflog-group", str(self.group)]
        words += ["--nflog-prefix", shlex.quote(self.prefix)] if self.prefix else []
        words += [] if self.snaplen is None else ["--nflog-size", str(self.snaplen)]
        words += [] if self.threshold is None else ["--nflog-threshold", str(self.threshold)]
        return " ".join(words)

    def words(self) -> list[str]:
        words = [self.name, str(self.group)] + [shlex.quote(f"prefix={self.prefix}")] * bool(self.prefix)
        words += [] if self.snaplen is None else [f"snaplen={self.snaplen}"]
        return words + ([] if self.threshold is None else [f"threshold={self.threshold}"])


class DropAction(SimpleAction):
    """Drops packets."""

    name = "drop"

    def __str__(self) -> str:
        return "dropping packets"

    def choices(self, family: str) -> list[list[Expression]]:
        return [[verdict(_DROP)]]

    def nft(self, family: str) -> str:
        return "drop"

    def iptables(self, version: int) -> str:
        return "-j DROP"


class AcceptAction(SimpleAction):
    """Lets packets skip the rules that follow in the chain."""

    name = "accept"

    def __str__(self) -> str:
        return "accepting packets"

    def choices(self, family: str) -> list[list[Expression]]:
        return [[verdict(_ACCEPT)]]

    def nft(self, family: str) -> str:
        return "accept"

    def iptables(self, version: int) -> str:
        return "-j ACCEPT"


@dataclass(frozen=True)
class MarkAction(SimpleAction):
    """Sets the mark of packets. They continue with the next rule."""

    name = "mark"
    reroutes = True
    value: int
    mask: int

    @classmethod
    def of(cls, value: int, mask: int) -> MarkAction:
        """Check the arguments of `nfnet.rules.mark`. Raises ArgumentError."""
        value = check("mark", value, 0, 0xFFFFFFFF)
        mask = check("mask", mask, 1, 0xFFFFFFFF)
        if value & ~mask:
            raise ArgumentError(f"mark {value:#x} has bits that its mask {mask:#x} leaves out")
        return cls(value, mask)

    def __str__(self) -> str:
        return f"marking packets with {self._text()}"

    def _text(self) -> str:
        return f"{self.value:#x}" + (f"/{self.mask:#x}" if self.mask != 0xFFFFFFFF else "")

    def choices(self, family: str) -> list[list[Expression]]:
        setting = set_meta(META_MARK)
        if self.mask == 0xFFFFFFFF:
            return [[immediate(host32(self.value)), setting]]
        return [[meta(META_MARK), masked(host32(self.mask ^ 0xFFFFFFFF), host32(self.value)), setting]]

    def nft(self, family: str) -> str:
        if self.mask == 0xFFFFFFFF:
            return f"meta mark set {self.value:#x}"
        kept = f"meta mark & {self.mask ^ 0xFFFFFFFF:#x}"
        return f"meta mark set {kept}" + (f" | {self.value:#x}" if self.value else "")

    def iptables(self, version: int) -> str:
        return f"-j MARK --set-xmark {self.value:#x}/{self.mask:#x}"

    def words(self) -> list[str]:
        return [self.name, self._text()]


@dataclass(frozen=True)
class RejectAction(Action):
    """Drops packets and notifies their senders."""

    name = "reject"
    error: Refusal

    @classmethod
    def of(cls, error: Refusal) -> RejectAction:
        """Check the argument of `nfnet.rules.reject`. Raises ArgumentError."""
        check_choice("error", error, tuple(_UNREACHABLE))
        return cls(error)

    def __str__(self) -> str:
        return "rejecting packets"

    def hooks(self, family: str) -> tuple[str, ...]:
        return {"bridge": ("prerouting", "input"), "netdev": ("ingress",)}.get(
            family, ("prerouting", "input", "forward", "output")
        )

    def parts(self) -> tuple[KernelAction, ...]:
        return (_Reset(), _Unreachable(self.error))

    def words(self) -> list[str]:
        return [self.name] + [f"error={self.error}"] * (self.error != "port-unreachable")


class _Reset(KernelAction):
    """Drops TCP segments and sends a reset."""

    only_tcp = True

    def choices(self, family: str) -> list[list[Expression]]:
        return [[reject(TCP_RESET)]]

    def nft(self, family: str) -> str:
        return "reject with tcp reset"

    def iptables(self, version: int) -> str:
        return "-j REJECT --reject-with tcp-reset"


# By error: the code for both IP versions (NFT_REJECT_ICMPX_*); code and word of ICMP; code and word of ICMPv6.
_UNREACHABLE: dict[str, tuple[int, tuple[int, str], tuple[int, str]]] = {
    "port-unreachable": (1, (3, "port-unreachable"), (4, "port-unreachable")),
    "admin-prohibited": (3, (13, "admin-prohibited"), (1, "admin-prohibited")),
    "host-unreachable": (2, (1, "host-unreachable"), (3, "addr-unreachable")),
    "no-route": (0, (0, "net-unreachable"), (0, "no-route")),
}
_IN_IPTABLES = {
    4: {13: "icmp-admin-prohibited", 3: "icmp-port-unreachable", 1: "icmp-host-unreachable", 0: "icmp-net-unreachable"},
    6: {1: "icmp6-adm-prohibited", 4: "icmp6-port-unreachable", 3: "icmp6-addr-unreachable", 0: "icmp6-no-route"},
}


@dataclass(frozen=True)
class _Unreachable(KernelAction):
    """Drops packets and sends an ICMP or ICMPv6 error."""

    error: Refusal

    def choices(self, family: str) -> list[list[Expression]]:
        both, of_ip, of_ip6 = _UNREACHABLE[self.error]
        code = {"ip": of_ip[0], "ip6": of_ip6[0]}.get(family)
        kind = ICMPX_UNREACHABLE if code is None else ICMP_UNREACHABLE
        return [[reject(kind, both if code is None else code)]]

    def nft(self, family: str) -> str:
        _, of_ip, of_ip6 = _UNREACHABLE[self.error]
        return "reject with " + {"ip": f"icmp {of_ip[1]}", "ip6": f"icmpv6 {of_ip6[1]}"}.get(
            family, f"icmpx {self.error}"
        )

    def iptables(self, version: int) -> str:
        _, of_ip, of_ip6 = _UNREACHABLE[self.error]
        code = of_ip[0] if version == 4 else of_ip6[0]
        return f"-j REJECT --reject-with {_IN_IPTABLES[version][code]}"


def _span(numbers: range, separator: str) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}{separator}{numbers[-1]}"


def queues_of(name: str, values: dict[int, bytes]) -> tuple[range, int]:
    """Return the queues into which an expression puts packets, and its flags; no queue for other expressions."""
    if name == "queue" and _QUEUE_NUM in values:
        first = int.from_bytes(values[_QUEUE_NUM], "big")
        total = int.from_bytes(values.get(_QUEUE_TOTAL, b"\0\1"), "big")
        return range(first, first + total), int.from_bytes(values.get(_QUEUE_FLAGS, b""), "big")
    info = values.get(_TARGET_INFO, b"")
    if name == "target" and values.get(_TARGET_NAME, b"").rstrip(b"\0") == b"NFQUEUE" and len(info) >= 2:
        # Revision 0 has only the number; revisions 1 and 2 have no flag except bypass.
        first, total, flags = _xt_nfq_info.unpack(info[:8].ljust(8, b"\0"))
        revision = int.from_bytes(values.get(_TARGET_REV, b""), "big")
        return range(first, first + (total if revision and total else 1)), flags
    return range(0), 0
