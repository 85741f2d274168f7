"""Samples of each criterion of rules. Every criterion has a row, and all tests of criteria use this table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Sample(NamedTuple):
    """Values of a criterion, for tests."""

    wrong: tuple[Any, str]
    """A value of a wrong type, and a pattern for the part of the error message that says what is expected."""
    meaning: Sequence[tuple[dict[str, Any], list[str]]] = ()
    """Arguments of rules, and hand-written nft rules: together they match the same packets."""
    values: Sequence[Any] = ()
    """Values that nft and iptables can express. Tests use each alone, and all as a list."""
    protocol: Any = None
    """The protocol that the rule must also specify."""
    hook: str = "output"
    """A hook at which the criterion can match."""


SAMPLES: dict[str, Sample] = {
    "protocol": Sample(
        wrong=(1.5, "a number or one of 'icmp', 'tcp', .*, or a list of such, not float"),
        meaning=[
            ({"protocol": ["tcp", "udp"]}, ["meta l4proto tcp", "meta l4proto udp"]),
            ({"not_protocol": ["tcp", "udp"]}, ["meta l4proto != { tcp, udp }"]),
            ({"protocol": "icmp"}, ["ip protocol icmp"]),
            ({"not_protocol": "icmp"}, ["ip protocol != icmp", "meta nfproto ipv6"]),
            ({"protocol": ["icmp", 6]}, ["ip protocol icmp", "meta l4proto tcp"]),
        ],
        values=["tcp", "udp", 47],
    ),
    "source": Sample(
        wrong=([3.5], "an address or a network, .*, or a list of such, not float"),
        meaning=[
            ({"source": ["10.81.1.1", "fd81:1::/64"]}, ["ip saddr 10.81.1.1", "ip6 saddr fd81:1::/64"]),
            ({"not_source": ["10.81.1.1", "fd81:1::/64"]}, ["ip saddr != 10.81.1.1", "ip6 saddr != fd81:1::/64"]),
            ({"not_source": "10.81.1.0/24"}, ["ip saddr != 10.81.1.0/24", "meta nfproto ipv6"]),
            ({"source": "10.81.1.1-10.81.2.1"}, ["ip saddr >= 10.81.1.1 ip saddr <= 10.81.2.1"]),
            (
                {"not_source": "10.81.1.1-10.81.1.9"},
                ["ip saddr < 10.81.1.1", "ip saddr > 10.81.1.9", "meta nfproto ipv6"],
            ),
        ],
        values=["192.0.2.0/24", "fd00::1-fd00::9", "198.51.100.1"],
    ),
    "destination": Sample(
        wrong=(0xC0000201, "an address or a network, .*, not int"),
        meaning=[
            ({"destination": ["10.81.2.2", "10.81.1.0/29"]}, ["ip daddr { 10.81.2.2, 10.81.1.0/29 }"]),
            (
                {"not_destination": ["fd81:2::2", "fd81:1::1"]},
                ["ip6 daddr != { fd81:2::2, fd81:1::1 }", "meta nfproto ipv4"],
            ),
        ],
        values=["192.0.2.1-192.0.2.9", "192.0.2.77"],
    ),
    "source_port": Sample(
        wrong=([80, None], "a port, a range of them, text like '1024-2047', or a list of such, not NoneType"),
        meaning=[
            ({"protocol": "tcp", "source_port": [7777, "1-9"]}, ["tcp sport 7777", "tcp sport 1-9"]),
            ({"protocol": "udp", "not_source_port": [5001, "1-9"]}, ["udp sport != { 5001, 1-9 }"]),
        ],
        values=[53, "1024-2047"],
        protocol="udp",
    ),
    "destination_port": Sample(
        wrong=(80.0, "a port, a range of them, text like '1024-2047', or a list of such, not float"),
        meaning=[
            (
                {"protocol": ["tcp", "udp"], "destination_port": [7777, 5001]},
                ["tcp dport { 7777, 5001 }", "udp dport { 7777, 5001 }"],
            ),
            ({"protocol": "tcp", "destination_port": range(7000, 8000)}, ["tcp dport >= 7000 tcp dport < 8000"]),
            ({"protocol": "tcp", "not_destination_port": range(7000, 8000)}, ["tcp dport < 7000", "tcp dport >= 8000"]),
        ],
        values=[80, 443, range(8000, 8100)],
        protocol="tcp",
    ),
    "tcp_flags": Sample(
        wrong=(2, "text like 'syn,!ack', not int"),
        meaning=[
            ({"protocol": "tcp", "tcp_flags": "syn,!ack"}, ["tcp flags & (syn | ack) == syn"]),
            ({"protocol": "tcp", "not_tcp_flags": "syn,!ack"}, ["tcp flags & (syn | ack) != syn"]),
            ({"protocol": "tcp", "tcp_flags": "psh"}, ["tcp flags & psh != 0"]),
        ],
        values=["syn,!ack"],
        protocol="tcp",
    ),
    "icmp_type": Sample(
        wrong=(b"echo-request", "a number or one of 'echo-request', .*, or a list of such, not bytes"),
        meaning=[
            ({"protocol": ["icmp", "icmpv6"], "icmp_type": "echo-request"}, ["icmp type 8", "icmpv6 type 128"]),
            ({"protocol": "icmp", "not_icmp_type": ["echo-request", 3]}, ["icmp type != { 8, 3 }"]),
            ({"protocol": "icmpv6", "icmp_type": [128, "echo-reply"]}, ["icmpv6 type { 128, 129 }"]),
        ],
        values=["echo-request", "redirect"],
        protocol=["icmp", "icmpv6"],
    ),
    "in_interface": Sample(
        wrong=([b"eth0"], "the name of an interface, or a list of such, not bytes"),
        meaning=[
            ({"in_interface": ["to-client", "lo"]}, ['iifname "to-client"', 'iifname "lo"']),
            ({"in_interface": ["to-c*", "lo"]}, ['iifname { "to-client", "lo" }']),
            ({"not_in_interface": ["to-c*", "lo"]}, ['iifname != { "to-client", "lo" }']),
        ],
        values=["eth*", "lo"],
        hook="input",
    ),
    "out_interface": Sample(
        wrong=(3, "the name of an interface, or a list of such, not int"),
        meaning=[
            ({"out_interface": "to-*"}, ['oifname { "to-client", "to-server" }']),
            ({"not_out_interface": "to-client"}, ['oifname != "to-client"']),
        ],
        values=["lo", "wan0"],
    ),
    "length": Sample(
        wrong=(1.5, "a number of bytes, a range of them, text like '1024-2047', or a list of such, not float"),
        meaning=[
            ({"length": "0-60"}, ["meta length <= 60"]),
            ({"not_length": ["0-59", 60]}, ["meta length > 60"]),
            ({"length": [52, 60]}, ["meta length 52", "meta length 60"]),
        ],
        values=["0-100", 1500],
    ),
    "dscp": Sample(
        wrong=(
            1.5,
            "a number, 0 to 63, or a name: .*, a range of them, text like '1024-2047', or a list of such, not float",
        ),
        meaning=[
            ({"dscp": ["cs0", 5]}, ["ip dscp 0", "ip6 dscp 0", "ip dscp 5", "ip6 dscp 5"]),
            ({"dscp": "6-63"}, ["ip dscp >= 6", "ip6 dscp >= 6"]),
            ({"dscp": ["0-4", "5-6"]}, ["ip dscp <= 6", "ip6 dscp <= 6"]),
            ({"not_dscp": [0, "5-6"]}, ["ip dscp != { 0, 5, 6 }", "ip6 dscp != { 0, 5, 6 }"]),
            ({"not_dscp": 7}, ["ip dscp != 7", "ip6 dscp != 7"]),
        ],
        values=["ef", 10, 0, 1],
    ),
    "mark": Sample(
        wrong=("0x7", "an integer, a pair of value and mask, or a list of such, not str"),
        meaning=[
            ({"mark": 0}, ["meta mark 0"]),
            ({"mark": [5, 7]}, ["meta mark 5", "meta mark 7"]),
            ({"mark": (1, 3)}, ["meta mark & 3 == 1"]),
            ({"not_mark": [(1, 3), (0, 3)]}, ["meta mark & 3 == 2", "meta mark & 3 == 3"]),
            ({"not_mark": 5}, ["meta mark != 5"]),
        ],
        values=[(1, 0xFF), (2, 0xFF)],
    ),
    "state": Sample(
        wrong=(8, "one of 'invalid', .*, or a list of such, not int"),
        meaning=[
            ({"state": ["new", "invalid"]}, ["ct state new", "ct state invalid"]),
            ({"not_state": ["new", "invalid"]}, ["ct state established", "ct state related", "ct state untracked"]),
        ],
        values=["new", "related"],
    ),
    "connection_mark": Sample(
        wrong=({"7": 1}, "an integer, a pair of value and mask, or a list of such, not str"),
        meaning=[
            ({"connection_mark": [0, 3]}, ["ct mark 0"]),
            ({"not_connection_mark": (0, 1)}, ["ct mark & 1 == 1"]),
        ],
        values=[7, 8],
    ),
    "uid": Sample(
        wrong=([0.5], "the number of a user, or the name, a range of them, .*, or a list of such, not float"),
        meaning=[
            ({"uid": [0, 77]}, ["meta skuid 0"]),  # the test runs as root, if necessary of a user namespace
            ({"not_uid": range(70, 80)}, ["meta skuid < 70", "meta skuid >= 80"]),
        ],
        values=[0],
    ),
    "gid": Sample(
        wrong=(b"root", "the number of a group, or the name, a range of them, .*, or a list of such, not bytes"),
        meaning=[
            ({"gid": "0-5"}, ["meta skgid <= 5"]),
            ({"not_gid": 0}, ["meta skgid != 0"]),
        ],
        values=[0],
    ),
    "source_type": Sample(
        wrong=(2, "one of 'unicast', .*, not int"),
        meaning=[
            ({"source_type": "local"}, ["fib saddr type local"]),
            ({"not_source_type": ["local", "multicast"]}, ["fib saddr type != { local, multicast }"]),
        ],
        values=["local", "multicast"],
    ),
    "destination_type": Sample(
        wrong=(2, "one of 'unicast', .*, not int"),
        meaning=[
            ({"destination_type": ["local", "unicast"]}, ["fib daddr type local", "fib daddr type unicast"]),
            ({"not_destination_type": "broadcast"}, ["fib daddr type != broadcast"]),
        ],
        values=["broadcast", "local"],
    ),
    "cgroup": Sample(
        wrong=(7, "a systemd unit .*, or a list of such, not int"),
    ),
    "limit": Sample(
        wrong=(1.5, "a number of packets a second, or text like '10/second burst 20', not float"),
        meaning=[
            ({"protocol": "udp", "limit": "1/day burst 3"}, ["meta l4proto udp limit rate 1/day burst 3 packets"]),
            (
                {"protocol": "udp", "not_limit": "1/day burst 3"},
                ["meta l4proto udp limit rate over 1/day burst 3 packets"],
            ),
        ],
    ),
}
