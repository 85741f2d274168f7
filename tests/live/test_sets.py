"""Sets on the real kernel: which packets they match, and how nft lists them."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import math
import random
import signal
import socket
import subprocess
import threading
from typing import Any

import pytest

import nfnet
from nfnet import Queue, netns, rules
from nfnet.rules import Count, Set

from .conftest import ADDRESS, QUIET, Net, cannot_run, in_child, readable, wait_for
from .programs import program
from .test_process import drop_capabilities
from .test_rules import SO_MARK
from .traffic import handling

V4, V6 = socket.AF_INET, socket.AF_INET6
PORT = 7000
MANY = 100_000


class Way:
    """UDP from the client to the server."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.server = net.hosts["server"]
        self._receivers: dict[tuple[int, int], socket.socket] = {}
        self._count = 0

    def passes(self, family: int = V4, port: int = PORT, mark: int = 0, source_port: int = 0) -> bool:
        """Whether a packet arrives before one that is sent behind it, to a port of which no rule is."""
        receiver, last = self._receiver(family, port), self._receiver(family, 9)
        self._count += 1
        data = b"%d" % self._count
        sender = self.net.open_socket("client", family)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sender.bind(("", source_port))
        sender.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        with contextlib.suppress(PermissionError):  # the sender's error if its packet is dropped at output
            sender.sendto(data, (ADDRESS["server", family], port))
        sender.close()
        end = self.net.open_socket("client", family)
        while True:
            end.sendto(data, (ADDRESS["server", family], 9))
            if readable(last, QUIET) and last.recv(100) == data:
                break
            if readable(receiver, 0):
                break
        end.close()
        return readable(receiver, 0) and receiver.recv(100) == data

    def _receiver(self, family: int, port: int) -> socket.socket:
        if (family, port) not in self._receivers:
            self._receivers[family, port] = self.net.receiver("server", family, port)
        return self._receivers[family, port]


@pytest.fixture
def way(net: Net) -> Way:
    return Way(net)


CLIENT4, CLIENT6 = ADDRESS["client", V4], ADDRESS["client", V6]
BY_PORT = {"protocol": "udp", "destination_port": PORT}


def drop(way: Way, **where: Any) -> rules.Rule:
    """A rule that spares the packets by which the end is known."""
    return rules.drop(hook="input", netns=way.server, **{**BY_PORT, **where})


def nft_elements(host: Any, family: str = "inet") -> dict[str, list[Any]]:
    """Return the elements of a host's sets, by name, as nft lists them."""
    command = [program("nft"), "-j", "list", "sets", family]
    done = netns.call_in(host, lambda: subprocess.run(command, capture_output=True, text=True, check=True))
    sets = [item["set"] for item in json.loads(done.stdout)["nftables"] if "set" in item]
    return {item["name"]: item.get("elem", []) for item in sets}


@pytest.mark.feature("sets that change")
def test_addresses_of_both_versions_while_the_rule_is_installed(way: Way) -> None:
    blocked = Set("address")
    with drop(way, source=blocked):
        assert way.passes(V4)
        assert way.passes(V6)
        blocked.add(CLIENT4)
        assert not way.passes(V4)
        assert way.passes(V6)
        blocked.add(CLIENT6)
        blocked.add("192.0.2.1")
        assert not way.passes(V6)
        blocked.remove(CLIENT4)
        assert way.passes(V4)
        assert not way.passes(V6)
        blocked.clear()
        assert way.passes(V6)
    assert nft_elements(way.server) == {}


def test_not_in_a_set(way: Way) -> None:
    allowed = Set("address", [CLIENT4])
    with drop(way, not_source=allowed):
        assert way.passes(V4)
        assert not way.passes(V6)
        allowed.replace([CLIENT6])
        assert not way.passes(V4)
        assert way.passes(V6)


