"""The criteria by which rules select packets: a row of `CRITERIA` for each, and its arguments in `Where`.

A row checks the argument, and translates it into expressions of nf_tables and into words of nft, of iptables and of the
command line. The documentation is made from it, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias, TypedDict, TypeVar

from ..netns import Netns
from ..protocol.nfnetlink import Hook
from ._compared import Field
from ._criterion import Criterion, Hooks
from ._expressions import (
    CT_MARK,
    META_IIFNAME,
    META_LENGTH,
    META_MARK,
    META_OIFNAME,
    META_SKGID,
    META_SKUID,
    NETWORK_HEADER,
    Datatype,
    ct,
    meta,
    payload,
)
from ._host_criteria import Account, AddressType, Cgroup, ConnectionMark, Interface, Limit, Mark, State
from ._packet_criteria import AddressOf, IcmpType, Number, Port, Protocol, TcpFlags
from ._sets import Set
from ._values import Address, read_group, read_user

# Exceptions from `Criterion.hooks`. At postrouting the IP layer still knows the incoming interface of a packet (since
# Linux 5.7); a bridge does not.
NEVER = {("bridge", "postrouting", "in_interface")}

# Names of Differentiated Services codepoints (RFC 2474, 2597 and 3246).
_CODEPOINTS = {
    "ef": 46,
    **{f"cs{number}": 8 * number for number in range(8)},
    **{f"af{number}{drop}": 8 * number + 2 * drop for number in range(1, 5) for drop in range(1, 4)},
}

# In the order in which packets are compared, and in which descriptions name the criteria.
CRITERIA: dict[str, Criterion] = {
    "protocol": Protocol(),
    "source": AddressOf("the address of the sender", 0, "saddr", "src"),
    "destination": AddressOf("the address of the receiver", 1, "daddr", "dst"),
    "source_port": Port("the port of the sender", 0, "sport"),
    "destination_port": Port("the port of the receiver", 2, "dport"),
    "tcp_flags": TcpFlags(),
    "icmp_type": IcmpType(),
    "in_interface": Interface(
        "the incoming interface",
        META_IIFNAME,
        "iifname",
        "-i",
        Hooks(
            ("prerouting", "input", "forward", "postrouting", "ingress"),
            "incoming interface",
            "postrouting since Linux 5.7, and not in the family bridge",
        ),
    ),
    "out_interface": Interface(
        "the outgoing interface",
        META_OIFNAME,
        "oifname",
        "-o",
        Hooks(("forward", "output", "postrouting"), "outgoing interface"),
    ),
    "length": Number(
        "the length of the packet from its IP header on; a super-packet that is not split yet counts as one",
        "a number of bytes",
        Field(meta(META_LENGTH), 4, Datatype.INTEGER, host_order=True),
        "meta length",
        "-m length {}--length",
    ),
    "dscp": Number(
        "the Differentiated Services codepoint in the IP header",
        'a number, 0 to 63, or a name: "ef", "cs0" to "cs7", "af11" to "af43"',
        {
            4: Field(payload(NETWORK_HEADER, 1, 1), 1, Datatype.DSCP, mask=0xFC, shift=2),
            6: Field(payload(NETWORK_HEADER, 0, 2), 2, Datatype.DSCP, mask=0x0FC0, shift=6),
        },
        "dscp",
        "-m dscp {}--dscp",
        names=_CODEPOINTS,
        iptables_ranges=False,
    ),
    "mark": Mark("the packet's mark", meta(META_MARK), "meta mark", "mark"),
    "state": State(),
    "connection_mark": ConnectionMark("the connection's mark", ct(CT_MARK), "ct mark", "connmark"),
    "uid": Account("the user of the local sender", Datatype.UID, META_SKUID, read_user, "skuid", "uid-owner"),
    "gid": Account("the group of the local sender", Datatype.GID, META_SKGID, read_group, "skgid", "gid-owner"),
    "source_type": AddressType("the type of the sender's address for this machine", 1, "saddr", "src"),
    "destination_type": AddressType("the type of the receiver's address for this machine", 2, "daddr", "dst"),
    "cgroup": Cgroup(),
    "limit": Limit(),
}


_T = TypeVar("_T")
Some: TypeAlias = _T | Iterable[_T] | None
"""The type of an argument that takes a value or several values."""
Numbers: TypeAlias = int | range | str


class _Place(TypedDict):
    hook: str | Hook


class Where(_Place, total=False):
    """Arguments for the place of a rule, and for the packets to which it applies; see `queue`.

    Each row of `CRITERIA` has an argument, and another one for its negation.
    """

    family: str
    priority: int
    netns: Netns | None
    protocol: Some[str | int]
    not_protocol: Some[str | int]
    source: Some[Address] | Set
    not_source: Some[Address] | Set
    destination: Some[Address] | Set
    not_destination: Some[Address] | Set
    source_port: Some[Numbers] | Set
    not_source_port: Some[Numbers] | Set
    destination_port: Some[Numbers] | Set
    not_destination_port: Some[Numbers] | Set
    tcp_flags: str | None
    not_tcp_flags: str | None
    icmp_type: Some[str | int]
    not_icmp_type: Some[str | int]
    in_interface: Some[str] | Set
    not_in_interface: Some[str] | Set
    out_interface: Some[str] | Set
    not_out_interface: Some[str] | Set
    length: Some[Numbers]
    not_length: Some[Numbers]
    dscp: Some[Numbers]
    not_dscp: Some[Numbers]
    mark: Some[int | tuple[int, int]] | Set
    not_mark: Some[int | tuple[int, int]] | Set
    state: Some[str]
    not_state: Some[str]
    connection_mark: Some[int | tuple[int, int]] | Set
    not_connection_mark: Some[int | tuple[int, int]] | Set
    uid: Some[Numbers]
    not_uid: Some[Numbers]
    gid: Some[Numbers]
    not_gid: Some[Numbers]
    source_type: Some[str]
    not_source_type: Some[str]
    destination_type: Some[str]
    not_destination_type: Some[str]
    cgroup: Some[str]
    limit: int | str | None
    not_limit: int | str | None
