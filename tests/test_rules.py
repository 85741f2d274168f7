"""Arguments of rules, and descriptions of rules."""

from __future__ import annotations

import inspect
import ipaddress
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

import nfnet
from nfnet import ArgumentError, Hook, Log, Queue, rules, testing
from nfnet.cli.command_line import rule_words
from nfnet.rules._criteria import CRITERIA
from nfnet.rules._criterion import EVERYWHERE
from nfnet.rules._userdata import fitted

from .criteria import SAMPLES

WRONG = {
    "queue number": ({"num": 65536}, "queue number"),
    "negative": ({"num": -1}, "queue number"),
    "no queue": ({"num": range(3, 3)}, "without gaps"),
    "gaps": ({"num": range(1, 9, 2)}, "without gaps"),
    "too many queues": ({"num": range(65530, 65540)}, "queue number"),
    "balance": ({"num": 1, "balance": "luck"}, "balance"),
    "hook": ({"num": 1, "hook": "outside"}, "hook"),
    "family": ({"num": 1, "family": "arp"}, "family"),
    "ingress": ({"num": 1, "hook": "ingress", "in_interface": "lo"}, "only logged"),
    "protocol": ({"num": 1, "protocol": "carrier pigeon"}, "protocol"),
    "protocol number": ({"num": 1, "protocol": 256}, "protocol"),
    "ports of what": ({"num": 1, "source_port": 5}, "needs protocol"),
    "ports of icmp": ({"num": 1, "protocol": "icmp", "destination_port": 5}, "needs protocol"),
    "port": ({"num": 1, "protocol": "tcp", "destination_port": 65536}, "destination_port"),
    "port range": ({"num": 1, "protocol": "tcp", "destination_port": "9-5"}, "destination_port"),
    "port text": ({"num": 1, "protocol": "tcp", "destination_port": "http"}, "destination_port"),
    "port gaps": ({"num": 1, "protocol": "tcp", "destination_port": range(1, 9, 2)}, "without gaps"),
    "address": ({"num": 1, "source": "not an address"}, "source must be an address, a network"),
    "network": ({"num": 1, "source": "192.0.2.1/24"}, "host bits set"),
    "both families": (
        {"num": 1, "source": "192.0.2.1", "destination": "fd00::1"},
        "source is for IPv4 only, and destination is for IPv6 only: no packet matches",
    ),
    "other family": (
        {"num": 1, "family": "ip6", "source": "192.0.2.1"},
        "family 'ip6' is for IPv6 only, and source is for IPv4 only",
    ),
    "interface": ({"num": 1, "in_interface": "a name that is too long"}, "in_interface"),
    "any interface": ({"num": 1, "out_interface": "*"}, "out_interface"),
    "mark": ({"num": 1, "mark": 1 << 32}, "mark"),
    "not mark": ({"num": 1, "not_mark": -1}, "not_mark"),
    "state": ({"num": 1, "state": ["new", "old"]}, "state"),
    "no state": ({"num": 1, "state": []}, "at least one"),
    "user": ({"num": 1, "uid": "nobody of that name"}, "no user"),
    "priority": ({"num": 1, "priority": 1 << 31}, "priority"),
    "more queues than the kernel counts": ({"num": range(65536)}, "65535 queues at most"),
    "an address with a zone": ({"num": 1, "source": "fe80::1%lo"}, "without a zone"),
    "white space of the kernel's": ({"num": 1, "out_interface": "voil\u00e0"}, "out_interface"),
    "a colon": ({"num": 1, "out_interface": "eth0:1"}, "out_interface"),
    "no name": ({"num": 1, "out_interface": ".."}, "out_interface"),
    "an empty namespace": ({"num": 1, "netns": ""}, "netns is '' and must be a name in /run/netns"),
    "a namespace with a NUL": ({"num": 1, "netns": "a\0b"}, "netns is"),
    "a negative descriptor": ({"num": 1, "netns": -1}, "netns .a file descriptor. is -1"),
}