@pytest.mark.feature("sets: intervals")
def test_networks(way: Way) -> None:
    blocked = Set("network", ["10.81.0.0/16", "10.81.1.0/24", "fd81::/16"])
    with drop(way, source=blocked):
        assert not way.passes(V4)
        assert not way.passes(V6)
        blocked.remove("10.81.0.0/16")
        assert not way.passes(V4), "the smaller network is there still"
        blocked.remove("10.81.1.0/24")
        assert way.passes(V4)
        blocked.replace(["10.81.1.0-10.81.1.9", "0.0.0.0-9.255.255.255"])
        assert not way.passes(V4)
        assert way.passes(V6)


@pytest.mark.parametrize("criterion", ["destination_port", "not_destination_port", "source_port"])
def test_ports(way: Way, criterion: str) -> None:
    ports = Set("port", [80, "7000-7001"])
    where = {"destination_port": PORT} if criterion == "source_port" else {"destination_port": None}
    negated = criterion.startswith("not_")
    if negated:
        ports.add(9)

    def passes() -> bool:
        return way.passes(source_port=7001 if criterion == "source_port" else 0)

    with drop(way, **{**where, criterion: ports}):
        assert passes() == negated
        ports.discard("7000-7001")
        assert passes() != negated
        ports.add(range(6000, 8000))
        assert passes() == negated


def test_marks(way: Way) -> None:
    marks = Set("mark", [5])
    with rules.drop(hook="output", netns=way.net.hosts["client"], mark=marks):
        assert way.passes(mark=7)
        assert not way.passes(mark=5)
        marks.add(7)
        assert not way.passes(mark=7)


def test_interfaces(way: Way) -> None:
    interfaces = Set("interface", ["lo", "to-client"])
    with drop(way, in_interface=interfaces):
        assert way.passes()
        interfaces.add("to-rou*")
        assert not way.passes()
        interfaces.replace(["to-router"])
        assert not way.passes()
        interfaces.remove("to-router")
        assert way.passes()


@pytest.mark.feature("sets: time-outs")
@pytest.mark.parametrize(("kind", "element"), [("address", CLIENT4), ("network", "10.81.0.0/16")])
def test_the_kernel_lets_go_of_elements_when_their_time_is_over(way: Way, kind: Any, element: str) -> None:
    blocked = Set(kind)
    with drop(way, source=blocked):
        blocked.add(element, timeout=0.5)
        assert wait_for(way.passes)
        assert wait_for(lambda: element not in blocked)  # by a clock that has no ticks
        blocked.add(element, timeout=600)
        assert not way.passes()
        blocked.add(element, timeout=0.3)  # its time begins anew, and is another one
        assert wait_for(way.passes)
        blocked.add(element, timeout=0.3)
        blocked.add(element)
        assert wait_for(lambda: blocked.expires_in(element) == math.inf)
        assert not way.passes()


def test_a_handler_that_has_seen_enough(way: Way) -> None:
    """The packet that it adds is the last that it sees."""
    blocked = Set("address", timeout=600)
    seen = []

    def handle(packet: nfnet.Packet) -> None:
        seen.append(packet.id)
        blocked.add(packet.ip.source)
        packet.drop()

    queue_rule = rules.queue(1, hook="input", netns=way.server, **BY_PORT)
    with rules.install(drop(way, source=blocked), queue_rule), Queue(1, netns=way.server) as queue:
        with handling(queue, handle):
            for _ in range(3):
                for family, client in ((V4, CLIENT4), (V6, CLIENT6)):
                    assert not way.passes(family)
                    assert wait_for(lambda client=client: client in blocked)
    assert len(seen) == 2
    assert sorted(map(str, blocked)) == [CLIENT4, CLIENT6]


