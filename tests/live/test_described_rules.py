"""The commands of `rules.describe`, executed by nft and iptables: they install the same rules as nfnet."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import pytest

from nfnet import ArgumentError, NotSupportedError, netns, rules
from nfnet.netns import call_in
from nfnet.rules._criteria import CRITERIA

from ..criteria import SAMPLES, Sample
from .conftest import TIMEOUT, UID, cannot_run, kernel_lacks

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
PROGRAMS = ("nft", "iptables-nft", "ip6tables-nft", "iptables-translate", "iptables-legacy")
TABLES = {-300: ("prerouting", "output"), -150: HOOKS, 0: ("input", "forward", "output")}  # of iptables, by priority
NO_NFT_QUEUE = "No such file or directory"


class Done(NamedTuple):
    status: int
    output: str
    errors: str


class Place:
    """A network namespace, with the programs that make rules in it, which run in an empty directory."""

    has_legacy = False
    """Whether the kernel has the tables of iptables-legacy, too, or loads them for this user."""
    order: Literal["little", "big"] = sys.byteorder
    """In which nft prints the bytes of packets: that of the host before 1.1.7, then that of the packets."""

    def __init__(self, file: BinaryIO, directory: Path) -> None:
        self.file, self.directory = file, directory
        # iptables-legacy has a lock in /run, where an ordinary user cannot create files.
        self._environment = {**os.environ, "XTABLES_LOCKFILE": str(directory.with_name("xtables.lock"))}

    def run(self, *command: str, text: str | None = None) -> Done:
        def run() -> Done:
            done = subprocess.run(
                command,
                input=text,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                cwd=self.directory,
                env=self._environment,
            )
            return Done(done.returncode, done.stdout, done.stderr)

        return call_in(self.file, run)

    def shell(self, line: str) -> Done:
        return self.run("sh", "-c", line)

    def must(self, *command: str, text: str | None = None) -> str:
        done = self.run(*command, text=text)
        assert done.status == 0, (command, text, done)
        return done.output

    def clear(self) -> None:
        self.must("nft", "flush ruleset")

    @contextlib.contextmanager
    def interfaces(self, names: set[str]) -> Iterator[None]:
        """Make those that a rule names."""
        from pyroute2 import IPRoute

        def make() -> None:
            with IPRoute() as ip:
                for number, name in enumerate(names):
                    ip.link("add", ifname=name, kind="veth", peer={"ifname": f"other end {number}".replace(" ", "")})

        def remove() -> None:
            with IPRoute() as ip:
                for link in ip.get_links():
                    if link.get_attr("IFLA_IFNAME") in names:
                        ip.link("del", index=link["index"])

        call_in(self.file, make)
        try:
            yield
        finally:
            call_in(self.file, remove)


@pytest.fixture(scope="module")
def place(privileges: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if privileges:
        cannot_run(privileges)
    for program in PROGRAMS:
        if shutil.which(program) is None:
            cannot_run(f"{program} is not installed")
    with netns.create() as file:
        place = Place(file, tmp_path_factory.mktemp("empty"))
        place.has_legacy = place.run("iptables-legacy", "-S").status == 0
        probe = "table ip probe { chain probe { tcp dport 80; }; }"
        printed = place.must("nft", "--check", "--debug=netlink", "--file", "-", text=probe)
        place.order = "big" if "0x0050 ]" in printed else sys.byteorder
        yield place


# --- what is read back


def bytecode(text: str, order: Literal["little", "big"]) -> list[str]:
    """Return the tests of packets, unordered, from nft's list of expressions (--debug=netlink)."""
    found: list[list[str]] = []
    for line in re.findall(r"^  \[ (.*) \]$", text, re.MULTILINE):
        if " load " in line:
            found.append([line])
        elif line.startswith(("cmp", "bitwise", "range")):
            found[-1].append(line)
    return sorted(fact for group in found for fact in facts(" | ".join(group), order))