# Conditions that no packet can match.
NEVER: dict[str, tuple[dict[str, Any], str]] = {
    "out at input": ({"hook": "input", "out_interface": "lo"}, "at the hook 'input', where no outgoing interface"),
    "out at prerouting": ({"hook": "prerouting", "out_interface": "lo"}, "it is for the hooks forward, output, postr"),
    "in at output": ({"hook": "output", "in_interface": "lo"}, "where no incoming interface is known"),
    "in at postrouting of a bridge": (
        {"hook": "postrouting", "family": "bridge", "in_interface": "lo"},
        "at the hook 'postrouting' of a bridge, .* for the hooks prerouting, input, forward$",
    ),
    "uid at input": ({"hook": "input", "uid": 0}, "where no local sender is known: it is for the hooks output, postr"),
    "uid at forward": ({"hook": "forward", "uid": 0}, "uid has no meaning at the hook 'forward'"),
    "uid at prerouting": ({"hook": "prerouting", "uid": 0}, "uid has no meaning"),
    "uid in a bridge": ({"hook": "forward", "family": "bridge", "uid": 0}, "uid has no meaning"),
    "before tracking": ({"hook": "output", "state": "new", "priority": -200}, "-200 and must be above -200 for state"),
    "before tracking, too": ({"hook": "prerouting", "state": "new", "priority": -300}, "must be above -200"),
    "a mark that must not be": (
        {"mark": 7, "not_mark": 7},
        "mark is 0x7, which not_mark leaves out: no packet matches",
    ),
    "icmp of IPv6": (
        {"family": "ip6", "protocol": "icmp"},
        "family 'ip6' is for IPv6 only, and protocol is for IPv4 only",
    ),
    "icmpv6 of IPv4": (
        {"protocol": "icmpv6", "source": "192.0.2.1"},
        "protocol is for IPv6 only, and source is for IPv4 only",
    ),
    "a header of IPv6": ({"family": "ip6", "protocol": 44}, "protocol is for IPv4 only"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_before_anything_is_sent(case: str) -> None:
    options, text = WRONG[case]
    with pytest.raises(ArgumentError, match=text):
        rules.queue(**{"hook": "output", **options})


@pytest.mark.parametrize("case", NEVER)
def test_what_could_never_match_is_refused(case: str) -> None:
    """That the kernel matches nothing there, and where it does, is seen in tests/live/test_places.py."""
    options, text = NEVER[case]
    for make in (rules.queue, rules.log):
        with pytest.raises(ArgumentError, match=text):
            make(1, **{"hook": "output", **options})


def test_what_is_nearly_never_is_allowed() -> None:
    rules.queue(1, hook="postrouting", in_interface="lo", uid=0)
    rules.queue(1, hook="output", family="bridge", state="new", priority=-300, uid=0)
    rules.queue(1, hook="input", state="new", priority=-300)
    rules.queue(1, hook="prerouting", state="new", priority=-199)
    rules.queue(1, hook="output", mark=7, not_mark=8)
    rules.queue(1, hook="output", family="ip6", protocol=51)
    rules.queue(1, hook="output", family="ip6", protocol=1)
    rules.queue(1, hook="output", protocol=44)


WHERE = [name for kind in rules.Where.__mro__ for name in getattr(kind, "__annotations__", ())]

# Lists and negations that no packet can match, and the remedy.
SENSELESS: dict[str, tuple[dict[str, Any], str]] = {
    "an empty list": ({"source": []}, "source is empty, and must have at least one value; or leave it out"),
    "an empty negation": ({"not_protocol": ()}, "not_protocol is empty"),
    "all is left out": (
        {"not_source": "0.0.0.0/0", "family": "ip"},
        "family 'ip' is for IPv4 only, and not_source is for",
    ),
    "all of both": ({"not_source": ["0.0.0.0/0", "::/0"]}, "not_source leaves out everything: no packet matches"),
    "all states": ({"not_state": ["new", "established", "related", "invalid", "untracked"]}, "leaves no state"),
    "all ports": ({"protocol": "tcp", "not_source_port": "0-65535"}, "not_source_port leaves out everything"),
    "in and out": ({"source": "10.1.0.0/16", "not_source": "10.0.0.0/8"}, "source is 10.1.0.0/16, which not_source"),
    "the same protocol": (
        {"protocol": "tcp", "not_protocol": ["udp", 6]},
        "protocol is tcp, which not_protocol leaves",
    ),
    "the same state": ({"state": "new", "not_state": ["new", "invalid"]}, "state is new, which not_state leaves out"),
    "a range of both": ({"source": "10.0.0.1-fd00::1"}, "which ends before it begins"),
    "a range that ends before": ({"source": "10.0.0.9-10.0.0.1"}, "which ends before it begins"),
    "half a range": ({"source": "10.0.0.9-"}, "source must be an address, a network, or two addresses"),
    "ports of one of them": (
        {"protocol": ["tcp", "icmp"], "source_port": 5},
        "source_port needs protocol to be 'tcp', 'u",
    ),
    "ports of others": ({"not_protocol": "udp", "source_port": 5}, "source_port needs protocol"),
    "flags of others": ({"protocol": ["tcp", "udp"], "tcp_flags": "syn"}, "tcp_flags needs protocol to be 'tcp'$"),
    "no flag": ({"protocol": "tcp", "tcp_flags": "syn,fun"}, "a flag in tcp_flags is 'fun' and must be one of 'fin'"),
    "a flag twice": ({"protocol": "tcp", "tcp_flags": "syn,!syn"}, "contains syn twice"),
    "a type of others": (
        {"protocol": "udp", "icmp_type": 8},
        "icmp_type needs protocol to be 'icmp' or 'icmpv6', or sev",
    ),
    "a number of both": ({"protocol": ["icmp", "icmpv6"], "icmp_type": 8}, "another type in ICMPv6: give the name"),
    "a type of the other": (
        {"protocol": "icmp", "icmp_type": "packet-too-big"},
        "protocol is for IPv4 only, and icmp_type",
    ),
    "bits beyond the mask": ({"mark": (0x100, 0xFF)}, "mark 0x100 has bits that its mask 0xff leaves out"),
    "no mask": ({"mark": (0, 0)}, "the mask of mark is 0 and must be in 1"),
    "several masks": ({"not_mark": [(1, 1), (2, 2)]}, "not_mark has several masks, of which a rule can have one: make"),
    "a length": ({"length": -1}, "length is -1"),
    "all codepoints": ({"not_dscp": list(range(64))}, "not_dscp leaves out everything"),
    "no codepoint": ({"dscp": "af14"}, "dscp is 'af14' and must be a number, 0 to 63, or a name: "),
    "a byte": ({"dscp": 0xB8}, r"dscp is 184 and must be in 0\.\.63"),
    "a unit": ({"limit": "10/fortnight"}, "limit is in packets a fortnight, and must be in second, minute, hour, day"),
    "no limit": ({"limit": "ten"}, "limit is 'ten' and must be like '10/second' or '10/second burst 20'"),
    "none at all": ({"limit": 0}, "limit is 0 and must be in 1"),
    "two limits": (
        {"limit": 5, "source": ["10.0.0.1", "fd00::1"]},
        "limit would count IPv4 and IPv6, .* make a rule for",
    ),
    "broadcasts of IPv6": ({"family": "ip6", "destination_type": "broadcast"}, "destination_type is for IPv4 only"),
    "types in a bridge": (
        {"family": "bridge", "source_type": "local"},
        "source_type is for the families inet, ip, ip6",
    ),
    "a mark before tracking": ({"connection_mark": 1, "priority": -250}, "must be above -200 for connection_mark"),
    "gid at input": (
        {"hook": "input", "not_gid": 0},
        "not_gid has no meaning at the hook 'input', where no local sender",
    ),
    "a group that is not": ({"not_cgroup": "sshd.service"}, "put a rule for the group itself before this one"),
    "no hook": (
        {"hook": None},
        "hook must be given: where packets meet the rule, one of 'prerouting', 'input', 'forward'",
    ),
}


@pytest.mark.parametrize("case", SENSELESS)
def test_what_makes_no_sense_is_refused(case: str) -> None:
    options, text = SENSELESS[case]
    with pytest.raises(ArgumentError, match=text):
        rules.drop(**{"hook": "output", **options})


def test_arguments_of_actions() -> None:
    with pytest.raises(ArgumentError, match="mark 0x1ff has bits that its mask 0xff leaves out"):
        rules.mark(0x1FF, mask=0xFF, hook="input")
    with pytest.raises(ArgumentError, match="error is 'no' and must be one of 'port-unreachable', 'admin-prohibited'"):
        rules.reject(hook="input", error="no")  # type: ignore[arg-type]
    with pytest.raises(
        ArgumentError, match="rejecting packets is not possible at the hook 'postrouting': it is for prer"
    ):
        rules.reject(hook="postrouting")
    with pytest.raises(ArgumentError, match="'forward': it is for prerouting, input$"):
        rules.reject(hook="forward", family="bridge")
    with pytest.raises(ArgumentError, match="hook must be given.*, one of 'prerouting', 'input'$"):
        rules.reject(family="bridge")  # type: ignore[call-arg]


def test_each_criterion_has_its_arguments() -> None:
    """Type checkers see only explicit arguments, which must agree with the rows."""
    arguments = {name for name in WHERE if name not in ("hook", "family", "priority", "netns")}
    assert arguments == {*CRITERIA, *(f"not_{name}" for name in CRITERIA)} - {"not_cgroup"}
    for name, row in CRITERIA.items():
        assert f"\n{name}: {row.description}: {row.syntax}." in (inspect.getdoc(rules.queue) or ""), name


# Words of the command line; the rule made of them is described by the same words.
WORDS = [
    "hook=forward protocol=tcp,udp not_source=10.0.0.0/8,192.0.2.1-192.0.2.9 destination_port=80,443,8000-8099",
    "hook=input protocol=icmp,icmpv6 source=192.0.2.7 not_icmp_type=redirect,echo-request 'limit=10/minute burst 20'",
    "hook=input protocol=tcp 'tcp_flags=syn,!ack' 'in_interface=eth*,lo' not_length=0-60",
    "hook=output family=ip priority=-5 mark=0x1/0xff not_mark=0x1,0x2 state=related,new not_connection_mark=0x7",
    "hook=output uid=0,5-9 not_gid=100 source_type=local not_destination_type=multicast,broadcast",
    "hook=postrouting family=ip6 source=fd00::/8 'out_interface=a;b'",
]


@pytest.mark.parametrize("words", WORDS)
def test_a_rule_says_its_words(words: str) -> None:
    rule = rules.drop(**rule_words(words, rules.drop))
    assert " ".join(rule.words()) == f"drop {words}"


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if sample.values])
@pytest.mark.parametrize("negation", ["", "not_"])
def test_a_rule_of_its_words_is_the_same(name: str, negation: str) -> None:
    sample = SAMPLES[name]
    needed = {"protocol": sample.protocol} if sample.protocol else {}
    for values in (sample.values[0], list(sample.values)) if len(sample.values) > 1 else sample.values:
        rule = rules.drop(hook=sample.hook, **needed, **{negation + name: values})
        again = rules.drop(**rule_words(" ".join(rule.words()[1:]), rules.drop))
        assert again.words() == rule.words()
        assert [step.match for step in again.kernel_rules()] == [step.match for step in rule.kernel_rules()]


