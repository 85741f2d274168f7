"""Sets: elements, and messages about changes, executed by a model of the kernel that knows only these."""

from __future__ import annotations

import errno
import ipaddress
import math
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import ArgumentError, KernelError, rules
from nfnet.protocol.layout import walk
from nfnet.rules import Set, _nftables, _sets
from nfnet.rules._expressions import be32

FAMILY, TABLE = 1, "table"


# --- elements

V4, V6, NET4 = (ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("fd00::1"), ipaddress.ip_network("10.0.0.0/8"))

READ: list[tuple[str, Any, Any]] = [
    ("address", "192.0.2.1", "192.0.2.1"),
    ("address", V4, "192.0.2.1"),
    ("address", "FD00:0::1", "fd00::1"),
    ("address", V6, "fd00::1"),
    ("address", "::ffff:192.0.2.1", "192.0.2.1"),
    ("address", ipaddress.ip_address("::ffff:192.0.2.1"), "192.0.2.1"),
    ("network", "10.0.0.0/8", "10.0.0.0/8"),
    ("network", NET4, "10.0.0.0/8"),
    ("network", "10.0.0.0/255.0.0.0", "10.0.0.0/8"),
    ("network", "192.0.2.1", "192.0.2.1"),
    ("network", "192.0.2.1/32", "192.0.2.1"),
    ("network", V6, "fd00::1"),
    ("network", "fd00::/8", "fd00::/8"),
    ("network", "0.0.0.0/0", "0.0.0.0/0"),
    ("network", "::/0", "::/0"),
    ("network", "192.0.2.1-192.0.2.9", "192.0.2.1-192.0.2.9"),
    ("network", "192.0.2.0 - 192.0.2.255", "192.0.2.0/24"),
    ("network", "192.0.2.1-192.0.2.2", "192.0.2.1-192.0.2.2"),
    ("port", 53, 53),
    ("port", "53", 53),
    ("port", 0, 0),
    ("port", 65535, 65535),
    ("port", range(1024, 2048), "1024-2047"),
    ("port", "1024-2047", "1024-2047"),
    ("mark", 7, 7),
    ("mark", "0x7", 7),
    ("mark", 0xFFFFFFFF, 0xFFFFFFFF),
    ("interface", "eth0", "eth0"),
    ("interface", "eth*", "eth*"),
]


@pytest.mark.parametrize(("kind", "given", "shown"), READ)
def test_elements(kind: Any, given: Any, shown: Any) -> None:
    one = Set(kind, [given])
    assert list(one) == [shown]
    assert given in one
    assert shown in one
    assert list(Set(kind, one)) == [shown]
    one.remove(shown)
    assert given not in one


WRONG: list[tuple[str, Any, str]] = [
    ("address", "nonsense", "no address: 'nonsense' does not appear"),
    ("address", "10.0.0.0/8", r"networks and ranges are for Set\(\"network\"\)"),
    ("address", "192.0.2.1-192.0.2.9", r"networks and ranges are for Set\(\"network\"\)"),
    ("address", NET4, r"must be an address, .*networks are for Set\(\"network\"\).*not IPv4Network"),
    ("address", "fe80::1%lo", "has a zone, which packets do not"),
    ("address", 3221225985, "an element must be an address, as text or of the module ipaddress, not int"),
    ("address", b"\xc0\0\2\1", "not bytes"),
    ("address", None, "not NoneType"),
    ("network", "10.0.0.1/8", "no network: 10.0.0.1/8 has host bits set"),
    ("network", "10.0.0.0/33", "no network: '10.0.0.0/33'"),
    ("network", "10.0.0.0/", "no network"),
    ("network", "/8", "no network"),
    ("network", "192.0.2.9-192.0.2.1", "ends before it begins"),
    ("network", "192.0.2.9-fd00::1", "neither IPv4 nor IPv6"),
    ("network", "fe80::%lo/64", "has a zone"),
    ("network", ipaddress.ip_address("fe80::1%lo"), "has a zone"),
    ("address", ipaddress.ip_address("fe80::1%lo"), "has a zone"),
    ("network", 5, "not int"),
    ("port", 65536, "a port is 65536 and must be in 0..65535"),
    ("port", "http", "no port: 'http'"),
    ("port", "9-5", "'9-5' ends before it begins"),
    ("port", range(1, 9, 2), "without gaps"),
    ("port", range(3, 3), "without gaps"),
    ("port", "1" * 5000, "no port"),
    ("port", 5.5, "not float"),
    ("mark", -1, "a mark is -1"),
    ("interface", "", "an element is '' and must be the name of an interface"),
    ("interface", "a name that is too long", "at most 15 bytes"),
    ("interface", 2, "must be the name of an interface.*not int"),
    ("mark", "many", "no mark: 'many' is no number"),
    ("mark", "1" * 5000, "a mark is"),
]