def facts(group: str, order: Literal["little", "big"]) -> Iterator[str]:
    """Each byte of a header is a fact: nft compares adjacent bytes together, and ignores masked bits."""
    group = group.replace("payload load 1b @ network header + 9", "meta load l4proto")  # the same, in IPv4
    match = re.fullmatch(
        r"payload load (\d+)b @ (\w+) header \+ (\d+) => reg 1"
        r"(?: \| bitwise reg 1 = \( reg 1 & ([^)]*) \) \^ [^|]*)? \| cmp eq reg 1 (.*)",
        group,
    )
    if match is None:
        # nft 1.1.7 tests a range in one expression.
        group = re.sub(r"cmp gte reg 1 (\S+) \| cmp lte reg 1 (\S+)", r"range eq reg 1 \1 \2", group)
        # It prints a number in the host's byte order (a mark, a state) swapped if it was read from the kernel.
        yield re.sub(r"(?<=0x)[0-9a-f]{8}\b", lambda word: min(word[0], bytes.fromhex(word[0])[::-1].hex()), group)
        return
    size, header, offset = int(match[1]), match[2], int(match[3])
    mask = bytes_of(match[4], order) if match[4] else b"\xff" * size
    for place, (bits, byte) in enumerate(zip(mask[:size], bytes_of(match[5], order)[:size], strict=True)):
        if bits:
            yield f"byte {offset + place} of the {header} header & {bits:#x} == {byte:#x}"