def test_words_that_do_not_fit_are_counted() -> None:
    """The kernel keeps 256 bytes with a rule."""
    many = rules.drop(hook="input", source=[f"192.0.2.{number}" for number in range(0, 200, 2)])
    text = fitted(many.words())
    assert len(text) < 256
    assert re.fullmatch(r"drop hook=input source=(192\.0\.2\.\d+,)+\((\d+) more\)", text)
    assert text.count("192.0.2.") + int(text.rpartition("(")[2].split()[0]) == 100


# A value of a wrong type, and the part of the error message that says what is expected; see also `SAMPLES`.
TYPES: dict[str, tuple[Any, str]] = {
    "num": ("1", "a number, or a range of them, not str"),
    "group": (None, "an integer, not NoneType"),
    "bypass": ("no", "True or False, not str"),
    "balance": (5, "one of 'addresses', 'cpu', 'flow', not int"),
    "remember": (1, "True or False, not int"),
    "first": ("3", "an integer, not str"),
    "bits": ("0x7", "an integer, not str"),
    "prefix": (b"web", "text, not bytes"),
    "snaplen": ("60", "an integer, not str"),
    "threshold": (1.5, "an integer, not float"),
    "hook": (["input", "output"], "one of 'prerouting', 'input', .*, not list"),
    "family": (2, "one of 'inet', .*, not int"),
    "priority": ("0", "an integer, not str"),
    "netns": (1.5, "a name in /run/netns, a path, an open file or a file descriptor, not float"),
    **{name: sample.wrong for name, sample in SAMPLES.items()},
}