@pytest.mark.parametrize(("kind", "given", "text"), WRONG)
def test_what_is_no_element(kind: Any, given: Any, text: str) -> None:
    one = Set(kind)
    for method in (one.add, one.discard, one.remove, one.__contains__, one.expires_in):
        with pytest.raises(ArgumentError, match=text):
            method(given)
    for many in (one.update, one.replace, one.difference_update):
        with pytest.raises(ArgumentError, match=text):
            many([given])
    assert len(one) == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"kind": "adress"}, "kind is 'adress' and must be one of 'address', 'network', 'port', 'mark', 'interface'"),
        ({"kind": None}, "kind must be one of"),
        ({"kind": "port", "timeout": 0}, "timeout is 0 and must be above 0 s"),
        ({"kind": "port", "timeout": -5}, "timeout is -5"),
        ({"kind": "port", "timeout": 1e10}, "at most 1000000000 s or math.inf"),
        ({"kind": "port", "timeout": math.nan}, "timeout is nan"),
        ({"kind": "port", "timeout": "10m"}, "timeout must be a number of seconds, not str"),
        ({"kind": "port", "timeout": True}, "timeout must be a number of seconds, not bool"),
        ({"kind": "port", "size": 0}, "size is 0"),
        ({"kind": "port", "counters": "yes"}, "counters must be True or False"),
        ({"kind": "port", "elements": 5}, "elements must be an iterable of elements, or a file"),
        ({"kind": "port", "elements": "80"}, "`add` is for a single element"),
    ],
)
def test_what_makes_no_set(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        Set(**arguments)


def test_without_any_rule_it_is_like_a_set_of_python() -> None:
    one = Set("address", ["192.0.2.1", "fd00::1"])
    one.add("192.0.2.2")
    one.add("192.0.2.2")
    one.update(["192.0.2.3", "192.0.2.1"])
    assert sorted(map(str, one)) == ["192.0.2.1", "192.0.2.2", "192.0.2.3", "fd00::1"]
    assert len(one) == 4
    one.discard("192.0.2.77")
    one.discard("192.0.2.3")
    one.remove("fd00::1")
    with pytest.raises(KeyError, match=r"^fd00::1 is not in the set$"):
        one.remove("fd00::1")
    with pytest.raises(nfnet.NoElementError):
        one.expires_in("fd00::1")
    one.difference_update(["192.0.2.1", "192.0.2.77"])
    assert list(one) == ["192.0.2.2"]
    one.replace(["192.0.2.8", "fd00::8"])
    assert sorted(map(str, one)) == ["192.0.2.8", "fd00::8"]
    assert repr(one) == "<Set of 2 elements of the kind 'address', in 0 tables>"
    one.clear()
    assert not list(one)


def test_a_network_is_there_if_all_of_it_is() -> None:
    one = Set("network", ["10.0.0.0/9", "10.128.0.0/9", "fd00::/64"])
    for there in ("10.1.2.3", "10.0.0.0/8", "10.0.0.1-10.255.255.255", "fd00::/64", "fd00::7"):
        assert there in one, there
    for not_there in ("10.0.0.0/7", "9.255.255.255-10.0.0.1", "11.0.0.0", "fd00::/63", "::", "255.255.255.255"):
        assert not_there not in one, not_there
    with pytest.raises(KeyError, match=r"10.1.0.0/16 is not in the set itself, but is part of other elements"):
        one.remove("10.1.0.0/16")


def test_an_element_that_covers_others_gives_them_back() -> None:
    one = Set("network", ["10.1.0.0/16", "10.0.0.0/8"])
    one.remove("10.0.0.0/8")
    assert list(one) == ["10.1.0.0/16"]
    assert "10.1.2.3" in one
    assert "10.2.0.0" not in one


# --- files


def test_elements_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "blocklist.txt"
    path.write_text("# Comment\n10.0.0.0/8   ; one\n\n192.0.2.1 # two\nfd00::/8\n10.0.0.0/8\n")
    expected = ["10.0.0.0/8", "192.0.2.1", "fd00::/8"]
    assert list(Set("network", path)) == expected
    with path.open() as file:
        assert list(Set("network", file)) == expected
    with path.open("rb") as binary, pytest.raises(ArgumentError, match="must be open for reading text, not bytes"):
        Set("network", binary)


def test_a_wrong_line_of_a_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "blocklist.txt"
    path.write_text("10.0.0.0/8\n\n10.0.0.1/8\n")
    one = Set("network", ["192.0.2.1"])
    with pytest.raises(ArgumentError, match=r"blocklist.txt, line 3: no network: 10.0.0.1/8 has host bits set"):
        one.replace(path)
    with pytest.raises(FileNotFoundError):
        one.update(tmp_path / "another")
    path.write_bytes(b"10.0.0.0/8\n\xff\n")
    with pytest.raises(ArgumentError, match=r"line 2: no network"):
        one.update(path)
    assert list(one) == ["192.0.2.1"]


# --- time


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_sets, "time", clock)
    return clock


