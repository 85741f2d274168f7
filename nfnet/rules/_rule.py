"""A rule: what it matches, what happens to it, and how it is installed and removed."""

from __future__ import annotations

import errno
import itertools
import os
import shlex
import socket
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from .._arguments import check, check_choice, check_flag, wrong_type
from .._io.netlink_socket import NetlinkSocket
from .._io.raw_socket import INJECTED_MARK
from .._printable import printable
from ..errors import ArgumentError, KernelError, NfnetError, NotSupportedError
from ..netns import Netns, call_in, check_netns
from ..protocol import netlink
from ..protocol.nfnetlink import Hook
from . import _nftables
from ._criteria import CRITERIA, HOOKS, Expression, Match, NoWordsError, be32, check_words, nft_interface

if TYPE_CHECKING:
    from typing_extensions import Unpack

_FAMILIES = {"inet": 1, "ip": 2, "netdev": 5, "bridge": 7, "ip6": 10}  # NFPROTO_*
_INGRESS = {"inet": 5, "netdev": 0}  # the number of the hook
_OWNER = 0x2  # NFT_TABLE_F_OWNER: the table goes when the socket does
_POLICY_ACCEPT = 1
_QUEUE_NUM, _QUEUE_TOTAL, _QUEUE_FLAGS, _QUEUE_SREG = 1, 2, 3, 4
_BYPASS, _CPU_FANOUT = 1, 2
_HASH_DREG, _HASH_MODULUS, _HASH_OFFSET, _HASH_TYPE = 2, 4, 6, 7
_SYMMETRIC = 1
_REGISTER = 1
_LOG_GROUP, _LOG_PREFIX, _LOG_SNAPLEN, _LOG_QTHRESHOLD = 1, 2, 3, 4
_MAX_PREFIX, _MAX_IPTABLES_PREFIX = 127, 63  # bytes
# The tables of iptables that have a chain at a hook with a priority. Not that called security: it is at 50 with
# iptables-legacy, and at 150 with iptables-nft.
_TABLES = {
    **dict.fromkeys([(hook, -150) for hook in HOOKS], "mangle"),
    **dict.fromkeys([("prerouting", -300), ("output", -300)], "raw"),
    **dict.fromkeys([("input", 0), ("forward", 0), ("output", 0)], "filter"),
}
_NAME = "nfnet-"
_NOT_MARK = CRITERIA["not_mark"]
_NO_TRACKING = "Connection tracking does not know the family: CONFIG_NF_CONNTRACK_BRIDGE is needed for bridges"
_xt_nfq_info = struct.Struct(netlink.PREFIX + "HHHxx")  # struct xt_NFQ_info_v3, of the target of iptables

Balance = Literal["addresses", "cpu", "flow"]


class Where(TypedDict, total=False):
    """Which packets, and where; see `queue`."""

    hook: str | Hook
    family: str
    priority: int
    netns: Netns | None
    protocol: str | int | None
    source: Any
    destination: Any
    source_port: int | range | str | None
    destination_port: int | range | str | None
    in_interface: str | None
    out_interface: str | None
    mark: int | None
    not_mark: int | None
    state: str | Iterable[str] | None
    uid: int | str | None


