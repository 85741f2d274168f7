"""Criteria by hook: nfnet refuses exactly those that never match there, according to counters of nft."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest

from nfnet import ArgumentError, inet, rules, testing
from nfnet.rules._criteria import CRITERIA

from ..criteria import SAMPLES
from .conftest import (
    ADDRESS,
    TIMEOUT,
    UID,
    Net,
    kernel_version,
    make_bridge,
    send_through_bridge,
    wait_for,
)
from .programs import run

V4, V6 = socket.AF_INET, socket.AF_INET6
IP_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")

# Each of these is true of all packets that have the thing at all.
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "in_interface": ("iif != 0", {"in_interface": "to-client"}),
    "out_interface": ("oif != 0", {"out_interface": "to-client"}),
    "uid": ("meta skuid >= 0", {"uid": UID}),
    "state": ("ct state new,established,related", {"state": ["new", "established", "related"]}),
}


class Counters:
    """Chains of nft on a host that count matching packets."""

    def __init__(self, net: Net, host: str, family: str, hooks: dict[tuple[str, int], str], asked: list[str]) -> None:
        self._net, self._host, self._family = net, host, family
        chains = "".join(
            f"chain {hook}{number} {{\ntype filter hook {hook} {device} priority {priority};\n"
            f'counter comment "any"\n'
            + "".join(f'{ASKED[name][0]} counter comment "{name}"\n' for name in asked)
            + "}\n"
            for number, ((hook, priority), device) in enumerate(hooks.items())
        )
        self._chains = [f"{hook}{number}" for number, (hook, _) in enumerate(hooks)]
        self._places = list(hooks)
        text = f"table {family} t {{\n{chains}}}\n"
        self.refusal = run(net, host, "nft", "-f", "-", text=text, check=False)

    def read(self) -> dict[tuple[str, int], dict[str, int]]:
        """By hook and priority, how many packets matched each rule."""
        found = {}
        for chain, place in zip(self._chains, self._places, strict=True):
            lines = run(self._net, self._host, "nft", "list", "chain", self._family, "t", chain).splitlines()
            rows = [line for line in lines if "comment" in line]
            found[place] = {row.split('"')[-2]: int(row.partition("packets ")[2].split()[0]) for row in rows}
        return found


def is_refused(**options: Any) -> bool:
    try:
        rules.log(1, **{"hook": "output", **options})
    except ArgumentError:
        return True
    return False


def converse(net: Net, here: str, there: str, address: str) -> None:
    """A connection from one host to another, over which both send."""
    family = V6 if ":" in address else V4
    listener = net.open_socket(there, family, socket.SOCK_STREAM)
    listener.bind((address, 7777))
    listener.listen()
    client = net.open_socket(here, family, socket.SOCK_STREAM)
    client.connect((address, 7777))
    server, _ = listener.accept()
    with server:
        for _ in range(3):
            client.send(b"question")
            assert server.recv(100)
            server.send(b"answer")
            assert client.recv(100)
    for sock in (client, listener):
        sock.close()


def check(found: dict[tuple[str, int], dict[str, int]], asked: list[str], **options: Any) -> None:
    for (hook, priority), counts in found.items():
        assert counts["any"], f"nothing came by {hook}"
        for name in asked:
            refused = is_refused(hook=hook, priority=priority, **{**options, **ASKED[name][1]})
            if (hook, name) == ("input", "uid") and counts[name]:
                # The kernel can know the receiver's socket by then (early demultiplexing), and match its user, who
                # is not the sender.
                assert refused
            else:
                assert refused == (counts[name] == 0), (hook, priority, name, counts)


@pytest.mark.feature("criteria in all hooks")
def test_what_is_refused_never_matches(net: Net) -> None:
    asked = list(ASKED)
    if kernel_version() < (5, 7):  # since then the IP layer has the incoming interface at postrouting
        asked.remove("in_interface")
    places = {(hook, priority): "" for hook in IP_HOOKS for priority in (0, -199, -201)}
    counters = Counters(net, "router", "inet", places, asked)
    assert counters.refusal == ""
    for here, there, family in (("client", "server", V4), ("client", "router", V4), ("router", "client", V6)):
        converse(net, here, there, ADDRESS[there, family])
    check(counters.read(), asked)


@pytest.mark.parametrize("family", ["inet", "netdev"])
def test_at_ingress(net: Net, family: str) -> None:
    asked = [name for name in ASKED if name != "state" or family == "inet"]  # in netdev the kernel refuses it itself
    counters = Counters(net, "router", family, {("ingress", 0): 'device "to-client"'}, asked)
    assert counters.refusal == ""
    converse(net, "client", "router", ADDRESS["router", V4])
    check(counters.read(), asked, family=family, in_interface="to-client")
    if family == "netdev":
        assert is_refused(hook="ingress", family=family, in_interface="to-client", state="new")


def test_in_a_bridge(net: Net) -> None:
    net.at("router", make_bridge)
    places = {(hook, priority): "" for hook in IP_HOOKS for priority in (-10, -201)}
    asked = list(ASKED)
    counters = Counters(net, "router", "bridge", places, asked)
    if "Protocol error" in counters.refusal:  # no connection tracking for bridges (CONFIG_NF_CONNTRACK_BRIDGE)
        asked.remove("state")
        counters = Counters(net, "router", "bridge", places, asked)
    assert counters.refusal == ""
    addresses = {"client": "10.83.0.1", "router": "10.83.0.2", "server": "10.83.0.3"}
    for host, address in addresses.items():
        net.at(host, lambda host=host, address=address: add_address(host, address))
    # It takes some time until the ports of a bridge forward.
    frame = b"\xff" * 6 + bytes.fromhex("02000000aa01 0800") + testing.udp(b"data")
    send_through_bridge(net, frame, lambda: counters.read()["forward", -10]["any"] > 0)
    for here, there in (("client", "server"), ("client", "router"), ("router", "client")):
        converse(net, here, there, addresses[there])
    check(counters.read(), asked, family="bridge")


def add_address(host: str, address: str) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        (index,) = ip.link_lookup(ifname="br0" if host == "router" else "to-router")
        ip.addr("add", index=index, address=address, prefixlen=24)


# Numbers of headers of IPv6 that lead to the next one, a packet that has one, and numbers that look like them.
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, NONE, DESTINATION, MOBILITY = 0, 43, 44, 51, 59, 60, 135
UDP_NEXT = bytes([socket.IPPROTO_UDP, 0, 1, 4, 0, 0, 0, 0])  # 8 bytes, of which the options fill the rest
HEADERS = {
    HOP_BY_HOP: UDP_NEXT,
    ROUTING: bytes([socket.IPPROTO_UDP, 0, 0, 0, 0, 0, 0, 0]),
    FRAGMENT: bytes([socket.IPPROTO_UDP, 0, 0, 0, 0, 0, 0, 1]),
    AUTHENTICATION: bytes([socket.IPPROTO_UDP, 4, *bytes(22)]),
    NONE: b"",
    DESTINATION: UDP_NEXT,
    MOBILITY: bytes([NONE, 0, *bytes(6)]),
}


def test_protocols_that_ipv6_has_headers_for(net: Net) -> None:
    """The kernel looks for the protocol behind them."""
    rows = "".join(f'meta l4proto {number} counter comment "{number}"\n' for number in HEADERS)
    text = f"table ip6 t {{\nchain c {{\ntype filter hook output priority 0;\ncounter\n{rows}}}\n}}\n"
    with net.at("client", lambda: socket.socket(V6, socket.SOCK_RAW, socket.IPPROTO_RAW)) as sock:
        run(net, "client", "nft", "-f", "-", text=text)
        for number, header in HEADERS.items():
            data = header + bytes(8)
            addresses = b"".join(socket.inet_pton(V6, ADDRESS[host, V6]) for host in ("client", "server"))
            packet = b"\x60\0\0\0" + len(data).to_bytes(2, "big") + bytes([number, 64]) + addresses + data
            sock.sendto(packet, (ADDRESS["server", V6], 0))
    listed = run(net, "client", "nft", "list", "ruleset")
    counts = {int(row.split('"')[-2]): int(row.split("packets ")[1].split()[0])
              for row in listed.splitlines() if "comment" in row}  # fmt: skip
    assert {number: counts[number] == 0 for number in HEADERS} == {
        number: is_refused(family="ip6", protocol=number) for number in HEADERS
    }
    for number in HEADERS:
        assert not is_refused(family="ip", protocol=number)
        assert not is_refused(protocol=number)


# --- what matches


MEANING = [meaning for sample in SAMPLES.values() for meaning in sample.meaning]


def exchange(net: Net) -> None:
    """Packets of all sorts, by way of the router, to it and from it."""
    for family in (V4, V6):
        for here, there in (("client", "server"), ("client", "router"), ("router", "client")):
            converse(net, here, there, ADDRESS[there, family])
            datagrams(net, here, there, family)
            ping(net, here, there, family)


def datagrams(net: Net, here: str, there: str, family: int) -> None:
    with net.receiver(there, family, 5001) as receiver, net.open_socket(here, family) as sender:
        for mark in (0, 5, 6, 7):
            sender.setsockopt(socket.SOL_SOCKET, 36, mark)  # SO_MARK
            if family == V4:
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, mark << 2)  # the codepoint is above two bits
            else:
                sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, mark << 2)
            sender.sendto(b"data", (ADDRESS[there, family], 5001))
            assert receiver.recv(100) == b"data"


def ping(net: Net, here: str, there: str, family: int) -> None:
    protocol = socket.IPPROTO_ICMP if family == V4 else socket.IPPROTO_ICMPV6
    message = (b"\x08\0" if family == V4 else b"\x80\0") + b"\0\0\0\1\0\1"
    message = message[:2] + inet.checksum(message).to_bytes(2, "big") + message[4:]  # for ICMPv6 the kernel does it
    with net.at(here, lambda: socket.socket(family, socket.SOCK_RAW, protocol)) as sock:
        sock.settimeout(TIMEOUT)
        sock.sendto(message, (ADDRESS[there, family], 0))
        while sock.recv(1000)[20 if family == V4 else 0] not in (0, 129):
            pass


# Conditions that nft refuses in tables of one IP version, in which no packet meets them.
OF_THE_OTHER = {
    "inet": (),
    "ip": ("ip6 ", "icmpv6 ", "meta nfproto ipv6"),
    "ip6": ("ip ", "icmp ", "meta nfproto ipv4"),
}


@pytest.mark.feature("criteria in all hooks")
@pytest.mark.parametrize("family", OF_THE_OTHER)
def test_what_matches_is_what_nft_says_that_it_means(net: Net, family: str) -> None:
    """At each hook, count each criterion and its negation by nfnet's rule, and by a rule in nft's words."""
    names = {name for options, _ in MEANING for name in options}
    without = {"cgroup", "not_cgroup", "not_limit"}  # see test_cgroup; a limit is not a property of the packet
    assert {*CRITERIA, *(f"not_{name}" for name in CRITERIA)} - names <= without
    here, made = net.hosts["router"], []
    counted: dict[str, dict[str, Any]] = {}
    text = ""
    for hook in IP_HOOKS:
        text += f"chain {hook} {{\ntype filter hook {hook} priority 1;\n"
        for number, (options, words) in enumerate(MEANING):
            where = {"hook": hook, "family": family, **options}
            if where["family"] == family and not is_refused(**where):
                made.append(rules.log(9, netns=here, **where))
                counted[f"{hook} {number}"] = where
                known = [one for one in words if not one.startswith(OF_THE_OTHER[family])]
                if family != "inet":  # nft refuses a condition on the IP version in tables of one version
                    known = [re.sub("^meta nfproto ipv[46]$", "", one) for one in known]
                text += "".join(f'{one} counter comment "{hook} {number}"\n' for one in known)
        text += "}\n"
    run(net, "router", "nft", "-f", "-", text=f"table {family} t {{\n{text}}}\n")

    def ours() -> list[int]:
        return [row.packets for row in rules.installed(here)]

    def theirs() -> list[int]:
        found = dict.fromkeys(counted, 0)
        for row in run(net, "router", "nft", "list", "table", family, "t").splitlines():
            if "comment" in row:
                found[row.split('"')[-2]] += int(row.partition("counter packets ")[2].split()[0])
        return list(found.values())

    def at_rest() -> tuple[list[int], list[int]]:
        """Both, while no packet is on its way."""
        seen: list[tuple[list[int], list[int]]] = []

        def look() -> bool:
            seen.append((ours(), theirs()))
            return len(seen) > 1 and seen[-1] == seen[-2]

        assert wait_for(look)
        return seen[-1]

    with rules.RuleSet(*made):
        before = at_rest()
        exchange(net)
        after = at_rest()
    differences = [
        [last - first for first, last in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)
    ]
    found = {key: pair for key, *pair in zip(counted, *differences, strict=True)}
    assert {str(counted[key]): pair for key, pair in found.items() if pair[0] != pair[1]} == {}
    met = {key.split()[1] for key, pair in found.items() if pair[0]}
    if family == "inet":
        silent = [options for number, (options, _) in enumerate(MEANING) if str(number) not in met]
        assert silent == [{"not_connection_mark": (0, 1)}, {"not_gid": 0}], "no packet is for those"