def test_time_outs(clock: Clock) -> None:
    one = Set("address", ["192.0.2.1"], timeout=10)
    one.add("192.0.2.2", timeout=5)
    one.add("192.0.2.3", timeout=math.inf)
    assert [one.expires_in(address) for address in one] == [10, 5, math.inf]
    clock.now += 5
    assert list(one) == ["192.0.2.1", "192.0.2.3"]
    assert "192.0.2.2" not in one
    with pytest.raises(KeyError):
        one.remove("192.0.2.2")
    one.add("192.0.2.1")  # its time begins anew
    clock.now += 9
    assert one.expires_in("192.0.2.1") == 1
    clock.now += 1
    assert (list(one), len(one)) == (["192.0.2.3"], 1)


def test_what_has_expired_takes_no_memory_for_ever(clock: Clock) -> None:
    one = Set("address")
    for number in range(10_000):
        one.add(ipaddress.IPv4Address(number), timeout=1)
        clock.now += 0.01
    assert len(one) == 100
    assert len(one._contents[0].deadlines) < 500


def test_size(clock: Clock) -> None:
    one = Set("address", ["192.0.2.1", "fd00::1"], size=3, timeout=10)
    one.add("192.0.2.2")
    one.add("192.0.2.2")
    with pytest.raises(ArgumentError, match="the set would have 4 elements, and its size is 3"):
        one.add("192.0.2.3")
    with pytest.raises(ArgumentError, match="the set would have 5 elements"):
        one.update(["192.0.2.1", "192.0.2.4", "192.0.2.5"])
    one.replace(["192.0.2.7", "192.0.2.8", "192.0.2.9"])
    clock.now += 10
    one.add("192.0.2.3")
    assert list(one) == ["192.0.2.3"]
    with pytest.raises(ArgumentError, match="size is 1"):
        Set("port", [1, 2], size=1)


# --- what the kernel is told