def queue(num: int | range, *, bypass: bool = True, balance: Balance = "addresses", **where: Unpack[Where]) -> Rule:
    """A rule that puts packets that match into queue ``num``, while its block runs, or from `install` to `remove`.

    num: number of the queue, 0 to 65535; or a range of at most 65535 of them, to share the load.
    bypass: let packets pass while nobody listens to the queue, instead of dropping them.
    balance: how packets are shared among several queues: by their pair of "addresses", both directions of a connection
        to the same queue (the kernel's own hash, which leaves it to chance whether all queues get some); by the "cpu"
        that they arrived on; or by "flow", a hash of the five-tuple, the same for both directions (which needs nft's
        own queue and hash expressions: CONFIG_NFT_QUEUE, CONFIG_NFT_HASH).

    hook: where: "prerouting", "input", "forward", "output" (if not given), "postrouting" or "ingress", where a packet
        comes in by ``in_interface``; packets cannot be queued in the latter, only logged.
    family: whose packets: "inet" (IPv4 and IPv6, if not given), "ip", "ip6", "bridge", or "netdev" for ingress.
    priority: among the chains of the hook, lower ones first; 0, that of "filter", if not given.
    netns: the network namespace to install it in; see `nfnet.Queue`.

    Packets match if all of this is true of them:

    protocol: "tcp", "udp", "icmp" (of IPv4), "icmpv6" (of IPv6), "sctp" or a number.
    source, destination: an address or a network ("192.0.2.0/24"), IPv4 or IPv6.
    source_port, destination_port: of TCP, UDP or SCTP, which then must be the protocol; a number, or several in a row:
        ``range(1024, 2048)``, "1024-2047".
    in_interface: the name of the interface that they came in by, or how it begins: "eth*". Not for the hook output,
        nor for postrouting before Linux 5.7 and in the family bridge, where interfaces are ports of the bridge.
    out_interface: likewise, where they will go out; for the hooks forward, output and postrouting.
    mark, not_mark: the packet's mark, or not this one, so that a packet that is marked and repeated does not come back.
        Unless the mark is given, packets that nfnet injects (`nfnet.INJECTED_MARK`) do not match.
    state: what connection tracking says: "new", "established", "related", "invalid", "untracked", or several of them.
        Not for ingress, nor for a priority of -200 or less at the hooks prerouting and output.
    uid: user id, or name, of the local sender; for the hooks output and postrouting. The number is that of the user
        namespace to which the network namespace belongs.

    Raises ArgumentError at once, also for what no packet could match. Installing it raises ArgumentError for an
    interface that does not exist, NotPermittedError without CAP_NET_ADMIN, NotSupportedError where the kernel has no
    nf_tables or cannot do what the rule says, KernelError.
    """
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
    return Rule(_QueueAction(numbers, check_flag("bypass", bypass), balance), **where)


def log(
    group: int,
    *,
    prefix: str = "",
    snaplen: int | None = None,
    threshold: int | None = None,
    **where: Unpack[Where],
) -> Rule:
    """A rule that logs packets that match to group ``group`` (see `nfnet.Log`); they go on as ever.

    group: number of the group, 0 to 65535.
    prefix: what the messages shall say, at most 127 bytes in UTF-8.
    snaplen: how many bytes of each packet to log, 0 to 2^32-1; all if not given.
    threshold: how many messages the kernel may collect before it sends them, 1 to 65535; the log's if not given or
        higher than that.
    The others are those of `queue`, and so are errors.
    """
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
    return Rule(_LogAction(group, prefix, snaplen, threshold), **where)


def install(rule: Rule) -> Rule:
    """Install a rule for as long as this process lives, or until `remove`. Raises as `queue` says.

    It stays whether or not the program keeps the object. A forked child has no part in it.
    """
    rule.install()
    return rule


def remove(rule: Rule) -> None:
    """Remove an installed rule; may be called twice."""
    rule.remove()


def describe(rule: Rule) -> str:
    """The commands of nft and iptables that install the same rule, for a shell, one a line.

    Where one of them has no words for the rule, there is a line that begins with # and says for what.
    """
    return rule.describe()


class LeftRule(NamedTuple):
    """The table of a rule that is installed."""

    family: str
    name: str
    process: int
    """The process that installed it."""
    orphaned: bool
    """Whether that has ended; then `clean` removes it."""


def installed(netns: Netns | None = None) -> list[LeftRule]:
    """The rules of this library in a network namespace, whoever installed them. Raises KernelError."""
    sock = call_in(netns, NetlinkSocket)
    try:
        return [row for family, name, owner in _nftables.tables(sock) if (row := _left(family, name, owner))]
    finally:
        sock.close()


