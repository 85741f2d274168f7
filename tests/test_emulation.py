"""The emulated bad line of ``nfnet queue``, with a clock that the tests set."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

import pytest

from nfnet.cli.emulation import PATIENCE, Conditions, Line, Passage, Rate, Stamps, flip


def travel(arrivals: Iterable[tuple[float, int]], **conditions: Any) -> tuple[list[tuple[float, int]], dict[int, str]]:
    """Send packets, which are numbers, at these times and with these sizes through a line.

    Return when each left, copies as negative numbers, and the outcomes of the others.
    """
    line: Line[int] = Line(Conditions(**conditions))
    left: list[tuple[float, int]] = []
    refused: dict[int, str] = {}

    def go_on(until: float) -> None:
        while (due := line.due) is not None and due <= until:
            left.extend((due, -each.item if each.is_copy else each.item) for each in line.leave(due))

    for number, (moment, size) in enumerate(arrivals, 1):
        go_on(moment)
        if (why := line.arrive(number, size, moment)) is not None:
            refused[number] = why
        go_on(moment)
    go_on(1e9)
    return left, refused


def each(count: int, every: float, size: int = 100, start: float = 0.0) -> list[tuple[float, int]]:
    return [(start + number * every, size) for number in range(count)]


def numbers(left: list[tuple[float, int]]) -> list[int]:
    return [number for _, number in left]


# --- rates


@pytest.mark.parametrize(
    ("text", "bytes_a_second"),
    [
        ("1mbit", 125_000),
        ("1Mbit/s", 125_000),
        ("0.5 gbit", 62_500_000),
        ("8bit", 1),
        ("64kbit", 8_000),
        ("500kB", 500_000),
        ("1.5MB/s", 1_500_000),
        ("9B", 9),
    ],
)
def test_rates_of_bytes(text: str, bytes_a_second: float) -> None:
    assert Rate.read(text) == (bytes_a_second, True)


def test_rates_of_packets() -> None:
    assert Rate.read("200pps") == (200, False)
    assert Rate.read("1.5kpps") == (1500, False)


@pytest.mark.parametrize(
    "text", ["", "1", "mbit", "1kb", "1mb", "1MBps", "1 parsec", "-1mbit", "1e3bit", "nanbit", "1mbit/m"]
)
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="is no rate, such as 1mbit, 500kB or 200pps"):
        Rate.read(text)


@pytest.mark.parametrize("text", ["0bit", "0.0kB", "0pps"])
def test_no_rate_of_nothing(text: str) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Rate.read(text)


@pytest.mark.parametrize("every", [0.0, 0.001, 0.0099])
def test_a_rate_is_kept_however_fast_packets_come(every: float) -> None:
    """10 kB a second of 100-byte packets is one every 10 ms, from the first one on."""
    left, _ = travel(each(500, every), rate=Rate.read("10kB"))
    assert numbers(left) == list(range(1, 501))
    assert [moment for moment, _ in left] == pytest.approx([number / 100 for number in range(500)])


def test_a_rate_counts_bytes_or_packets() -> None:
    sizes = [(0.0, 1500), (0.0, 40), (0.0, 1000)]
    left, _ = travel(sizes, rate=Rate.read("1kB"))
    assert [moment for moment, _ in left] == pytest.approx([0, 1.5, 1.54])
    left, _ = travel(sizes, rate=Rate.read("4pps"))
    assert [moment for moment, _ in left] == pytest.approx([0, 0.25, 0.5])


def test_packets_below_the_rate_do_not_wait_and_silence_saves_nothing_up() -> None:
    left, _ = travel(each(50, 0.02), rate=Rate.read("100pps"))
    assert [moment for moment, _ in left] == [moment for moment, _ in each(50, 0.02)]
    left, _ = travel([(0.0, 1), *each(10, 0.0, start=60.0)], rate=Rate.read("100pps"))
    assert [moment for moment, _ in left[1:]] == pytest.approx([60 + number / 100 for number in range(10)])


@pytest.mark.parametrize("delay", [0.0, 10.0])
def test_what_finds_no_room_in_front_of_the_line_is_refused(delay: float) -> None:
    """One leaves, three wait; those under way do not count. Each turn makes room for another one."""
    left, refused = travel([*each(10, 0.0), (1.0, 100), (1.0, 100)], rate=Rate(1, False), limit=3, delay=delay)
    assert numbers(left) == [1, 2, 3, 4, 11]
    assert refused == dict.fromkeys([5, 6, 7, 8, 9, 10, 12], "full")
    assert [moment for moment, _ in left] == [delay + number for number in range(5)]


# --- delays


def test_a_delay_is_as_long_as_was_said() -> None:
    left, _ = travel(each(1000, 0.0001), delay=0.1)
    assert numbers(left) == list(range(1, 1001))
    assert [moment for moment, _ in left] == pytest.approx([moment + 0.1 for moment, _ in each(1000, 0.0001)])


def test_a_delay_comes_behind_the_wait_for_the_turn() -> None:
    left, _ = travel(each(5, 0.0), rate=Rate.read("10pps"), delay=2.0)
    assert [moment for moment, _ in left] == pytest.approx([2.0, 2.1, 2.2, 2.3, 2.4])


@pytest.mark.parametrize("every", [0.001, 1.0])
def test_jitter_keeps_the_order_and_stays_within_bounds(every: float) -> None:
    arrivals = each(2000, every)
    left, _ = travel(arrivals, delay=0.1, jitter=0.05, seed=3)
    assert numbers(left) == list(range(1, 2001))
    delays = [moment - came for (moment, _), (came, _) in zip(left, arrivals, strict=True)]
    assert min(delays) >= 0.05 - 1e-9
    assert max(delays) <= 0.15 + 1e-9
    if every == 1.0:  # they do not wait for each other: even chances
        assert sum(delays) / 2000 == pytest.approx(0.1, abs=0.003)
        assert sum(delay < 0.075 for delay in delays) == pytest.approx(500, abs=80)


def test_a_jitter_larger_than_the_delay_lets_nothing_leave_before_it_came() -> None:
    arrivals = each(500, 1.0)
    left, _ = travel(arrivals, delay=0.01, jitter=0.05, seed=1)
    assert all(moment >= came for (moment, _), (came, _) in zip(left, arrivals, strict=True))


def test_what_finds_no_room_under_way_is_refused_where_there_is_no_rate() -> None:
    left, refused = travel(each(6, 0.1), delay=1.0, limit=4)
    assert numbers(left) == [1, 2, 3, 4]
    assert refused == {5: "full", 6: "full"}


# --- chances


@pytest.mark.parametrize("chance", [0.0, 0.03, 0.5, 1.0])
def test_losses(chance: float) -> None:
    left, refused = travel(each(20_000, 0.001), loss=chance, seed=5)
    assert set(refused.values()) <= {"lost"}
    assert len(refused) == pytest.approx(20_000 * chance, abs=250 if 0 < chance < 1 else 0)
    assert numbers(left) == [number for number in range(1, 20_001) if number not in refused]


@pytest.mark.parametrize("conditions", [{}, {"rate": Rate(10, False)}, {"delay": 1.0, "jitter": 0.5}])
def test_copies_come_right_behind(conditions: dict[str, Any]) -> None:
    left, _ = travel(each(20, 0.5), duplicate=1.0, **conditions)
    assert numbers(left) == [number for packet in range(1, 21) for number in (packet, -packet)]


def test_copies_take_their_share_of_the_rate_and_of_the_room() -> None:
    left, refused = travel(each(5, 0.0), duplicate=1.0, rate=Rate(10, False), limit=4)
    assert [moment for moment, _ in left] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert numbers(left) == [1, -1, 2, -2, 3]  # there was no room for the copy of the third
    assert refused == {4: "full", 5: "full"}


def late_of(order: list[int]) -> int:
    """How many were overtaken (RFC 4737, 3.3)."""
    newest, late = 0, 0
    for number in order:
        late += number < newest
        newest = max(newest, number)
    return late


@pytest.mark.parametrize("conditions", [{}, {"rate": Rate(1000, False)}, {"delay": 0.1}])
@pytest.mark.parametrize("chance", [0.01, 0.25, 0.7])
def test_as_many_are_late_as_was_said(chance: float, conditions: dict[str, Any]) -> None:
    left, _ = travel(each(20_000, 0.001), reorder=chance, seed=2, **conditions)
    assert sorted(numbers(left)) == list(range(1, 20_001))
    assert late_of(numbers(left)) == pytest.approx(20_000 * chance, abs=250)
    times = [moment for moment, _ in left]
    assert times == sorted(times)


def test_what_nothing_overtakes_leaves_all_the_same() -> None:
    line: Line[str] = Line(Conditions(reorder=0.5, seed=1))
    while True:  # until one is late
        line.arrive("late", 100, 5.0)
        if not list(line.leave(5.0)):
            break
    assert line.due == pytest.approx(5.0 + PATIENCE)
    assert list(line.leave(5.0 + PATIENCE / 2)) == []
    (passage,) = line.leave(5.0 + PATIENCE)
    assert (passage.item, passage.overtaken) == ("late", False)
    assert line.due is None


def test_a_clock_that_was_not_looked_at_for_long_changes_no_order() -> None:
    """A late packet that has waited for long enough leaves before one that arrives only then."""
    line: Line[int] = Line(Conditions(reorder=0.5, seed=1))
    flags = []
    for number in range(100):
        line.arrive(number, 100, number * 2 * PATIENCE)
    flags = [(passage.item, passage.overtaken) for passage in line.leave(1e9)]
    assert flags == [(number, False) for number in range(100)]


def test_what_waits_leaves_in_its_order_at_the_end() -> None:
    line: Line[int] = Line(Conditions(rate=Rate(1, False), delay=60.0))
    for number in range(100):
        line.arrive(number, 100, 0.0)
    assert [passage.item for passage in line.leave(math.inf)] == list(range(100))
    assert line.due is None
    assert line.delayed == 100


def fates(**conditions: Any) -> list[Any]:
    """Outcomes of packets that do not depend on time."""
    line: Line[int] = Line(Conditions(**conditions))
    lost = [line.arrive(number, 100, number * 1.0) for number in range(300)]
    left = [(each.item, each.is_copy, each.damage, each.is_late) for each in line.leave(math.inf)]
    return [lost, left]


ALL = {"loss": 0.1, "corrupt": 0.2, "duplicate": 0.3, "reorder": 0.2}


def test_a_seed_makes_chance_the_same_each_time() -> None:
    assert fates(**ALL, seed=7) == fates(**ALL, seed=7)
    assert fates(**ALL, seed=7) != fates(**ALL, seed=8)
    assert fates(**ALL) != fates(**ALL)


def test_one_chance_does_not_change_another() -> None:
    assert fates(**ALL, seed=7)[0] == fates(loss=0.1, seed=7)[0]
    alone = [each for each in fates(corrupt=0.2, seed=7)[1] if each[2] is not None]
    with_copies = [each for each in fates(corrupt=0.2, duplicate=0.5, seed=7)[1] if each[2] is not None]
    assert with_copies == alone
    assert len(alone) == pytest.approx(60, abs=30)
    assert not any(is_copy for _, is_copy, _, _ in with_copies)


# --- when packets came


def test_a_packet_came_when_the_kernel_says() -> None:
    stamps = Stamps()
    assert stamps.arrival(1000.5, 3.0) == 3.0  # nothing is known of the clock yet
    stamps.compare(2.0, 1002.0, 2.000001)
    assert stamps.arrival(1002.25, 3.0) == pytest.approx(2.25, abs=1e-5)
    assert stamps.arrival(None, 3.0) == 3.0


@pytest.mark.parametrize("stamp", [1003.1, 990.0, 0.0, -1.0, 1e12])
def test_a_stamp_of_the_future_or_of_long_ago_is_none(stamp: float) -> None:
    stamps = Stamps()
    stamps.compare(2.0, 1002.0, 2.0)
    assert stamps.arrival(stamp, 3.0) == 3.0


def test_the_clock_of_the_stamps_may_be_set() -> None:
    stamps = Stamps()
    stamps.compare(2.0, 1002.0, 2.0)
    stamps.compare(4.0, 5004.0, 4.0)
    assert stamps.arrival(5004.5, 5.0) == 4.5
    stamps.compare(6.0, 9999.0, 6.5)  # stopped in between, at an unknown time
    assert stamps.arrival(5006.5, 7.0) == 6.5


def test_stamps_out_of_order_do_not_let_packets_overtake() -> None:
    """Packets that arrived on several queues of an interface."""
    left, _ = travel([(5.0, 100), (4.9, 100), (5.1, 100)], delay=1.0)
    assert left == [(6.0, 1), (6.0, 2), (6.1, 3)]


# --- damage


def test_one_bit_is_flipped_behind_the_header_and_any_may_be() -> None:
    data = random.Random(1).randbytes(60)
    seen = set()
    for step in range(3200):
        damaged = flip(data, 20, step / 3200)
        assert damaged is not None
        assert damaged[:20] == data[:20]
        difference = int.from_bytes(data, "big") ^ int.from_bytes(damaged, "big")
        assert difference.bit_count() == 1
        seen.add(difference)
    assert len(seen) == 40 * 8
    assert flip(data, 20, 1.0) is not None


def test_nothing_can_be_flipped_where_nothing_is() -> None:
    assert flip(bytes(20), 20, 0.5) is None
    assert flip(b"", 20, 0.5) is None


def test_a_passage_says_what_it_is() -> None:
    line: Line[str] = Line(Conditions(duplicate=1.0))
    line.arrive("packet", 100, 1.0)
    assert list(line.leave(1.0)) == [
        Passage("packet", 1.0, False, None, False),
        Passage("packet", 1.0, True, None, False),
    ]
    assert line.delayed == 0