class Kernel:
    """Sets in tables, made by messages. It refuses what nf_tables refuses, and then the whole batch."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.sets: dict[tuple[object, int, bytes], dict[bytes, tuple[bytes | None, float]]] = {}
        self.failures: list[BaseException | None] = []
        """What to raise instead of the next answers; after it did what it was told, if that is an interrupt."""
        self.batches = 0
        self.refused = 0

    def commit(self, sock: object, messages: list[_nftables.Message], operation: str) -> None:
        self.batches += 1
        failure = self.failures.pop(0) if self.failures else None
        if isinstance(failure, KernelError):
            raise failure
        copy = {place: dict(elements) for place, elements in self.sets.items()}
        for message in messages:
            number = self._do(sock, message, copy)
            if number:
                self.refused += 1
                raise KernelError(operation, number)
        self.sets = copy
        if failure is not None:
            raise failure

    def _do(self, sock: object, message: _nftables.Message, sets: Any) -> int:
        attributes = dict(message.attributes)
        place = (sock, message.family, attributes[2])
        if message.operation == _nftables.NEWSET:
            sets[place] = {}
            return 0
        if place not in sets:
            return errno.ENOENT
        there = {key: (end, at) for key, (end, at) in sets[place].items() if at > self._clock.now}
        data = attributes.get(3 | 0x8000)  # NLA_F_NESTED
        if data is None:
            there.clear()
        else:
            for key, end, seconds in self._elements(data):
                if message.operation == _nftables.DELSETELEM:
                    if there.pop(key, (None, 0))[0] != end:
                        return errno.ENOENT
                elif any(self._meet((key, end), (other, last)) for other, (last, _) in there.items()):
                    return errno.EEXIST
                else:
                    there[key] = (end, self._clock.now + seconds)
        sets[place] = there
        return 0

    @staticmethod
    def _elements(data: bytes) -> Iterator[tuple[bytes, bytes | None, float]]:
        """Return key, end of the interval or None, and seconds."""
        found: list[tuple[bytes, bytes | None, float]] = []
        for _, start, end in walk(data, 0, len(data)):
            parts = {number: data[first:last] for number, first, last in walk(data, start, end)}
            key = next(parts[1][first:last] for _, first, last in walk(parts[1], 0, len(parts[1])))
            if parts.get(3) == be32(1):
                assert found[-1][1] is None
                found[-1] = (found[-1][0], key, found[-1][2])
            else:
                found.append((key, None, int.from_bytes(parts[4], "big") / 1000 if 4 in parts else math.inf))
        return iter(found)

    @staticmethod
    def _meet(one: tuple[bytes, bytes | None], other: tuple[bytes, bytes | None]) -> bool:
        if one[1] is None and other[1] is None:
            return one[0] == other[0]
        return (one[1] is None or other[0] < one[1]) and (other[1] is None or one[0] < other[1])

    def forget(self, sock: object) -> None:
        """As if it were closed."""
        self.sets = {place: elements for place, elements in self.sets.items() if place[0] is not sock}

    def found(self, sock: object) -> dict[bytes, float]:
        """Return the elements of a socket's sets, with their timeouts; intervals of ports as single ports."""
        found = {}
        for (owner, _, _), elements in self.sets.items():
            if owner is sock:
                for key, (end, at) in elements.items():
                    if at > self._clock.now:
                        values = [key] if len(key) != 2 else self._ports(key, end)
                        found.update(dict.fromkeys(values, at))
        return found

    @staticmethod
    def _ports(key: bytes, end: bytes | None) -> list[bytes]:
        behind = 65536 if end is None else int.from_bytes(end, "big")
        return [port.to_bytes(2, "big") for port in range(int.from_bytes(key, "big"), behind)]


class Socket:
    """Stands for one."""