def _left(family: int, name: str, owner: int | None) -> LeftRule | None:
    if not name.startswith(_NAME):
        return None
    process = name[len(_NAME) :].partition("-")[0]
    if not process.isdecimal():
        return None
    names = {number: text for text, number in _FAMILIES.items()}
    # What has an owner is removed by the kernel, if its process ended.
    orphaned = owner is None and not os.path.exists(f"/proc/{process}")
    return LeftRule(names.get(family, str(family)), name, int(process), orphaned)


def clean(netns: Netns | None = None) -> list[LeftRule]:
    """Remove the rules of processes that were killed, and return them; since Linux 5.12 there are none.

    A process in another pid namespace, a container, looks like one that has ended. Raises KernelError.
    """
    sock = call_in(netns, NetlinkSocket)
    try:
        left = [row for family, name, owner in _nftables.tables(sock) if (row := _left(family, name, owner))]
        left = [row for row in left if row.orphaned]
        for row in left:
            family = _FAMILIES[row.family] if row.family in _FAMILIES else int(row.family)
            delete = [(_nftables.DELTABLE, [("NFTA_TABLE_NAME", row.name)])]
            _nftables.commit(sock, family, delete, f"removing table {row.name}")
        return left
    finally:
        sock.close()


def queues_of(name: str, values: dict[int, bytes]) -> tuple[range, int]:
    """The queues that an expression of nf_tables puts packets into, and its flags; none if it is another one."""
    if name == "queue" and _QUEUE_NUM in values:
        first = int.from_bytes(values[_QUEUE_NUM], "big")
        total = int.from_bytes(values.get(_QUEUE_TOTAL, b"\0\1"), "big")
        return range(first, first + total), int.from_bytes(values.get(_QUEUE_FLAGS, b""), "big")
    info = values.get(3, b"")
    if name == "target" and values.get(1, b"").rstrip(b"\0") == b"NFQUEUE" and len(info) >= 2:
        # Revision 0 has the number alone, revision 2 and 1 no other flag than bypass.
        first, total, flags = _xt_nfq_info.unpack(info[:8].ljust(8, b"\0"))
        revision = int.from_bytes(values.get(2, b""), "big")
        return range(first, first + (total if revision and total else 1)), flags
    return range(0), 0


class _QueueAction(NamedTuple):
    """The end of a rule that queues packets."""

    numbers: range
    bypass: bool
    balance: Balance
    passes_over: int | None = None
    """A mark of packets that are not to be queued."""

    def __str__(self) -> str:
        if len(self.numbers) == 1:
            return f"queueing packets to queue {self.numbers[0]}"
        return f"queueing packets to queues {self.numbers[0]} to {self.numbers[-1]}"

    def choices(self) -> list[list[Expression]]:
        before: list[Expression] = []
        if self.passes_over is not None:
            before = list(_NOT_MARK.expressions(_NOT_MARK.read("not_mark", self.passes_over)))
        return [[*before, *end] for end in self._ends()]

    def _ends(self) -> list[list[Expression]]:
        first, total = self.numbers[0], len(self.numbers)
        flags = (_BYPASS if self.bypass else 0) | (_CPU_FANOUT if self.balance == "cpu" and total > 1 else 0)
        if self.balance == "flow" and total > 1:
            values = {_HASH_DREG: be32(_REGISTER), _HASH_MODULUS: be32(total), _HASH_OFFSET: be32(first)}
            by_hash = {_QUEUE_SREG: be32(_REGISTER), _QUEUE_FLAGS: _be16(flags)}
            return [[("hash", {**values, _HASH_TYPE: be32(_SYMMETRIC)}), ("queue", by_hash)]]
        native = {_QUEUE_NUM: _be16(first), _QUEUE_TOTAL: _be16(total), _QUEUE_FLAGS: _be16(flags)}
        # A kernel without nft's own queue expression may still have the target of iptables.
        info = _xt_nfq_info.pack(first, total, flags)
        target = ("target", {1: b"NFQUEUE\0", 2: be32(3), 3: info})
        return [[("queue", native)], [target]]

    def nft(self) -> str:
        before = [] if self.passes_over is None else [_NOT_MARK.nft(_NOT_MARK.read("not_mark", self.passes_over))]
        return " ".join([*before, self._nft()])

    def _nft(self) -> str:
        if self.balance == "flow" and len(self.numbers) > 1:
            offset = f" offset {self.numbers[0]}" if self.numbers[0] else ""
            bypass = "flags bypass " if self.bypass else ""
            return f"queue {bypass}to symhash mod {len(self.numbers)}{offset}"
        flags = ["bypass"] * self.bypass + ["fanout"] * (self.balance == "cpu" and len(self.numbers) > 1)
        return " ".join(["queue num", _span(self.numbers, "-"), *([",".join(flags)] if flags else [])])

    def iptables(self) -> str:
        if len(self.numbers) == 1:
            words = ["-j NFQUEUE --queue-num", str(self.numbers[0])]
        elif self.balance == "flow":
            raise NoWordsError("balance='flow'")
        else:
            words = ["-j NFQUEUE --queue-balance", _span(self.numbers, ":")]
            words += ["--queue-cpu-fanout"] * (self.balance == "cpu")
        if self.passes_over is not None:
            words.insert(0, _NOT_MARK.iptables(_NOT_MARK.read("not_mark", self.passes_over)))
        return " ".join(words + ["--queue-bypass"] * self.bypass)