def test_several_rules_and_after_them(way: Way) -> None:
    blocked = Set("address", [CLIENT4])
    first = drop(way, source=blocked)
    second = rules.drop(hook="output", netns=way.net.hosts["client"], source=blocked, **BY_PORT)
    with first:
        with second:
            blocked.add(CLIENT6, timeout=300)
            assert all(nft_elements(way.net.hosts[host]) for host in ("client", "server"))
            assert not way.passes(V6)
        assert not way.passes(V6), "the first rule is there still"
        blocked.discard(CLIENT4)
        assert way.passes(V4)
    assert way.passes(V6)
    assert list(blocked) == [CLIENT6]
    assert 290 < blocked.expires_in(CLIENT6) <= 300
    with second:
        assert not way.passes(V6)
        ((_, elements), *_) = [item for item in nft_elements(way.net.hosts["client"]).items() if "ipv6" in item[0]]
        assert elements[0]["elem"]["timeout"] in range(290, 301)


def test_two_rules_in_tables_of_two_families(way: Way) -> None:
    """They have one socket: a change is one transaction."""
    blocked = Set("address", ["192.0.2.1"])
    both = [
        rules.drop(hook="forward", family=family, source=blocked, netns=way.server) for family in ("inet", "bridge")
    ]
    with rules.install(*both):
        blocked.add("192.0.2.2")
        for family in ("inet", "bridge"):
            sets = nft_elements(way.server, family)
            assert [sorted(elements) for elements in sets.values()] == [["192.0.2.1", "192.0.2.2"], []], family


def first_and_last(element: Any) -> tuple[Any, Any]:
    """Read an element of nft's JSON."""
    if isinstance(element, dict) and "elem" in element:
        element = element["elem"]["val"]
    if isinstance(element, dict) and "prefix" in element:
        network = ipaddress.ip_network(f"{element['prefix']['addr']}/{element['prefix']['len']}")
        return network[0], network[-1]
    first, last = element["range"] if isinstance(element, dict) else (element, element)
    return ipaddress.ip_address(first), ipaddress.ip_address(last)


@pytest.mark.feature("sets: intervals")
@pytest.mark.parametrize("seed", range(3))
def test_nft_reads_what_is_in_a_set_of_networks_that_overlap(way: Way, seed: int) -> None:
    chance = random.Random(seed)
    networks = Set("network")

    def network() -> str:
        if chance.random() < 0.3:
            first, last = sorted(chance.randrange(256) for _ in range(2))
            return f"255.255.255.{first}-255.255.255.{last}"
        length = chance.choice([24, 25, 26, 28, 32])
        return f"255.255.255.{chance.randrange(1 << length - 24) << 32 - length}/{length}"

    with drop(way, source=networks):
        for _ in range(60):
            change = chance.choice([networks.add, networks.discard, networks.update, networks.difference_update])
            many = change in (networks.update, networks.difference_update)
            change([network() for _ in range(chance.choice([3, 30]))] if many else network())  # type: ignore[arg-type]
        expected = set()
        for element in networks:
            first, _, last = str(element).partition("-")
            span = ipaddress.ip_network(first) if not last else [ipaddress.ip_address(end) for end in (first, last)]
            expected |= set(range(int(span[0]), int(span[-1]) + 1))
        found: set[int] = set()
        for begin, end in map(first_and_last, nft_elements(way.server)[networks.kernel_sets[0].name]):
            numbers = set(range(int(begin), int(end) + 1))
            assert not numbers & found
            found |= numbers
        assert found == expected
        assert expected


def many(kind: str, count: int = MANY) -> list[str]:
    step = {"address": 1, "network": 512}[kind]
    length = {"address": "", "network": "/24"}[kind]
    return [f"{ipaddress.IPv4Address(0x0A000000 + number * step)}{length}" for number in range(count)]