def test_all_arguments_are_in_the_table_of_types() -> None:
    taken = {name for make in (rules.queue, rules.log) for name in inspect.signature(make).parameters} - {"where"}
    assert taken | {name.removeprefix("not_") for name in WHERE} == set(TYPES)


def test_each_criterion_has_its_row_in_the_table_of_tests() -> None:
    """It is used here, in tests/live/test_described_rules.py and in tests/live/test_places.py."""
    assert list(SAMPLES) == list(CRITERIA)
    for name, row in CRITERIA.items():
        sample = SAMPLES[name]
        assert bool(sample.protocol) == bool(row.protocols), name
        assert sample.hook in row.hooks.names, name
        assert sample.meaning or name == "cgroup", name
        assert row.hooks == EVERYWHERE or row.hooks.missing, name


@pytest.mark.parametrize("name", dict.fromkeys([*TYPES, *WHERE]))
def test_wrong_types_are_named_with_what_is_right(name: str) -> None:
    criterion = name.removeprefix("not_")
    value, text = TYPES[criterion]
    sample = SAMPLES.get(criterion)
    options: dict[str, Any] = {"hook": sample.hook if sample else "output"}
    if sample and sample.protocol:
        options["protocol"] = sample.protocol
    options[name] = value
    if name in ("group", "prefix", "snaplen", "threshold"):
        make: Any = rules.log
        options = {"group": 1, **options}
    else:
        make = rules.queue
        options = {"num": 1, "remember": True, **options}
    with pytest.raises(ArgumentError, match=f" must be {text}$") as caught:
        make(**options)
    assert isinstance(caught.value, TypeError)
    assert {"num": "queue number", "group": "log group"}.get(name, name) in str(caught.value)