class _LogAction(NamedTuple):
    """The end of a rule that logs packets."""

    group: int
    prefix: str
    snaplen: int | None
    threshold: int | None

    def __str__(self) -> str:
        return f"logging packets to group {self.group}"

    def choices(self) -> list[list[Expression]]:
        values = {_LOG_GROUP: _be16(self.group)}
        if self.prefix:
            values[_LOG_PREFIX] = self.prefix.encode("utf-8", "surrogateescape") + b"\0"
        if self.snaplen is not None:
            values[_LOG_SNAPLEN] = be32(self.snaplen)
        if self.threshold is not None:
            values[_LOG_QTHRESHOLD] = _be16(self.threshold)
        return [[("log", values)]]

    def nft(self) -> str:
        check_words("a prefix", self.prefix, '"$')  # the latter begins the name of a variable
        words = ["log", *([f'prefix "{self.prefix}"'] if self.prefix else []), f"group {self.group}"]
        words += [] if self.snaplen is None else [f"snaplen {self.snaplen}"]
        words += [] if self.threshold is None else [f"queue-threshold {self.threshold}"]
        return " ".join(words)

    def iptables(self) -> str:
        check_words("a prefix", self.prefix)
        if len(self.prefix.encode()) > _MAX_IPTABLES_PREFIX:
            raise NoWordsError(f"a prefix of more than {_MAX_IPTABLES_PREFIX} bytes")
        words = ["-j NFLOG --nflog-group", str(self.group)]
        words += ["--nflog-prefix", shlex.quote(self.prefix)] if self.prefix else []
        words += [] if self.snaplen is None else ["--nflog-size", str(self.snaplen)]
        words += [] if self.threshold is None else ["--nflog-threshold", str(self.threshold)]
        return " ".join(words)


def _be16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _span(numbers: range, separator: str) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}{separator}{numbers[-1]}"