def bytes_of(words: str, order: Literal["little", "big"]) -> bytes:
    return b"".join(int(word, 16).to_bytes(len(word) // 2 - 1, order) for word in words.split())


def without_version(groups: list[str]) -> list[str]:
    return [group for group in groups if "nfproto" not in group and "meta load protocol" not in group]


class Listed(NamedTuple):
    """The one rule of a table."""

    hook: str
    compared: list[str]
    text: str

    @property
    def end(self) -> Any:
        return end_of(self.text)


def listed(place: Place, table: str) -> Listed:
    text = place.must("nft", "-nn", "--debug=netlink", f"list table {table}")
    text = re.sub(r"counter packets \d+ bytes \d+", "counter", text)
    chain = re.search(r"\t\t(type filter .*); policy accept;\n\t\t(.*)\n\t}\n}\s*$", text, re.DOTALL)
    assert chain is not None, text
    return Listed(chain[1], bytecode(text, place.order), chain[2])


def end_of(text: str) -> Any:
    """Return nft's text of a rule, normalized so that it can be compared with that of iptables."""
    log = re.search(
        r'log (?:prefix "(.*)" )?group (\d+)(?: snaplen (\d+))?(?: queue-threshold (\d+))?$', text, re.DOTALL
    )
    if log:
        return ("log", log[1] or "", int(log[2]), number(log[3]), number(log[4]))
    queue = re.search(r"queue (?:num|flags \S+ to|to)? ?(symhash mod \d+(?: offset \d+)?|\d+(?:-\d+)?)", text)
    assert queue is not None, text
    return ("queue", queue[1], "bypass" in text[queue.start() :], "fanout" in text[queue.start() :])


def number(text: str | None) -> int | None:
    return None if text is None else int(text)


def saved_words(line: str) -> list[str]:
    """Split a line of iptables-save: only text in double quotes can contain spaces."""
    found = re.findall(r'"((?:\\.|[^"\\])*)"(?= |$)|(\S+)', line)
    return [plain or re.sub(r"\\(.)", r"\1", quoted) for quoted, plain in found]


def saved_end(line: str) -> Any:
    words = saved_words(line)
    words = words[words.index("-j") + 1 :]
    options = dict(zip(words, [*words[1:], ""], strict=True))
    if words[0] == "NFLOG":
        group, prefix = int(options.get("--nflog-group", "0")), options.get("--nflog-prefix", "")
        return ("log", prefix, group, number(options.get("--nflog-size")), number(options.get("--nflog-threshold")))
    numbers = options.get("--queue-balance") or options["--queue-num"]
    return ("queue", numbers.replace(":", "-"), "--queue-bypass" in words, "--queue-cpu-fanout" in words)


def restore_word(word: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", word) + '"'


# --- rules of all sorts


# Texts with and without a special meaning to a shell or to one of the programs.
ODD = "\"'$;>*+!-\\#{}@&|`~?()[]<=,^ab1.ü "
NEVER_IN_NAMES = set(b"\0\t\n\v\f\r \xa0/:%")


class Some:
    """Arguments of a rule, made by chance."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def one(self, *values: Any) -> Any:
        return self._random.choice(values)

    def number(self, least: int, most: int) -> int:
        return self._random.randint(least, self.one(min(most, least + 3), most))

    def text(self) -> str:
        length = self._random.randint(1, self.one(5, 5, 70))
        letters = ODD if self._random.random() < 0.8 else [chr(self._random.randint(1, 0x2100)) for _ in range(length)]
        return "".join(self._random.choices(letters, k=length)).encode()[:127].decode(errors="ignore")

    def name(self) -> str:
        while True:
            name = self.text().replace(" ", "").encode()[:15].decode(errors="ignore")
            if name.strip("*.") and not set(name.encode()) & NEVER_IN_NAMES:
                return name

    def interface(self) -> str:
        if self.one(True, False):
            return f"{self.name().encode()[:14].decode(errors='ignore')}*"
        return self.name()

    def network(self, version: int) -> str:
        bits = 32 if version == 4 else 128
        kind = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
        return str(kind((self._random.getrandbits(bits), self._random.randint(0, bits)), strict=False))

    def ports(self) -> int | range:
        first, last = sorted([self._random.randint(0, 0xFFFF), self._random.randint(0, 0xFFFF)])
        return self.one(first, range(first, last + 1))

    def rule(self) -> tuple[Callable[..., rules.Rule], dict[str, Any]]:
        """A function that makes a rule, and its arguments."""
        family = self.one("inet", "inet", "ip", "ip6", "bridge", "netdev")
        make = rules.log if family == "netdev" else self.one(rules.queue, rules.log)
        of_iptables = self.one(*((hook, priority) for priority, hooks in TABLES.items() for hook in hooks))
        hook, priority = self.one(of_iptables, of_iptables, (self.one(*HOOKS), self.one(0, -300, -7, 50)))
        if family == "netdev":
            hook = "ingress"
        options = {"family": family, "hook": hook, "priority": priority}
        options |= self._queueing() if make is rules.queue else self._logging()
        options |= {name: value() for name, value in self._criteria(options) if self.one(True, False)}
        if options.get("protocol") in ("tcp", "udp", "sctp"):
            options |= {name: self.ports() for name in ("source_port", "destination_port") if self.one(True, False)}
        if hook == "ingress":
            options["in_interface"] = self.name().replace("*", "") or "x"
        return make, options

    def _queueing(self) -> dict[str, Any]:
        first = self.number(0, 0xFFF0)
        number = self.one(first, range(first, first + self.one(1, 2, 4)))
        balance = self.one("addresses", "cpu", "flow")
        return {"num": number, "bypass": self.one(True, False), "balance": balance}

    def _logging(self) -> dict[str, Any]:
        snaplen, threshold = self.one(None, self.number(0, 0xFFFFFFFF)), self.one(None, self.number(1, 0xFFFF))
        prefix = self.one("", self.text(), self.text())
        return {"group": self.number(0, 0xFFFF), "prefix": prefix, "snaplen": snaplen, "threshold": threshold}

    def _criteria(self, options: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Those that packets have there."""
        family, hook = options["family"], options["hook"]
        version = {"ip": 4, "ip6": 6}.get(family) or self.one(4, 6)
        of_version = ("icmp", 0, 43, 44, 60) if version == 4 else ("icmpv6",)
        yield "protocol", lambda: self.one("tcp", "udp", "sctp", self.one(*of_version), self.one(47, 51, 61, 255))
        yield "source", lambda: self.network(version)
        yield "destination", lambda: self.network(version)
        if hook in ("prerouting", "input", "forward") or (hook == "postrouting" and family != "bridge"):
            yield "in_interface", self.interface
        if hook in ("forward", "output", "postrouting"):
            yield "out_interface", self.interface
        yield self.one("mark", "not_mark"), lambda: self.number(0, 0xFFFFFFFF)
        tracked = options["priority"] > -200 or hook not in ("prerouting", "output")
        if hook != "ingress" and family != "bridge" and tracked:  # in a bridge not every kernel has that
            states = ["new", "established", "related", "invalid", "untracked"]
            yield "state", lambda: self._random.sample(states, self._random.randint(1, 5))
        if hook in ("output", "postrouting"):
            # In a user namespace of this test's own there is user 0 alone, and iptables refuses others.
            yield "uid", lambda: 0 if UID else self.number(0, 0xFFFFFFFE)


def names_in(options: dict[str, Any]) -> list[str]:
    return [options[name] for name in ("in_interface", "out_interface") if name in options]


def nft_can(options: dict[str, Any]) -> bool:
    texts = [*names_in(options), options.get("prefix", "")]
    return all(text.isprintable() and '"' not in text for text in texts) and not (
        "$" in options.get("prefix", "") or any(name.endswith("\\*") for name in names_in(options))
    )


def iptables_can(options: dict[str, Any]) -> bool:
    hook, prefix = options["hook"], options.get("prefix", "")
    return (
        options["family"] in ("inet", "ip", "ip6")
        and hook in TABLES.get(options["priority"], ())
        and all(text.isprintable() for text in (*names_in(options), prefix))
        and len(prefix.encode()) < 64
        and not any(name.endswith("+") for name in names_in(options))
        and options.get("protocol") != 0
        and not (hook == "postrouting" and "in_interface" in options)
        and not (options.get("balance") == "flow" and isinstance(options["num"], range) and len(options["num"]) > 1)
    )


# The criteria that `Anything` has values for, some of them odd; others get those of `SAMPLES`.
ODD_VALUES = {
    *("protocol", "source", "destination", "source_port", "destination_port", "tcp_flags", "icmp_type"),
    *("in_interface", "out_interface", "length", "mark", "state", "connection_mark", "uid", "gid"),
    *("source_type", "destination_type", "cgroup", "limit"),
}


class Anything(Some):
    """Rules of all kinds, with lists and negations, as far as nft has words for them."""

    def rule(self) -> tuple[Callable[..., rules.Rule], dict[str, Any]]:
        family = self.one("inet", "inet", "inet", "ip", "ip6", "bridge", "netdev")
        hook = "ingress" if family == "netdev" else self.one(*HOOKS)
        options: dict[str, Any] = {"family": family, "hook": hook, "priority": self.one(0, -150, 7)}
        makers = [rules.log, rules.drop, rules.accept, rules.mark]
        if family in ("inet", "ip", "ip6") and hook != "postrouting":
            makers.append(rules.reject)
        make: Callable[..., rules.Rule] = self.one(*makers)
        if make is rules.log:
            options["group"] = self.number(0, 0xFFFF)
        elif make is rules.mark:
            mask = self.one(0xFFFFFFFF, 0xFF)
            options |= {"value": self.number(0, mask), "mask": mask}
        elif make is rules.reject:
            options["error"] = self.one("port-unreachable", "admin-prohibited", "host-unreachable", "no-route")
        values = dict(self._values(options))
        for name, sample in SAMPLES.items():
            if name not in ODD_VALUES and hook in CRITERIA[name].hooks.names and family in CRITERIA[name].families:
                values[name] = functools.partial(self._some_of, sample)
        for name, value in values.items():
            if self.one(True, False, False):
                options[self.one(name, name, f"not_{name}")] = value()
        if hook == "ingress":
            options["in_interface"] = "lo"
            options.pop("not_in_interface", None)
        return make, options

    def _some_of(self, sample: Sample) -> Any:
        return self.several(lambda: self.one(*sample.values))

    def several(self, make: Callable[[], Any]) -> Any:
        return self.one(make(), [make() for _ in range(self.number(1, 5))])

    def addresses(self, version: int) -> str:
        if self.one(True, False):
            return self.network(version)
        kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
        numbers = sorted(self._random.getrandbits(32 if version == 4 else 128) for _ in range(2))
        return "-".join(str(kind(number)) for number in numbers)

    def plain_name(self) -> str:
        return self.one("lo", "eth0", "eth*", "wan", "w*", "veth12345678901")

    def _values(self, options: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
        family, hook = options["family"], options["hook"]
        versions = {"ip": [4], "ip6": [6]}.get(family, [4, 6])
        sort = self.one("ports", "tcp", "icmp", "others", "none")
        icmp = {4: ["icmp"], 6: ["icmpv6"]}.get(versions[0] if len(versions) == 1 else 0) or ["icmp", "icmpv6"]
        if sort == "others":
            yield "protocol", lambda: self.several(lambda: self.one(*icmp, 47, "udp", 51, 255))
        elif sort != "none":
            known = {"ports": ["tcp", "udp", "sctp"], "tcp": ["tcp"], "icmp": icmp}[sort]
            options["protocol"] = self._random.sample(known, self.number(1, len(known)))
            if sort == "icmp":
                yield "icmp_type", lambda: self.several(lambda: self.one("echo-request", "echo-reply", "redirect"))
            else:
                # Of both, of several protocols, nft makes one number, and shows that.
                for name in ("source_port", "destination_port")[len(options["protocol"]) > 1 :]:
                    yield name, lambda: self.several(self.ports)
            if sort == "tcp":
                yield "tcp_flags", lambda: self.one("syn", "syn,!ack", "!syn,!rst,!fin", "ack,psh,!ece", "urg,cwr")
        if sort != "icmp":
            for name in ("source", "destination"):
                yield name, lambda: self.several(lambda: self.addresses(self.one(*versions)))
        if hook in ("prerouting", "input", "forward") or (hook == "postrouting" and family != "bridge"):
            yield "in_interface", lambda: self.several(self.plain_name)
        if hook in ("forward", "output", "postrouting"):
            yield "out_interface", lambda: self.several(self.plain_name)
        yield "length", lambda: self.several(self.ports)
        yield "mark", lambda: self.one(self.several(lambda: self.number(0, 0xFFFFFFFF)), (3, 0xFF), [(3, 7), (4, 7)])
        tracked = options["priority"] > -200
        if hook != "ingress" and family != "bridge" and tracked:
            states = ["new", "established", "related", "invalid", "untracked"]
            yield "state", lambda: self._random.sample(states, self._random.randint(1, 4))
            yield "connection_mark", lambda: self.one(self.several(lambda: self.number(0, 0xFFFF)), (0x100, 0xF00))
        if hook in ("output", "postrouting"):
            for name in ("uid", "gid"):
                yield name, lambda: self.one(0, [0, 0]) if UID else self.several(self.ports)
        if family in ("inet", "ip", "ip6"):
            for name in ("source_type", "destination_type"):
                yield name, lambda: self.several(lambda: self.one("local", "unicast", "broadcast", "multicast"))
        yield "limit", lambda: self.one(10, "7/minute", "100/hour burst 20", "3/day burst 1")


# --- the tests


def test_nft_lists_what_it_would_make_of_our_words(place: Place) -> None:
    """Lists, negations, and all that can be done to packets."""
    done = 0
    while done < 150:
        seed = random.randrange(1 << 30)
        make, options = Anything(seed).rule()
        try:
            rule = make(**options, netns=place.file)
        except ArgumentError:  # random contradictions
            continue
        check_listing(place, rule, (seed, make.__name__, options))
        done += 1


def check_listing(place: Place, rule: rules.Rule, what: Any) -> None:
    place.clear()
    lines = rule.describe().splitlines()
    with place.interfaces({name for name in rule.match.interfaces() if name != "lo"}):
        with rule:
            (left,) = rules.installed(place.file)
            installed = texts(place, f"{left.family} {left.table}")
        for line in lines:
            if line.startswith("nft "):
                done = place.shell(line)
                assert done.status == 0, (what, line, done)
    assert texts(place, f"{left.family} nfnet") == installed, (what, lines)
    place.clear()
    for line in lines:
        if line.startswith(("iptables ", "ip6tables ")):
            done = place.shell(line.replace("tables", "tables-nft", 1))
            assert done.status == 0, (what, line, done)
    place.clear()


def texts(place: Place, table: str) -> list[str]:
    """Return nft's list of a table without its name, with the elements of sets sorted."""
    text = place.must("nft", "-nn", f"list table {table}")
    text = re.sub(r"counter packets \d+ bytes \d+", "counter", text)
    text = re.sub(
        r"\{ ([^{}]*) \}", lambda match: ", ".join(sorted(match[1].split(", "))), text.replace("\n\t\t\t     ", "")
    )
    return [line for line in text.splitlines()[1:] if "flags owner" not in line and line.strip()]


def test_iptables_has_words_where_it_says_so(place: Place) -> None:
    """Of each criterion alone, once and several times, and of its negation."""
    for name, sample in SAMPLES.items():
        values = sample.values
        several = [{name: values}, {f"not_{name}": values}] if len(values) > 1 else []
        alone = [{name: values[0]}, {f"not_{name}": values[0]}] if values else []
        for options in (*alone, *several):
            given = {"protocol": sample.protocol} if sample.protocol else {}
            lines = rules.drop(hook=sample.hook, **given, **options).describe().splitlines()
            for line in lines:
                if line.startswith(("iptables ", "ip6tables ")):
                    done = place.shell(line.replace("tables", "tables-nft", 1))
                    assert done.status == 0, (line, done)
            if len(options) == 1 and values[0] in options.values():
                assert not any(line.startswith("#") for line in lines), lines
    place.clear()


def test_programs_read_in_the_description_what_is_installed(place: Place) -> None:
    for _ in range(80):
        check_description(place, random.randrange(1 << 30))


def check_description(place: Place, seed: int) -> None:
    make, options = Some(seed).rule()
    rule = make(**options, netns=place.file)
    place.clear()
    lines = rule.describe().splitlines()
    of_nft = [line for line in lines if line.startswith("nft ")]
    of_iptables = [line for line in lines if line.startswith(("iptables ", "ip6tables "))]
    assert len(of_nft) == (3 if nft_can(options) else 0), lines
    assert bool(of_iptables) == iptables_can(options), lines
    excuses = ["# nft has no words for "] * (not of_nft) + ["# iptables has no words for "] * (not of_iptables)
    rest = [line for line in lines if line not in (*of_nft, *of_iptables)]
    assert [line[: len(excuse)] for line, excuse in zip(rest, excuses, strict=True)] == excuses, lines
    with place.interfaces({name for name in names_in(options) if not name.endswith("*")}):
        installed = None
        try:
            with rule:
                (left,) = rules.installed(place.file)
                installed = listed(place, f"{left.family} {left.table}")
        except NotSupportedError:  # there is no way to install it but nft's own queue expression
            assert make is rules.queue
        if of_nft:
            check_nft(place, of_nft, installed)
        for line in of_iptables:
            check_iptables(place, line, installed, nft_can({**options, "prefix": ""}))
    assert os.listdir(place.directory) == [], "the shell obeyed something in there"


def check_nft(place: Place, lines: list[str], installed: Listed | None) -> None:
    for line in lines[:2]:
        done = place.shell(line)
        assert done.status == 0, (line, done)
    checked = place.shell(lines[2].replace("nft", "nft --check --debug=netlink", 1))
    done = place.shell(lines[2])
    family = lines[0].split()[3]
    if done.status:
        assert NO_NFT_QUEUE in done.errors, (lines[2], done)
        assert "[ queue " in checked.output, done
    else:
        assert installed is not None
        again = listed(place, f"{family} nfnet")
        assert (again.hook, again.text) == (installed.hook, installed.text), lines[2]
    if installed is not None:
        assert bytecode(checked.output, place.order) == installed.compared, lines[2]
        assert end_of(shlex.split(lines[2])[-1]) == installed.end, lines[2]
    place.clear()


def check_iptables(place: Place, line: str, installed: Listed | None, can_translate: bool) -> None:
    done = place.shell(line.replace("tables", "tables-nft", 1))
    assert done.status == 0, (line, done)
    program, *words = shlex.split(line)
    table = words[1] if words[0] == "-t" else "filter"
    (saved,) = re.findall("^-A .*$", place.must(f"{program}-nft-save"), re.MULTILINE)
    assert installed is not None
    assert saved_end(saved) == installed.end, line
    # Its chain is at the same hook, with the same priority.
    family = "ip" if program == "iptables" else "ip6"
    chain = place.must("nft", "-nn", f"list chain {family} {table} {words[words.index('-A') + 1]}")
    assert f"{installed.hook.removeprefix('type filter ')}; policy accept;" in chain, line
    place.clear()
    # It matches the same packets: nft reads its own words for the rule of iptables.
    start = words[: words.index("-j")]
    translated = place.must(f"{program}-translate", *start, "-j", "ACCEPT")
    if can_translate and "0-65535" not in installed.text:  # it omits a condition for all ports
        rule = translated.strip().removeprefix("nft '").removesuffix("'")
        place.must("nft", f"add table {family} {table}; add chain {family} {table} {start[start.index('-A') + 1]}")
        again = place.must("nft", "--check", "--debug=netlink", rule)
        assert without_version(bytecode(again, place.order)) == without_version(installed.compared), (line, rule)
    place.clear()
    # As lines of a file, for both sorts of iptables.
    rest = words[2:] if words[0] == "-t" else words
    file = f"*{table}\n{' '.join(map(restore_word, rest))}\nCOMMIT\n"
    for sort in ("nft", "legacy") if place.has_legacy else ("nft",):
        place.must(f"{program}-{sort}-restore", "--test", text=file)
    place.clear()


# Conditions, words of iptables that look right, and their meaning according to iptables-translate.
WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "an interface that ends in +": ({"hook": "input", "in_interface": "et+"}, "-i 'et+'", 'iifname "et*"'),
    "protocol 0": ({"hook": "input", "protocol": 0}, "-p 0", "INPUT counter"),
    "where it came in": ({"hook": "postrouting", "priority": -150, "in_interface": "e*"}, "-i e+", "Can't use -"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_iptables_would_take_for_something_else(place: Place, case: str) -> None:
    options, words, means = WRONG[case]
    assert "\n# iptables has no words for " in rules.log(5, **options).describe()
    done = place.shell(f"iptables-translate -t mangle -A {options['hook'].upper()} {words} -j ACCEPT")
    assert means in done.output + done.errors


@pytest.mark.parametrize("length", [63, 64])
def test_prefixes_that_iptables_cuts(place: Place, length: int) -> None:
    described = rules.log(5, hook="input", prefix="x" * length).describe()
    assert ("\n# iptables has no words for a prefix of more than 63 bytes" in described) == (length == 64)
    if not place.has_legacy:
        kernel_lacks("the tables of iptables-legacy", option="CONFIG_IP_NF_IPTABLES_LEGACY")
    place.must("iptables-legacy", "-A", "INPUT", "-j", "NFLOG", "--nflog-prefix", "x" * length)
    saved = place.must("iptables-legacy-save")
    place.must("iptables-legacy", "-F")
    assert re.findall("x{9,}", saved) == ["x" * 63]


@pytest.mark.parametrize("prefix", ['"', "$x", "a$"])
def test_prefixes_that_nft_cannot_be_told(place: Place, prefix: str) -> None:
    assert rules.log(5, hook="output", prefix=prefix).describe().startswith("# nft has no words for a prefix with ")
    rule = f'add table inet t; add chain inet t c; add rule inet t c log prefix "{prefix}" group 5'
    assert place.run("nft", "--check", rule).status != 0


def test_a_name_that_would_be_a_command(place: Place) -> None:
    line = rules.log(5, hook="input", in_interface="x;>OWNED;y").describe().splitlines()[-1]
    assert line == "ip6tables -A INPUT -i 'x;>OWNED;y' -j NFLOG --nflog-group 5"
    place.shell(line)
    assert os.listdir(place.directory) == []
    place.clear()