FLAGS: dict[str, Callable[[Any], object]] = {
    **{
        name: lambda value, name=name: Queue(1, **{name: value})  # type: ignore[misc]
        for name in ("fail_open", "gso", "conntrack", "uid_gid", "secctx", "timestamps")
    },
    **{
        name: lambda value, name=name: Log(1, **{name: value})  # type: ignore[misc]
        for name in ("sequence", "global_sequence", "conntrack")
    },
    "bypass": lambda value: rules.queue(1, hook="output", bypass=value),
    "realtime": lambda value: nfnet.replay(os.devnull, realtime=value).close(),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_true_or_false(name: str) -> None:
    """For Python "no" is true."""
    for value in ("no", "yes", 0, 1, None, []):
        with pytest.raises(ArgumentError, match=f"{name} must be True or False, not "):
            FLAGS[name](value)
    FLAGS[name](True)
    FLAGS[name](False)


def test_the_flag_of_requeue_is_true_or_false() -> None:
    fed = testing.FedQueue()
    packet_id = fed.feed(testing.udp(b"x"))

    def handler(packet: nfnet.Packet) -> None:
        with pytest.raises(ArgumentError, match="bypass must be True or False, not str"):
            packet.requeue(2, bypass="no")  # type: ignore[arg-type]
        packet.drop()

    fed.run(handler)
    assert fed.verdicts[packet_id].verdict == nfnet.Verdict.DROP
    fed.close()


def test_log_rules_are_checked_too() -> None:
    for options, text in (
        ({"group": 65536}, "group"),
        ({"group": 1, "prefix": "x" * 128}, "prefix"),
        ({"group": 1, "snaplen": -1}, "snaplen"),
        ({"group": 1, "threshold": 0}, "threshold"),
        ({"group": 1, "hook": "ingress", "family": "ip", "in_interface": "lo"}, "netdev and inet"),
        ({"group": 1, "hook": "ingress", "family": "netdev"}, "needs in_interface"),
        ({"group": 1, "hook": "input", "family": "netdev"}, "hook"),
    ):
        with pytest.raises(ArgumentError, match=text):
            rules.log(**options)
    with pytest.raises(TypeError):
        rules.log(1, hook="output", colour="red")  # type: ignore[call-arg]


DESCRIBED: dict[str, tuple[rules.Rule, str, list[str]]] = {
    "simple": (
        rules.queue(1, hook="output", protocol="udp", destination_port=53),
        "udp dport 53 meta mark != 0x10000000 counter queue num 1 bypass",
        [
            "iptables -A OUTPUT -p udp --dport 53 -m mark ! --mark 0x10000000 -j NFQUEUE --queue-num 1 --queue-bypass",
            "ip6tables -A OUTPUT -p udp --dport 53 -m mark ! --mark 0x10000000 -j NFQUEUE --queue-num 1 --queue-bypass",
        ],
    ),
    "everything": (
        rules.queue(
            range(2, 6),
            balance="cpu",
            hook=Hook.FORWARD,
            source="192.0.2.0/24",
            destination=ipaddress.ip_address("198.51.100.7"),
            protocol="tcp",
            source_port="1024-65535",
            destination_port=range(80, 82),
            in_interface="lan*",
            out_interface="wan0",
            mark=7,
            state=["new", "related"],
        ),
        "ip saddr 192.0.2.0/24 ip daddr 198.51.100.7 tcp sport 1024-65535 tcp dport 80-81"
        ' iifname "lan*" oifname "wan0"'
        " meta mark 0x7 ct state related,new counter queue num 2-5 bypass,fanout",
        [
            "iptables -A FORWARD -p tcp -s 192.0.2.0/24 -d 198.51.100.7 --sport 1024:65535 --dport 80:81"
            " -i lan+ -o wan0 -m mark --mark 0x7 -m conntrack --ctstate RELATED,NEW"
            " -j NFQUEUE --queue-balance 2:5 --queue-cpu-fanout --queue-bypass",
        ],
    ),
    "owner": (
        rules.queue(1, bypass=False, hook="postrouting", priority=-150, uid=0, not_mark=1, protocol=47),
        "meta l4proto 47 meta mark != 0x1 meta skuid 0 meta mark != 0x10000000 counter queue num 1",
        [
            f"{program} -t mangle -A POSTROUTING -p 47 -m mark ! --mark 0x1 -m owner --uid-owner 0"
            " -m mark ! --mark 0x10000000 -j NFQUEUE --queue-num 1"
            for program in ("iptables", "ip6tables")
        ],
    ),
    "flow": (
        rules.queue(range(2, 4), hook="output", balance="flow"),
        "meta mark != 0x10000000 counter queue flags bypass to symhash mod 2 offset 2",
        ["# iptables has no words for balance='flow'"],
    ),
    "log": (
        rules.log(5, prefix="web: ", snaplen=60, threshold=20, hook="input", family="ip6", protocol="icmpv6"),
        'meta l4proto ipv6-icmp counter log prefix "web: " group 5 snaplen 60 queue-threshold 20',
        [
            "ip6tables -A INPUT -p icmpv6 -j NFLOG --nflog-group 5"
            " --nflog-prefix 'web: ' --nflog-size 60 --nflog-threshold 20"
        ],
    ),
    "ingress": (
        rules.log(5, hook="ingress", family="netdev", in_interface="lo"),
        'iifname "lo" counter log group 5',
        ["# iptables has no words for the family netdev"],
    ),
    "bridge": (
        rules.queue(1, hook="forward", family="bridge", protocol="icmp"),
        "meta protocol ip meta l4proto icmp counter queue num 1 bypass",
        ["# iptables has no words for the family bridge"],
    ),
    "icmp": (
        rules.queue(1, hook="input", protocol="icmp"),
        "meta nfproto ipv4 meta l4proto icmp meta mark != 0x10000000 counter queue num 1 bypass",
        ["iptables -A INPUT -p icmp -m mark ! --mark 0x10000000 -j NFQUEUE --queue-num 1 --queue-bypass"],
    ),
    "priority": (
        rules.log(5, hook="prerouting"),
        "counter log group 5",
        ["# iptables has no words for priority 0 at prerouting; mangle is at -150; raw is at -300"],
    ),
    "names": (
        rules.log(5, hook="forward", family="ip", in_interface="x;>y'z", out_interface="a+*"),
        """iifname "x;>y'z" oifname "a+*" counter log group 5""",
        ["""iptables -A FORWARD -i 'x;>y'"'"'z' -o a++ -j NFLOG --nflog-group 5"""],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DESCRIBED)
def test_description(case: str) -> None:
    rule, nft, iptables = DESCRIBED[case]
    lines = rules.describe(rule).splitlines()
    assert lines[0].startswith("nft add table ")
    assert lines[1].startswith("nft add chain ")
    assert shlex.split(lines[2])[-1] == nft
    assert lines[3:] == iptables
    assert rule.describe() == rules.describe(rule)


def test_a_set_is_described_as_a_whole_or_not_at_all() -> None:
    """An order without one of its rules is another one."""
    accept = rules.accept(hook="input", not_source=["10.0.0.0/8", "fd00::/8"], not_protocol=["tcp", "udp"])
    drop = rules.drop(hook="input", family="ip", priority=7)
    assert rules.describe(accept, drop).splitlines() == [
        "nft add table inet nfnet",
        "nft add table ip nfnet",
        "nft add chain inet nfnet input '{ type filter hook input priority 0; }'",
        "nft add chain ip nfnet input '{ type filter hook input priority 7; }'",
        "nft add rule inet nfnet input 'meta l4proto != { tcp, udp } ip saddr != 10.0.0.0/8 counter accept'",
        "nft add rule inet nfnet input 'meta l4proto != { tcp, udp } ip6 saddr != fd00::/8 counter accept'",
        "nft add rule ip nfnet input 'counter drop'",
        "# iptables has no words for several values that the protocol must not be",
        "# iptables has no words for priority 7 at input; mangle is at -150; filter is at 0",
    ]
    limited = rules.log(5, hook="input", limit=10)
    assert limited.describe().splitlines()[-1] == "# iptables has no words for one limit for several of its rules"


def test_representation() -> None:
    rule = rules.queue(range(1, 3), hook="output")
    assert repr(rule) == "<Rule queueing packets to queues 1 to 2: not installed>"
    rules.remove(rule)


def test_unknown_option() -> None:
    options: dict[str, Any] = {"colour": "red"}
    with pytest.raises(TypeError, match="colour"):
        rules.queue(1, **options)


def test_unknown_keywords_are_named() -> None:
    with pytest.raises(
        TypeError, match="a rule has no argument 'dport'; there are cgroup, connection_mark, destination"
    ):
        rules.queue(1, hook="output", dport=53)  # type: ignore[call-arg]


def test_a_range_that_ends_before_it_begins() -> None:
    with pytest.raises(ArgumentError, match="'53-20', which ends before it begins"):
        rules.queue(1, hook="output", protocol="udp", destination_port="53-20")


def test_prefixes_are_quoted_for_the_shell() -> None:
    text = rules.describe(rules.log(5, hook="output", prefix="`id` it's"))
    rules_alone = [line for line in text.splitlines() if "log" in line.lower()]
    assert len(rules_alone) == 3
    for line in rules_alone:
        done = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True)
        assert "`id` it's" in done.stdout, line


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\x85", "\udcff", "\u2028"])
def test_what_is_no_line_of_text_is_not_described(text: str) -> None:
    """A line of shell with such a thing in it is more than one, or obeyed by the terminal."""
    assert rules.log(5, hook="input", prefix=text).describe().splitlines() == [
        f"# {program} has no words for a prefix with characters that cannot be printed"
        for program in ("nft", "iptables")
    ]
    name = text.replace("\n", "\x7f")
    assert rules.log(5, hook="input", in_interface=name).describe().splitlines() == [
        f"# {program} has no words for the name of an interface with characters that cannot be printed"
        for program in ("nft", "iptables")
    ]