@pytest.fixture
def kernel(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(clock)
    monkeypatch.setattr(_nftables, "commit", kernel.commit)
    return kernel


def put_in(kernel: Kernel, one: Set, *families: int) -> Any:
    sock: Any = Socket()
    for family in families or (FAMILY,):
        kernel.commit(sock, one.creation(family, TABLE), "")
        one.attach(sock, family, TABLE)
    return sock


def contents(one: Set, clock: Clock) -> dict[bytes, float]:
    """Compute the elements that the kernel should have, one by one."""
    expected: dict[bytes, float] = {}
    for element in one:
        at = clock.now + one.expires_in(element)
        if one.kind == "port":
            first, _, last = str(element).partition("-")
            keys = [port.to_bytes(2, "big") for port in range(int(first), int(last or first) + 1)]
        else:
            keys = [ipaddress.ip_address(element).packed]
        for key in keys:
            expected[key] = max(at, expected.get(key, 0))
    return expected


def same(found: dict[bytes, float], expected: dict[bytes, float]) -> bool:
    return found.keys() == expected.keys() and all(
        found[key] == expected[key] or abs(found[key] - expected[key]) < 0.002 for key in found
    )


@pytest.mark.parametrize("kind", ["address", "port"])
@pytest.mark.parametrize("seed", range(8))
def test_the_kernel_has_what_is_in_the_set(kind: Any, seed: int, clock: Clock, kernel: Kernel) -> None:
    """Elements are added and removed, overlap and expire; changes fail. Ports represent all kinds with intervals."""
    chance = random.Random(seed)
    one = Set(kind)
    sockets: list[Any] = []

    def element() -> Any:
        if kind == "address":
            return f"192.0.2.{chance.randrange(12)}" if chance.random() < 0.7 else f"fd00::{chance.randrange(12)}"
        first = chance.choice([0, 65500]) + chance.randrange(36)
        return range(first, min(65536, first + chance.choice([1, 1, 3, 20])))

    def timeout() -> float | None:
        return chance.choice([None, 1, 3, 8, math.inf])

    changes = [
        lambda: one.add(element(), timeout()),
        lambda: one.add(element(), timeout()),
        lambda: one.discard(element()),
        lambda: one.discard(chance.choice([*one, element()])),
        lambda: one.update([element() for _ in range(chance.choice([0, 2, 5, 30]))], timeout()),
        lambda: one.difference_update([element() for _ in range(chance.choice([1, 5, 30]))]),
        lambda: one.replace([element() for _ in range(chance.choice([0, 2, 5, 30]))], timeout()),
    ]
    for _ in range(100):
        clock.now += chance.choice([0, 0, 0.5, 2])
        if chance.random() < 0.1:
            sockets.append(put_in(kernel, one, *chance.choice([(1,), (1, 7)])))
        if sockets and chance.random() < 0.08:
            one.detach(sockets[-1])
            kernel.forget(sockets.pop())
        for content in one._contents:
            content._crowded = chance.choice([0, 64])  # whether expired elements are forgotten
        before = contents(one, clock)
        failure = None
        if chance.random() < 0.25 and sockets:
            failure = chance.choice([KernelError("", errno.ENOMEM), KernelError("", errno.EEXIST), KeyboardInterrupt()])
            kernel.failures = [None] * chance.randrange(len(sockets)) + [failure]
        failed = False
        try:
            chance.choice(changes)()
        except (KernelError, KeyboardInterrupt) as error:
            failed = error is failure
            assert failed
        kernel.failures = []
        expected = contents(one, clock)
        if failed:
            assert same(before, expected)
        for sock in sockets:
            assert same(kernel.found(sock), expected), f"{failed=}"
    assert not kernel.refused, "the kernel has what was expected of it, and elements need not be written anew"


def test_a_change_is_one_transaction(clock: Clock, kernel: Kernel) -> None:
    one = Set("address", ["192.0.2.1", "fd00::1"])
    put_in(kernel, one)
    kernel.batches = 0
    one.update([ipaddress.IPv4Address(number) for number in range(500)])
    one.replace(["192.0.2.2", "fd00::2"])
    one.clear()
    assert kernel.batches == 3
    one.discard("192.0.2.1")  # which is not there
    one.clear()
    assert kernel.batches == 3


@pytest.mark.parametrize("inner", ["10-15", "15-20", "25-30", "5-35"])
def test_segments_that_meet_again_become_one(clock: Clock, kernel: Kernel, inner: str) -> None:
    one = Set("port", ["10-30"], timeout=8)
    put_in(kernel, one)
    one.add(inner, timeout=math.inf)
    one.remove(inner)
    (elements,) = kernel.sets.values()
    assert [(key, end) for key, (end, _) in elements.items()] == [(b"\0\x0a", b"\0\x1f")]


def test_nothing_is_sent_after_a_change_that_was_refused(clock: Clock, kernel: Kernel) -> None:
    one = Set("address", ["192.0.2.1"])
    put_in(kernel, one)
    kernel.batches = 0
    kernel.failures = [KernelError("", errno.EPERM)]
    with pytest.raises(KernelError):
        one.add("192.0.2.2")
    assert kernel.batches == 1


def test_what_could_not_be_brought_back_is_with_the_next_change(clock: Clock, kernel: Kernel) -> None:
    one = Set("address", ["192.0.2.1"])
    first, second = put_in(kernel, one), put_in(kernel, one)
    full = KernelError("", errno.ENOMEM)
    kernel.failures = [None, full, full]
    with pytest.raises(KernelError):
        one.add("192.0.2.2")
    assert list(one) == ["192.0.2.1"]
    assert len(kernel.found(first)) == 2
    one.add("192.0.2.3")
    for sock in (first, second):
        assert same(kernel.found(sock), contents(one, clock))


def test_elements_that_live_on_in_the_kernel_for_a_moment(clock: Clock, kernel: Kernel) -> None:
    """Its clock has ticks, and it gets elements a little later: it can still have elements that have just expired."""
    for kind, element in (("address", "192.0.2.1"), ("network", "192.0.2.0/24"), ("network", "192.0.2.0/25")):
        one: Any = Set(kind)  # type: ignore[arg-type]
        sock = put_in(kernel, one)
        one.add("192.0.2.0/24" if kind == "network" else element, timeout=10)
        clock.now += 10
        for elements in kernel.sets.values():
            elements.update({key: (end, at + 0.004) for key, (end, at) in elements.items()})
        one.add(element)
        clock.now += 1
        first = ipaddress.ip_network(element).network_address.packed
        assert kernel.found(sock) == {first: math.inf}
        one.add(element, timeout=10)
        for elements in kernel.sets.values():
            elements.clear()  # it has expired there already
        one.discard(element)
        assert kernel.found(sock) == {}


def test_a_table_that_somebody_removed(clock: Clock, kernel: Kernel) -> None:
    one = Set("address", ["192.0.2.1"])
    put_in(kernel, one)
    kernel.sets.clear()
    with pytest.raises(
        KernelError, match="Another program removed the table of the rule: remove the rule, and install"
    ):
        one.add("192.0.2.2")
    assert list(one) == ["192.0.2.1"]


def test_a_table_whose_socket_is_closed(clock: Clock, kernel: Kernel) -> None:
    """As after an interrupted removal of a rule: the table was removed, and the set still exists."""
    one = Set("address", ["192.0.2.1"])
    put_in(kernel, one)
    kernel.failures = [nfnet.ClosedError("")]
    one.add("192.0.2.2")
    assert repr(one) == "<Set of 2 elements of the kind 'address', in 0 tables>"


def test_a_signal_handler_that_comes_in_between(clock: Clock, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Set("address"), Set("port")
    put_in(kernel, one)

    def commit(*arguments: Any) -> None:
        with pytest.raises(nfnet.NfnetError, match="a signal handler cannot change a set or install"):
            other.add(80)
        kernel.commit(*arguments)

    monkeypatch.setattr(_nftables, "commit", commit)
    one.add("192.0.2.1")
    monkeypatch.undo()
    other.add(80)
    assert list(other) == [80]


def test_threads_add_while_others_iterate() -> None:
    one = Set("address")

    def add(thread: int) -> None:
        for number in range(500):
            one.add(f"192.0.{thread}.{number % 256}")

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert len(list(one)) <= 4 * 256
    for thread in threads:
        thread.join()
    assert len(one) == 4 * 256


def test_a_forked_child_has_a_set_of_its_own(clock: Clock, kernel: Kernel) -> None:
    one = Set("address", ["192.0.2.1"])
    put_in(kernel, one)
    pid = os.fork()
    if not pid:
        try:
            one.add("192.0.2.2")
            os._exit(kernel.batches - 1 or (list(one) != ["192.0.2.1", "192.0.2.2"]))
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert list(one) == ["192.0.2.1"]


# --- in rules


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ({"source": Set("port")}, r'source takes a Set\("address"\) or Set\("network"\), not a Set\("port"\)'),
        ({"not_destination": Set("mark")}, r"not_destination takes a"),
        ({"protocol": "tcp", "source_port": Set("address")}, r'takes a Set\("port"\), not a Set\("address"\)'),
        ({"mark": Set("port")}, r'mark takes a Set\("mark"\)'),
        ({"protocol": Set("port")}, r'protocol takes no sets, and this is a Set\("port"\)'),
        ({"state": Set("mark")}, "state takes no sets"),
        ({"in_interface": Set("address")}, r'in_interface takes a Set\("interface"\), not'),
        ({"source": [Set("address"), "192.0.2.1"]}, "source must be an address .*not Set"),
        ({"destination_port": Set("port")}, "destination_port needs protocol to be"),
        ({"family": "bridge", "mark": Set("port")}, "mark takes"),
    ],
)
def test_sets_that_do_not_fit(where: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        rules.drop(hook="input", **where)


def test_the_same_set_twice() -> None:
    one = Set("address")
    with pytest.raises(ArgumentError, match="source and not_source are the same set: no packet matches"):
        rules.drop(hook="input", source=one, not_source=one)
    rules.drop(hook="input", source=one, not_destination=one)


def test_counters_must_be_asked_for() -> None:
    with pytest.raises(ArgumentError, match="make it with counters=True"):
        Set("address").counters()
    assert Set("port", [80], counters=True).counters() == {80: (0, 0)}