class Rule:
    """What `queue` and `log` return: a rule, installed while its block runs, or from `install` to `remove`."""

    def __init__(
        self,
        action: _QueueAction | _LogAction,
        *,
        hook: str | Hook = "output",
        family: str = "inet",
        priority: int = 0,
        netns: Netns | None = None,
        **match: Any,
    ) -> None:
        for name in match:
            if name not in CRITERIA:
                raise TypeError(f"a rule knows no {name!r}; there are {', '.join(sorted(Where.__annotations__))}")
        if isinstance(hook, Hook):
            hook = hook.name.lower()
        check_choice("family", family, tuple(_FAMILIES))
        check_choice("hook", hook, ("ingress",) if family == "netdev" else (*HOOKS, "ingress"))
        if hook == "ingress":
            if family not in _INGRESS:
                raise ArgumentError(f"hook 'ingress' is there in the families netdev and inet, not in {family!r}")
            if isinstance(action, _QueueAction):
                raise ArgumentError("packets cannot be queued at ingress, only logged: use hook='prerouting'")
            interface = match.get("in_interface")
            if not isinstance(interface, str) or interface.endswith("*"):
                raise ArgumentError("hook 'ingress' needs in_interface, the name of one interface")
        if isinstance(action, _QueueAction) and hook != "forward" and match.get("mark") is None:
            # Where what this machine sends comes by. A rule that asks for a mark says by itself what it is for.
            action = action._replace(passes_over=INJECTED_MARK)
        self._action, self._hook, self._family = action, hook, family
        self._device = match["in_interface"] if hook == "ingress" else None
        self._priority = check("priority", priority, -0x80000000, 0x7FFFFFFF)
        check_netns(netns)
        self._netns = netns
        self._match = Match(**match)
        self._match.check_place(family, hook, self._priority)
        self._name = ""
        self._owned = True

    def __repr__(self) -> str:
        return f"<Rule {self._action}: {'installed' if self in _installed else 'not installed'}>"

    def install(self) -> None:
        """Install it. Raises as `queue` says, and NfnetError if it is installed already."""
        sock = call_in(self._netns, self._connect)
        try:
            if _installed.setdefault(self, sock) is not sock:
                raise NfnetError("the rule is installed already")
            self._install(sock)
        except BaseException:
            if _installed.get(self) is sock:
                del _installed[self]
            sock.close()
            raise

    def _connect(self) -> NetlinkSocket:
        """A socket in the namespace of the calling thread, where the interfaces must be, too."""
        for name in self._match.interfaces():
            try:
                real = socket.if_indextoname(socket.if_nametoindex(name))
            except OSError:
                known = ", ".join(printable(name) for _, name in socket.if_nameindex())
                raise ArgumentError(f"there is no interface {name!r} in this network namespace, but {known}") from None
            if real != name:  # what the kernel compares is the name proper
                raise ArgumentError(f"{name!r} is another name of the interface {printable(real)}: use that")
        return NetlinkSocket()

    def _install(self, sock: NetlinkSocket) -> None:
        # Not the process id alone: containers may share the namespace, and each has a process 1.
        self._name = f"{_NAME}{os.getpid()}-{os.urandom(4).hex()}"
        matches = list(self._match.expressions(self._family))
        attempts = list(itertools.product((_OWNER, 0), self._action.choices()))
        for flags, end in attempts:
            try:
                _nftables.commit(
                    sock, _FAMILIES[self._family], self._messages(flags, [*matches, *end]), str(self._action)
                )
                self._owned = bool(flags)
                return
            except KernelError as error:
                if error.errno == errno.EPROTO:  # what connection tracking answers for a family that it does not know
                    raise NotSupportedError(str(self._action), errno.EPROTO, hint=_NO_TRACKING) from None
                # ENOENT: no such expression or target. EOPNOTSUPP, before Linux 5.12: no table can have an owner.
                if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                if (flags, end) == attempts[-1]:
                    if error.errno != errno.ENOENT:
                        raise
                    text = f"This kernel knows no expression for {self._nft()[-1]!r}"
                    raise NotSupportedError(str(self._action), errno.ENOENT, message=error.message, hint=text) from None

    def _messages(self, flags: int, expressions: list[Expression]) -> list[_nftables.Message]:
        number = _INGRESS[self._family] if self._hook == "ingress" else HOOKS.index(self._hook)
        hook: list[Any] = [("NFTA_HOOK_HOOKNUM", number), ("NFTA_HOOK_PRIORITY", self._priority)]
        if self._hook == "ingress":
            hook.append(("NFTA_HOOK_DEV", self._device))
        chain = [
            ("NFTA_CHAIN_TABLE", self._name),
            ("NFTA_CHAIN_NAME", "rules"),
            ("NFTA_CHAIN_TYPE", "filter"),
            ("NFTA_CHAIN_POLICY", _POLICY_ACCEPT),
            ("NFTA_CHAIN_HOOK", {"attrs": hook}),
        ]
        encoded = [_nftables.encode(expression) for expression in expressions]
        in_chain = [("NFTA_RULE_TABLE", self._name), ("NFTA_RULE_CHAIN", "rules"), ("NFTA_RULE_EXPRESSIONS", encoded)]
        return [
            (_nftables.NEWTABLE, [("NFTA_TABLE_NAME", self._name), ("NFTA_TABLE_FLAGS", flags)]),
            (_nftables.NEWCHAIN, chain),
            (_nftables.NEWRULE, in_chain),
        ]

    def remove(self) -> None:
        """Remove it; may be called twice. Raises KernelError if it stays, as it may before Linux 5.12 only."""
        sock = _installed.pop(self, None)
        if sock is None:
            return
        delete = [(_nftables.DELTABLE, [("NFTA_TABLE_NAME", self._name)])]
        try:
            _nftables.commit(sock, _FAMILIES[self._family], delete, f"removing the rule for {self._action}")
        except KernelError as error:
            # ENOENT if somebody flushed the ruleset. A table with an owner goes with the socket in any case.
            if not self._owned and error.errno != errno.ENOENT:
                raise
        finally:
            sock.close()

    def __enter__(self) -> Rule:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def describe(self) -> str:
        """The commands of nft and iptables that install the same rule; see `nfnet.rules.describe`."""
        return "\n".join([*self._nft(), *self._iptables()])

    def _nft(self) -> list[str]:
        family = self._family
        try:
            device = "" if self._device is None else f" device {nft_interface(self._device)}"
            hook = f"{{ type filter hook {self._hook}{device} priority {self._priority}; }}"
            words = [*self._match.nft(family), self._action.nft()]
        except NoWordsError as error:
            return [f"# nft has no words for {error}"]
        return [
            f"nft add table {family} nfnet",
            f"nft add chain {family} nfnet {self._hook} {shlex.quote(hook)}",
            f"nft add rule {family} nfnet {self._hook} {shlex.quote(' '.join(words))}",
        ]

    def _iptables(self) -> list[str]:
        try:
            if self._family in ("bridge", "netdev"):
                raise NoWordsError(f"the family {self._family}")
            table = self._iptables_table()
            words = [*self._match.iptables(), self._action.iptables()]
        except NoWordsError as error:
            return [f"# iptables has no words for {error}"]
        programs = {4: "iptables", 6: "ip6tables"}
        versions = {"ip": [4], "ip6": [6]}.get(self._family, [4, 6])
        return [
            " ".join([programs[version], *table, "-A", self._hook.upper(), *words])
            for version in versions
            if self._match.version in (None, version)
        ]

    def _iptables_table(self) -> list[str]:
        """Options that choose the table with a chain at this hook and priority. Raises NoWordsError."""
        if self._hook == "ingress":
            raise NoWordsError("the hook ingress")
        table = _TABLES.get((self._hook, self._priority))
        if table is None:
            others = [f"{name} is at {priority}" for (hook, priority), name in _TABLES.items() if hook == self._hook]
            raise NoWordsError(f"priority {self._priority} at {self._hook}" + "".join(f"; {text}" for text in others))
        if self._hook == "postrouting" and self._match.has("in_interface"):
            raise NoWordsError("in_interface at postrouting")
        return [] if table == "filter" else ["-t", table]


# Installed rules, each with the socket to which its table belongs: a rule goes when that is closed.
_installed: dict[Rule, NetlinkSocket] = {}

# In a forked child the sockets are closed: the rules are its parent's.
os.register_at_fork(after_in_child=_installed.clear)