@pytest.mark.parametrize("kind", ["address", "network"])
def test_a_hundred_thousand_at_once(way: Way, kind: Any, tmp_path: Any) -> None:
    """From a file; the rule is installed before the first change, and after it."""
    path = tmp_path / "blocklist"
    path.write_text("\n".join(many(kind)))
    blocked = Set(kind)
    with drop(way, source=blocked):
        blocked.update(path)
        blocked.add(CLIENT4)
        assert not way.passes()
        assert len(nft_elements(way.server)[blocked.kernel_sets[0].name]) == MANY + 1
        blocked.replace(["192.0.2.1"])
        assert way.passes()
        blocked.update(path)
    with drop(way, source=blocked):
        assert len(nft_elements(way.server)[blocked.kernel_sets[0].name]) == MANY + 1


@pytest.mark.feature("sets: counters")
def test_counters(way: Way) -> None:
    seen = Set("network", ["10.81.0.0/16", "fd81::/16", "192.0.2.0/24"], counters=True)
    with drop(way, source=seen):
        for _ in range(3):
            assert not way.passes(V4)
        assert not way.passes(V6)
        counts = seen.counters()
        packets = {element: count.packets for element, count in counts.items()}
        assert packets == {"10.81.0.0/16": 3, "fd81::/16": 1, "192.0.2.0/24": 0}
        assert counts["10.81.0.0/16"].bytes == 3 * (20 + 8 + 1)
        seen.add("192.0.2.1")
        assert seen.counters()["10.81.0.0/16"].packets == 3
        seen.add("10.81.0.0/16")  # which is there to stay
        assert seen.counters()["10.81.0.0/16"].packets == 3
        seen.add("10.81.0.0/16", timeout=600)
        assert seen.counters()["10.81.0.0/16"] == Count(0, 0)
    assert seen.counters()["fd81::/16"] == Count(0, 0)


def test_without_privilege_nothing_changes(way: Way) -> None:
    def child() -> None:
        blocked = Set("address", ["192.0.2.1"])
        with drop(way, source=blocked):
            drop_capabilities()
            for change in (lambda: blocked.add("192.0.2.2"), blocked.clear, lambda: blocked.remove("192.0.2.1")):
                with pytest.raises(nfnet.NotPermittedError, match="changing a set .*CAP_NET_ADMIN"):
                    change()
            assert list(blocked) == ["192.0.2.1"]

    assert in_child(child) == 0


