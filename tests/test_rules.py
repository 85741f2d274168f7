"""What can be asked of a rule, and how it is described."""

from __future__ import annotations

import ipaddress
import os
import shlex
import shutil
import subprocess
from typing import Any

import pytest

from nfnet import ArgumentError, Hook, rules

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
    "address": ({"num": 1, "source": "not an address"}, "source must be an address or a network"),
    "network": ({"num": 1, "source": "192.0.2.1/24"}, "host bits set"),
    "both families": ({"num": 1, "source": "192.0.2.1", "destination": "fd00::1"}, "both be IPv4"),
    "other family": ({"num": 1, "family": "ip6", "source": "192.0.2.1"}, "do not go with family 'ip6'"),
    "interface": ({"num": 1, "in_interface": "a name that is too long"}, "in_interface"),
    "any interface": ({"num": 1, "out_interface": "*"}, "out_interface"),
    "mark": ({"num": 1, "mark": 1 << 32}, "mark"),
    "not mark": ({"num": 1, "not_mark": -1}, "not_mark"),
    "state": ({"num": 1, "state": ["new", "old"]}, "state"),
    "no state": ({"num": 1, "state": []}, "at least one"),
    "user": ({"num": 1, "uid": "nobody of that name"}, "no user"),
    "priority": ({"num": 1, "priority": 1 << 31}, "priority"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_before_anything_is_sent(case: str) -> None:
    options, text = WRONG[case]
    with pytest.raises(ArgumentError, match=text):
        rules.queue(**options)


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
        rules.log(1, colour="red")  # type: ignore[call-arg]


DESCRIBED: dict[str, tuple[rules.Rule, str, list[str]]] = {
    "simple": (
        rules.queue(1, protocol="udp", destination_port=53),
        "udp dport 53 queue num 1 bypass",
        [
            "iptables -A OUTPUT -p udp --dport 53 -j NFQUEUE --queue-num 1 --queue-bypass",
            "ip6tables -A OUTPUT -p udp --dport 53 -j NFQUEUE --queue-num 1 --queue-bypass",
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
        " meta mark 0x7 ct state related,new queue num 2-5 bypass,fanout",
        [
            "iptables -A FORWARD -p tcp -s 192.0.2.0/24 -d 198.51.100.7 --sport 1024:65535 --dport 80:81"
            " -i lan+ -o wan0 -m mark --mark 0x7 -m conntrack --ctstate RELATED,NEW"
            " -j NFQUEUE --queue-balance 2:5 --queue-cpu-fanout --queue-bypass",
        ],
    ),
    "owner": (
        rules.queue(1, bypass=False, hook="postrouting", uid=0, not_mark=1, protocol=47),
        "meta l4proto 47 meta mark != 0x1 meta skuid 0 queue num 1",
        [
            f"{program} -t mangle -A POSTROUTING -p 47 -m mark ! --mark 0x1 -m owner --uid-owner 0"
            " -j NFQUEUE --queue-num 1"
            for program in ("iptables", "ip6tables")
        ],
    ),
    "flow": (rules.queue(range(2, 4), balance="flow"), "queue flags bypass to symhash mod 2 offset 2", []),
    "log": (
        rules.log(5, prefix="web: ", snaplen=60, threshold=20, hook="input", family="ip6", protocol="icmpv6"),
        'meta l4proto ipv6-icmp log prefix "web: " group 5 snaplen 60 queue-threshold 20',
        [
            "ip6tables -A INPUT -p icmpv6 -j NFLOG --nflog-group 5"
            " --nflog-prefix 'web: ' --nflog-size 60 --nflog-threshold 20"
        ],
    ),
    "ingress": (
        rules.log(5, hook="ingress", family="netdev", in_interface="lo"),
        'iifname "lo" log group 5',
        [],
    ),
    "bridge": (rules.queue(1, hook="forward", family="bridge"), "queue num 1 bypass", []),
}  # fmt: skip


@pytest.mark.parametrize("case", DESCRIBED)
def test_description(case: str) -> None:
    rule, nft, iptables = DESCRIBED[case]
    lines = rules.describe(rule).splitlines()
    assert lines[0].startswith("nft add table ")
    assert lines[1].startswith("nft add chain ")
    assert lines[2].endswith(f" '{nft}'")
    assert lines[3:] == iptables
    assert rule.describe() == rules.describe(rule)


@pytest.mark.parametrize("case", DESCRIBED)
def test_programs_understand_the_description(case: str) -> None:
    """nft and iptables check their lines, where they are installed and the kernel can do it."""
    rule, *_ = DESCRIBED[case]
    if os.geteuid() or shutil.which("nft") is None:
        pytest.skip("nft is not installed, or this user may not ask it")
    for line in rules.describe(rule).splitlines():
        program, *words = shlex.split(line)
        if program != "nft":
            continue
        command = ["unshare", "-n", "nft", "--check", " ".join(words)]
        table = f"add table {words[2]} nfnet; "
        chain = rules.describe(rule).splitlines()[1].removeprefix("nft ").replace("'", "") + "; "
        command[-1] = {"table": "", "chain": table, "rule": table + chain}[words[1]] + command[-1]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        lacking = "No such file or directory" in done.stderr or "symhash" in line  # CONFIG_NFT_QUEUE; an older nft
        assert done.returncode == 0 or lacking, done.stderr
        assert "syntax error" not in done.stderr or "symhash" in line


def test_representation() -> None:
    rule = rules.queue(range(1, 3))
    assert repr(rule) == "<Rule queueing packets to queues 1 to 2: not installed>"
    rules.remove(rule)


def test_unknown_option() -> None:
    options: dict[str, Any] = {"colour": "red"}
    with pytest.raises(TypeError, match="colour"):
        rules.queue(1, **options)


def test_unknown_keywords_are_named() -> None:
    with pytest.raises(TypeError, match="a rule knows no 'dport'; there are destination, destination_port"):
        rules.queue(1, dport=53)  # type: ignore[call-arg]


def test_a_range_that_ends_before_it_begins() -> None:
    with pytest.raises(ArgumentError, match="'53-20', which ends before it begins"):
        rules.queue(1, protocol="udp", destination_port="53-20")


def test_prefixes_are_quoted_for_the_shell() -> None:
    text = rules.describe(rules.log(5, prefix="$(id) it's"))
    rules_alone = [line for line in text.splitlines() if "log" in line.lower()]
    assert len(rules_alone) == 3
    for line in rules_alone:
        done = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True)
        assert "$(id) it's" in done.stdout, line
    assert rules.describe(rules.log(5, prefix='"')).startswith("# nft has no way")