def test_more_than_a_user_namespace_may_send_at_once(privileges: str | None) -> None:
    if privileges:
        cannot_run(privileges)

    def child() -> None:
        netns.become_root()
        with netns.create() as host:
            blocked = Set("network", counters=True)
            with open("/proc/sys/net/core/wmem_max") as file:
                too_many = many("network", 2 * int(file.read()) // 60)  # bytes; each packet has more
            with rules.drop(hook="input", source=blocked, netns=host):
                with pytest.raises(nfnet.KernelError, match="net.core.wmem_max") as caught:
                    blocked.update(too_many)
                assert caught.value.errno == errno.EMSGSIZE
                assert len(blocked) == 0
                some = too_many[:5000]
                blocked.update(some)
                assert len(nft_elements(host)[blocked.kernel_sets[0].name]) == len(blocked) == len(some)

    assert in_child(child) == 0


def test_a_forked_child_changes_nothing_here(way: Way) -> None:
    blocked = Set("address", ["192.0.2.1"])
    with drop(way, source=blocked):

        def child() -> None:
            blocked.clear()
            blocked.add(CLIENT4)
            assert list(blocked) == [CLIENT4]

        assert in_child(child) == 0
        assert way.passes()
        blocked.add(CLIENT4)
        assert not way.passes()
        assert list(blocked) == ["192.0.2.1", CLIENT4]


def test_threads_change_a_set_while_rules_come_and_go(way: Way) -> None:
    blocked = Set("address")
    errors: list[BaseException] = []

    def change(thread: int) -> None:
        try:
            for number in range(100):
                blocked.add(f"192.0.{thread}.{number}")
                if number % 2:
                    blocked.remove(f"192.0.{thread}.{number}")
                assert f"192.0.{thread}.{number - number % 2}" in blocked
        except BaseException as error:
            errors.append(error)

    with drop(way, source=blocked):
        threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            with drop(way, source=blocked):
                list(blocked)
        for thread in threads:
            thread.join()
        assert errors == []
        found = nft_elements(way.server)[blocked.kernel_sets[0].name]
        assert sorted(found) == sorted(blocked) == sorted(f"192.0.{t}.{n}" for t in range(4) for n in range(0, 100, 2))


def test_a_rule_that_cannot_be_installed_leaves_the_set_alone(way: Way) -> None:
    blocked = Set("address", [CLIENT4])
    rule = drop(way, source=blocked, in_interface="nothing")
    with pytest.raises(nfnet.ArgumentError, match="there is no interface 'nothing'"):
        rule.install()
    blocked.add(CLIENT6)
    with drop(way, source=blocked):
        assert not way.passes(V6)


def test_nft_installs_the_same_set(way: Way) -> None:
    """Descriptions contain elements, their timeouts, and counters."""
    networks = Set("network", ["10.0.0.0/8", "192.0.2.1-192.0.2.9"], counters=True)
    networks.add("10.81.0.0/16", timeout=500)
    networks.add("fd81::/16", timeout=400.5)
    ports, marks = Set("port", [PORT, "80-90"]), Set("mark", [7])
    interfaces = Set("interface", ["to-rou*", "lo"])
    where = {"source": networks, "destination_port": ports, "not_mark": marks, "in_interface": interfaces}
    rule = drop(way, **where)
    with rule:
        installed = nft_elements(way.server)
    for command in rules.describe(rule).splitlines():
        if command.startswith("nft"):
            netns.call_in(way.server, lambda command=command: subprocess.run(command, shell=True, check=True))  # type: ignore[misc]

    def same(elements: list[Any]) -> list[Any]:
        for element in elements:
            if isinstance(element, dict) and "elem" in element:
                element["elem"].pop("expires", None)
                if "timeout" in element["elem"]:  # the description contains the remaining time
                    element["elem"]["timeout"] = round(element["elem"]["timeout"], -2)
        return elements

    assert {name: same(elements) for name, elements in nft_elements(way.server).items()} == {
        name: same(elements) for name, elements in installed.items()
    }
    assert not way.passes(V4)


def test_of_many_elements_some_are_described(way: Way) -> None:
    text = rules.describe(drop(way, source=Set("address", many("address", 1500))))
    assert text.count("nft add element") == 10
    assert "# and 500 more elements of address" in text


def test_an_interrupt_leaves_the_kernel_with_what_is_in_the_set(way: Way) -> None:
    """Ctrl-C at random moments: each change is made, or it is not."""
    sets: list[Any] = [Set("address"), Set("port")]
    chance = random.Random()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupted = 0

    def change(number: int) -> None:
        addresses, ports = sets
        addresses.add(f"192.0.2.{number % 50}")
        addresses.discard(f"192.0.2.{chance.randrange(50)}")
        ports.add(range(number % 50, number % 50 + 3))
        ports.discard(range(5, 8))
        ports.replace([range(first, first + 3) for first in range(20)])

    try:
        with drop(way, source=sets[0], destination_port=sets[1]):
            for number in range(150):
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 2e-3))
                        for again in range(50):
                            change(number + again)
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted += 1
                assert set(nft_ports(way, sets[1])) == {
                    port
                    for element in sets[1]
                    for port in range(int(str(element).split("-")[0]), int(str(element).split("-")[-1]) + 1)
                }
                assert sorted(nft_elements(way.server)[sets[0].kernel_sets[0].name]) == sorted(sets[0])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 50


def nft_ports(way: Way, ports: Set) -> list[int]:
    found: list[int] = []
    for element in nft_elements(way.server)[ports.kernel_sets[0].name]:
        first, last = element["range"] if isinstance(element, dict) else (element, element)
        found += range(first, last + 1)
    return found
