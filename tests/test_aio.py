"""asyncio, on a model of the kernel."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import nfnet
from nfnet import AsyncLog, AsyncQueue, Packet, Verdict, testing
from nfnet._io.system import collect_forgotten
from nfnet.protocol import netlink, nfqnl

from .conftest import FIXTURES
from .kernel import FakeKernel
from .test_queue import NOT_RUN, Compared

TIMEOUT = 60.0


def uvloop_runner(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        import uvloop
    except ImportError:
        work.close()
        pytest.skip("uvloop is not installed")
    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    def runner(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def bounded() -> None:
            await asyncio.wait_for(function(), TIMEOUT)

        if request.param == "uvloop":
            uvloop_runner(bounded())
        else:
            asyncio.run(bounded())

    return runner


def words(kernel: FakeKernel) -> list[tuple[int, int]]:
    return [(packet_id, word) for packet_id, word, _ in kernel.judged]


def verdict_datagrams(kernel: FakeKernel) -> int:
    """How many datagrams with verdicts there were."""
    return sum(netlink.header.parse(d).type != nfqnl.MSG_CONFIG for d in kernel.sent)


async def at_rest(queue: AsyncQueue) -> None:
    """Wait until its `run` waits for something to happen."""
    while queue._session.wake is None:
        await asyncio.sleep(0)


@pytest.mark.usefixtures("unhurried")
def test_iteration(run: Any) -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(3)
        seen = []
        async with AsyncQueue(1, transport=kernel) as queue:
            async for packet in queue:
                seen.append(packet.id)
                packet.accept() if packet.id % 2 else packet.drop()
                if packet.id == 3:
                    asyncio.get_running_loop().call_later(0.01, kernel.feed)
                if packet.id == 4:
                    break
            assert queue.counters.accepted == 2
        assert seen == [1, 2, 3, 4]
        assert sorted(words(kernel)) == [(1, 1), (2, 0), (3, 1), (4, 0)]
        assert verdict_datagrams(kernel) <= 3

    run(main)


def test_what_an_iteration_leaves_is_for_the_next(run: Any) -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(4)
        async with AsyncQueue(1, transport=kernel) as queue:
            for _ in range(2):
                async for packet in queue:
                    packet.accept()
                    if packet.id % 2 == 0:
                        break
            collect_forgotten()
            assert words(kernel) == [(1, 1), (2, 1), (3, 1), (4, 1)]

    run(main)


def test_verdicts_leave_while_the_body_waits() -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(3)
        async with AsyncQueue(1, transport=kernel) as queue:
            async for packet in queue:
                packet.accept()
                if packet.id == 2:
                    while len(kernel.judged) < 2:  # on a slow machine the first one left before
                        await asyncio.sleep(0.001)
                    assert words(kernel) == [(1, 1), (2, 1)]
                    break

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_verdicts_of_many_packets_leave_while_the_body_waits() -> None:
    """They are collected then, and leave although the loop has nothing to do, and sets no timer."""

    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(20)
        async with AsyncQueue(1, transport=kernel) as queue:
            async for packet in queue:
                if packet.id == 10:
                    while len(kernel.judged) < 9:
                        await asyncio.sleep(0.001)
                packet.accept()
                if packet.id == 15:
                    while len(kernel.judged) < 15:
                        await asyncio.sleep(0.001)
                    assert not kernel._waiting, "all were taken at a time"
                if packet.id == 20:
                    break
        assert words(kernel) == [(number, 1) for number in range(1, 21)]

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


class Timers:
    """Those that the package sets in the running loop."""

    def __init__(self) -> None:
        self.count = 0
        loop = asyncio.get_running_loop()
        call_later = loop.call_later

        def watched(delay: float, function: Callable[..., object], *arguments: Any, **options: Any) -> Any:
            self.count += function.__module__.startswith("nfnet.")
            return call_later(delay, function, *arguments, **options)

        loop.call_later = watched  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", ["plain", "iteration"])
def test_one_timer_is_set_while_a_loss_is_untold(kind: str) -> None:
    async def main() -> None:
        kernel = FakeKernel()
        timers = Timers()

        last = 0

        def feed(batches: int) -> None:
            nonlocal last
            if batches in (5, 10):  # nfnet warns about the first loss at once, about the second one later
                kernel.skip(1)
            last = kernel.feed(4)[-1]

        batches = 0

        def handler(packet: Packet) -> None:
            nonlocal batches
            packet.accept()
            if packet.id < last:
                return
            assert batches >= 5 or timers.count == 0
            batches += 1
            feed(batches)
            if batches == 30:
                queue.stop()

        async with AsyncQueue(1, transport=kernel) as queue:
            feed(0)
            if kind == "plain":
                await queue.run(handler)
            else:
                async for packet in queue:
                    handler(packet)
            assert queue.counters.lost == 2
        assert timers.count == 1

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


@pytest.mark.usefixtures("unhurried")
def test_run_with_a_plain_handler(run: Any) -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(1000)
        async with AsyncQueue(1, transport=kernel) as queue:

            def handler(packet: Packet) -> None:
                packet.accept()
                if packet.id == 1000:
                    queue.stop()

            await queue.run(handler)
        assert words(kernel) == [(number, 1) for number in range(1, 1001)]
        assert verdict_datagrams(kernel) < 50

    run(main)


def test_run_with_an_async_handler_and_verdicts_out_of_order(run: Any) -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(4)
        running, most = 0, 0
        decided: set[int] = set()

        async def handler(packet: Packet) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            while packet.id % 2 and not {2, 4} <= decided:
                await asyncio.sleep(0.001)
            packet.accept(mark=packet.id)
            decided.add(packet.id)
            running -= 1
            if packet.id == 3:
                queue.stop()

        async with AsyncQueue(1, transport=kernel) as queue:
            await queue.run(handler, concurrency=3)
            assert queue.counters.pending == 0
        assert most == 3
        order = [packet_id for packet_id, _ in words(kernel)]
        assert order[:2] == [2, 4]
        assert sorted(order) == [1, 2, 3, 4]

    run(main)


@pytest.mark.usefixtures("unhurried")
def test_verdicts_of_tasks_leave_together() -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(50)
        go = asyncio.Event()

        async def handler(packet: Packet) -> None:
            await go.wait()
            packet.accept()

        async with AsyncQueue(1, transport=kernel) as queue:
            task = asyncio.ensure_future(queue.run(handler))
            while len(queue.pending) < 50:
                await asyncio.sleep(0)
            go.set()
            while kernel.queued:
                await asyncio.sleep(0)
            assert verdict_datagrams(kernel) <= 3
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


@pytest.mark.usefixtures("unhurried")
def test_deciding_many_held_packets_in_one_step_searches_no_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfnet.aio._Queue.packet_type", Compared)
    Compared.count = 0
    count = 2000

    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(count)
        held: list[Packet] = []

        def hold(packet: Packet) -> None:
            held.append(packet)
            if len(held) == count:
                queue.stop()

        async with AsyncQueue(1, transport=kernel) as queue:
            await queue.run(hold)
            for packet in held:
                packet.accept()
            while kernel.queued:
                await asyncio.sleep(0)
            assert verdict_datagrams(kernel) < count / 50

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))
    assert Compared.count < 5 * count


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("waiting", [True, False])
def test_a_loop_that_a_task_ended_leaves_nothing_behind(waiting: bool, closed: bool) -> None:
    """SystemExit ends a loop at once: it does not run its next callbacks, and its coroutines stay suspended."""
    first, second = FakeKernel(), FakeKernel()
    queue = AsyncQueue(1, transport=first)

    async def exits() -> None:
        await queue.open()
        first.feed()

        async def handler(packet: Packet) -> None:
            await asyncio.sleep(0)
            if waiting:
                await at_rest(queue)
            packet.accept()  # leaves when the loop has been through once
            raise SystemExit

        await queue.run(handler)

    async def goes_on() -> None:
        await queue.close()
        assert not first.queued
        queue._reader._given_transport = second
        second.feed(3)
        go = asyncio.Event()

        async def handler(packet: Packet) -> None:
            await go.wait()
            packet.accept()
            if packet.id == 3:
                queue.stop()

        async with queue:
            task = asyncio.ensure_future(queue.run(handler))
            while len(queue.pending) < 3:
                await asyncio.sleep(0)
            left.pop().close()
            gc.collect()  # the coroutines of the other loop end now
            go.set()
            while second.queued:
                await asyncio.sleep(0)
            await task
        assert words(second) == [(1, 1), (2, 1), (3, 1)]

    left: list[Any] = [asyncio.new_event_loop()]
    with pytest.raises(SystemExit):
        left[0].run_until_complete(exits())
    if closed:
        left[0].close()
    asyncio.run(asyncio.wait_for(goes_on(), TIMEOUT))
    gc.collect()  # asyncio logs errors of its tasks: here, and not during another test


def test_an_open_queue_goes_on_in_another_loop_after_one_that_a_task_ended() -> None:
    kernel = FakeKernel()
    queue = AsyncQueue(1, transport=kernel)
    held: list[Packet] = []
    tasks: list[asyncio.Task[None]] = []

    async def hold() -> None:
        kernel.feed(2)
        await queue.run(lambda packet: (held.append(packet), packet.id % 2 == 0 and queue.stop()))

    async def exits() -> None:
        await queue.open()
        await hold()

        async def decide() -> None:
            held.pop().accept()
            raise SystemExit

        tasks.append(asyncio.ensure_future(decide()))
        await asyncio.sleep(0)

    async def goes_on() -> None:
        await hold()
        for packet in held:
            packet.accept()
        while kernel.queued:
            await asyncio.sleep(0)
        await queue.close()

    loop = asyncio.new_event_loop()
    with pytest.raises(SystemExit):
        loop.run_until_complete(exits())
    loop.close()
    assert isinstance(tasks[0].exception(), SystemExit)
    asyncio.run(asyncio.wait_for(goes_on(), TIMEOUT))
    assert sorted(words(kernel)) == [(number, 1) for number in range(1, 5)]


def test_cancelling_loses_no_packet(run: Any) -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(10)
        cancelled = []

        async def forever(packet: Packet) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(packet.id)
                raise

        async with AsyncQueue(1, transport=kernel) as queue:
            task = asyncio.ensure_future(queue.run(forever, concurrency=4))
            while len(queue.pending) < 4:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert sorted(cancelled) == [1, 2, 3, 4]
            for packet in queue.pending:
                packet.drop()

            def rest(packet: Packet) -> None:
                packet.accept()
                if packet.id == 10:
                    queue.stop()

            await queue.run(rest)
        assert sorted(words(kernel)) == [(i, 0) for i in range(1, 5)] + [(i, 1) for i in range(5, 11)]

    run(main)


@pytest.mark.parametrize("policy", ["raise", "accept", "drop"])
def test_handlers_that_raise(policy: str) -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(2)

        async def handler(packet: Packet) -> None:
            await asyncio.sleep(0)
            if packet.id == 1:
                raise ValueError("test")
            packet.repeat()
            queue.stop()

        async with AsyncQueue(1, transport=kernel, on_error=policy) as queue:
            if policy == "raise":
                with pytest.raises(ValueError, match="test"):
                    await queue.run(handler)
                assert [packet.id for packet in queue.pending][:1] == [1]
            else:
                await queue.run(handler)
                await asyncio.sleep(0)
                assert sorted(words(kernel)) == [(1, Verdict.ACCEPT if policy == "accept" else 0), (2, Verdict.REPEAT)]

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_of_several_handlers_that_raise_none_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    async def main(cancel: bool) -> None:
        kernel = FakeKernel()
        kernel.feed(4)
        go = asyncio.Event()

        async def handler(packet: Packet) -> None:
            try:
                await (asyncio.Event() if cancel or packet.id == 4 else go).wait()
            finally:
                raise ValueError(f"test {packet.id}")

        async with AsyncQueue(1, transport=kernel) as queue:
            task = asyncio.ensure_future(queue.run(handler))
            while len(queue.pending) < 4:
                await asyncio.sleep(0)
            go.set()
            if cancel:
                task.cancel()
            with pytest.raises(asyncio.CancelledError if cancel else ValueError) as raised:
                await task
        logged = {str(record.exc_info[1]) for record in caplog.records if record.exc_info}
        assert logged | ({str(raised.value)} - {""}) == {f"test {number}" for number in range(1, 5)}
        assert len(caplog.records) == (4 if cancel else 3)
        assert all("the handler failed on packet" in record.getMessage() for record in caplog.records)
        caplog.clear()

    for cancel in (False, True):
        asyncio.run(asyncio.wait_for(main(cancel), TIMEOUT))


@pytest.mark.parametrize(("policy", "expected"), [("accept", [(1, 1)]), ("drop", [(1, 0)]), ("pending", [])])
def test_undecided_packets(policy: str, expected: list[tuple[int, int]]) -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed()

        async def handler(packet: Packet) -> None:
            await asyncio.sleep(0.01)
            assert not kernel.judged, "the policy is for when the handler has ended"
            queue.stop()

        async with AsyncQueue(1, transport=kernel, undecided=policy) as queue:
            await queue.run(handler)
            await asyncio.sleep(0)
            assert words(kernel) == expected

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_handlers_that_would_not_run_are_refused() -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(2)
        async with AsyncQueue(1, transport=kernel, undecided="accept") as queue:
            for kind in ("generator", "async generator"):
                handler, words = NOT_RUN[kind]
                with pytest.raises(TypeError, match=words):
                    await queue.run(handler)
            assert queue.counters.received == 0
            with pytest.raises(TypeError, match=r"returned a coroutine.*pass the async function itself to run, or"):
                await queue.run(lambda packet: NOT_RUN["async function"][0](packet))
            assert not kernel.judged
            assert [packet.id for packet in queue.pending] == [1]

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_callable_objects_may_be_async() -> None:
    class Handler:
        async def __call__(self, packet: Packet) -> None:
            await asyncio.sleep(0)
            packet.drop()
            queue.stop()

    async def main() -> None:
        global queue
        kernel = FakeKernel()
        kernel.feed()
        async with AsyncQueue(1, transport=kernel) as queue:
            await queue.run(Handler())
        assert words(kernel) == [(1, 0)]

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


queue: AsyncQueue


def test_close_ends_a_run_elsewhere() -> None:
    async def main() -> None:
        queue = AsyncQueue(1, transport=FakeKernel())
        await queue.open()
        task = asyncio.ensure_future(queue.run(print))
        await at_rest(queue)
        with pytest.raises(nfnet.BusyReadingError):
            await queue.run(print)
        await queue.close()
        await queue.close()
        await task
        with pytest.raises(nfnet.ClosedError):
            queue.fileno()

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_a_second_run_is_refused_and_does_no_harm() -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(3)
        go = asyncio.Event()

        async def handler(packet: Packet) -> None:
            await go.wait()
            packet.accept()

        async with AsyncQueue(1, transport=kernel, undecided="drop") as queue:
            task = asyncio.ensure_future(queue.run(handler, concurrency=1))
            while not queue.pending:
                await asyncio.sleep(0)
            for second in (handler, print):
                with pytest.raises(nfnet.BusyReadingError):
                    await queue.run(second)
            with pytest.raises(nfnet.BusyReadingError):
                await anext(aiter(queue))
            go.set()
            while len(kernel.judged) < 3:
                await asyncio.sleep(0)
            queue.stop()
            await task
        assert words(kernel) == [(1, 1), (2, 1), (3, 1)]

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_a_second_run_does_not_touch_the_packets_of_one_that_is_being_cancelled() -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(3)
        cancelled, cleaned_up = asyncio.Event(), asyncio.Event()

        async def handler(packet: Packet) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                await cleaned_up.wait()
                raise

        async with AsyncQueue(1, transport=kernel, on_error="drop") as queue:
            task = asyncio.ensure_future(queue.run(handler))
            while len(queue.pending) < 3:
                await asyncio.sleep(0)
            task.cancel()
            await cancelled.wait()
            with pytest.raises(nfnet.BusyReadingError):
                await queue.run(handler)
            cleaned_up.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            queue.flush()
            assert not kernel.judged
            assert len(queue.pending) == 3

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


@pytest.mark.parametrize("kind", ["plain", "async", "iteration"])
def test_stop_ends_before_the_next_packet_and_the_next_run_goes_on(kind: str) -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(5)
        seen: list[int] = []

        def plain(packet: Packet) -> None:
            seen.append(packet.id)
            packet.accept()
            if len(seen) in (2, 5):
                queue.stop()

        async def handler(packet: Packet) -> None:
            await asyncio.sleep(0)
            plain(packet)

        async with AsyncQueue(1, transport=kernel) as queue:
            for expected in (2, 5):
                if kind == "plain":
                    await queue.run(plain)
                elif kind == "async":
                    await queue.run(handler, concurrency=1)
                else:
                    async for packet in queue:
                        plain(packet)
                assert len(seen) == expected
        assert words(kernel) == [(number, 1) for number in range(1, 6)]

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_a_signal_handler_may_stop_an_iteration_at_work() -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(2)

        receive = kernel.receive

        def interrupted(into: list[bytes], limit: int) -> bool:
            queue.stop()
            return receive(into, limit)

        kernel.receive = interrupted  # type: ignore[method-assign]
        async with AsyncQueue(1, transport=kernel) as queue:
            assert [packet.id async for packet in queue] == []
            kernel.receive = receive  # type: ignore[method-assign]
            async for packet in queue:
                packet.accept()
                if packet.id == 2:
                    break
        assert words(kernel) == [(1, 1), (2, 1)]

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_an_iteration_that_is_left_holds_nothing() -> None:
    """The socket of an open queue that is no longer referenced is closed, although the loop continues."""

    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(1)
        queue = AsyncQueue(1, transport=kernel)
        await queue.open()

        async for packet in queue:
            packet.accept()
            if packet.id == 2:
                break
            asyncio.get_running_loop().call_later(0.01, kernel.feed)
        binding = weakref.ref(queue._reader._bound())
        del queue, packet
        gc.collect()
        gc.collect()  # PyPy calls finalizers behind the first one
        assert binding() is None

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_what_tasks_that_were_stopped_left_comes_in_the_next_run() -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(3)

        async def first(packet: Packet) -> None:
            await asyncio.sleep(0)
            packet.accept()
            queue.stop()

        def rest(packet: Packet) -> None:
            packet.drop()
            if packet.id == 3:
                queue.stop()

        async with AsyncQueue(1, transport=kernel) as queue:
            await queue.run(first, concurrency=1)
            await queue.run(rest)
        assert words(kernel) == [(1, 1), (2, 0), (3, 0)]

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_a_run_does_not_go_on_with_another_binding() -> None:
    async def main() -> None:
        queue = AsyncQueue(1, transport=FakeKernel())
        await queue.open()
        task = asyncio.ensure_future(queue.run(lambda packet: packet.drop()))
        await at_rest(queue)
        await queue.close()
        kernel = queue._reader._given_transport = FakeKernel()
        await queue.open()
        kernel.feed()
        await task
        assert not kernel.judged
        await queue.close()

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_closing_while_tasks_hold_packets_ends_the_run() -> None:
    async def main(**options: Any) -> None:
        kernel = FakeKernel()
        kernel.feed(2)
        go = asyncio.Event()

        async def handler(packet: Packet) -> None:
            await go.wait()
            packet.accept()

        async with AsyncQueue(1, transport=kernel, **options) as queue:
            task = asyncio.ensure_future(queue.run(handler))
            while len(queue.pending) < 2:
                await asyncio.sleep(0)
            await queue.close()
            go.set()
            await task

    for options in ({}, {"undecided": "drop"}, {"on_error": "accept"}):
        asyncio.run(asyncio.wait_for(main(**options), TIMEOUT))


def test_a_handler_that_is_cancelled_from_within() -> None:
    async def main(policy: str) -> None:
        kernel = FakeKernel()
        kernel.feed()

        async def handler(packet: Packet) -> None:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            queue.stop()
            await future

        async with AsyncQueue(1, transport=kernel, on_error=policy) as queue:
            if policy == "raise":
                with pytest.raises(asyncio.CancelledError):
                    await queue.run(handler)
            else:
                await queue.run(handler)
                await asyncio.sleep(0)
                assert words(kernel) == [(1, 0)]

    for policy in ("raise", "drop"):
        asyncio.run(asyncio.wait_for(main(policy), TIMEOUT))


def test_an_iteration_cannot_treat_errors() -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed()
        async with AsyncQueue(1, transport=kernel, on_error="drop") as queue:
            with pytest.raises(nfnet.ArgumentError, match="on_error"):
                aiter(queue)
            assert not kernel.judged

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_verdicts_outside_of_tasks_leave_at_once() -> None:
    kernel = FakeKernel()
    kernel.feed(3)
    loop = asyncio.new_event_loop()
    queue = AsyncQueue(1, transport=kernel)
    kept: list[Packet] = []

    async def take() -> None:
        await queue.open()
        await queue.run(lambda packet: (kept.append(packet), len(kept) == 3 and queue.stop()))

    loop.run_until_complete(take())
    kept[0].accept()
    assert words(kernel) == [(1, 1)], "no loop runs"

    async def idle() -> None:
        loop.call_soon(kept[1].accept)
        while len(kernel.judged) < 2:
            await asyncio.sleep(0)
        assert words(kernel) == [(1, 1), (2, 1)]

    loop.run_until_complete(asyncio.wait_for(idle(), TIMEOUT))
    loop.run_until_complete(queue.close())
    loop.close()


def test_verdict_from_another_thread() -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed()
        async with AsyncQueue(1, transport=kernel) as queue:
            packet = await anext(aiter(queue))
            thread = threading.Thread(target=packet.accept)
            thread.start()
            thread.join()
            assert words(kernel) == [(1, 1)], "at once: nobody else would send it"

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


class Counting(FakeKernel):
    reads = 0

    def receive(self, into: list[bytes], limit: int) -> bool:
        self.reads += 1
        return super().receive(into, limit)


def test_a_queue_without_room_leaves_the_loop_alone() -> None:
    async def main() -> None:
        kernel = Counting()
        kernel.feed(3)
        started = asyncio.Event()

        async def busy(packet: Packet) -> None:
            started.set()
            await asyncio.Event().wait()

        async with AsyncQueue(1, transport=kernel) as queue:
            task = asyncio.ensure_future(queue.run(busy, concurrency=1))
            await started.wait()
            await at_rest(queue)
            reads = kernel.reads
            for _ in range(100):  # turns of the loop, in each of which it could read
                await asyncio.sleep(0)
            assert kernel.reads == reads, "two wait, but there is no room for them"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_log(run: Any) -> None:
    class Kernel(FakeKernel):
        def send(self, datagram: bytes) -> None: ...

    async def main() -> None:
        kernel = Kernel()
        seen = []
        async with AsyncLog(5, transport=kernel) as log:
            kernel.deliver(testing.log_message(prefix="a") + testing.log_message(prefix="b"))
            async for message in log:
                seen.append(message.prefix)
                if len(seen) == 2:
                    break

            def plain(message: nfnet.LogMessage) -> None:
                seen.append(message.prefix)
                log.stop()

            kernel.deliver(testing.log_message(prefix="c"))
            await log.run(plain)
        kernel = Kernel()
        log = AsyncLog(5, transport=kernel)
        await log.open()

        async def later(message: nfnet.LogMessage) -> None:
            await asyncio.sleep(0)
            seen.append(message.prefix)
            log.stop()

        kernel.deliver(testing.log_message(prefix="d"))
        await log.run(later)
        assert seen == ["a", "b", "c", "d"]
        assert log.counters.received == 1
        await log.close()

    run(main)


def test_arguments() -> None:
    with pytest.raises(nfnet.ArgumentError):
        AsyncQueue(70000)
    with pytest.raises(TypeError):
        AsyncQueue(1, colour="red")
    queue = AsyncQueue(1, transport=FakeKernel())
    assert repr(queue) == "<AsyncQueue 1: closed>"
    assert repr(AsyncLog(5)) == "<AsyncLog 5: closed>"

    async def main() -> None:
        with pytest.raises(nfnet.ClosedError):
            await queue.run(print)
        async with queue:
            with pytest.raises(nfnet.ArgumentError, match="concurrency"):
                await queue.run(print, concurrency=0)

    asyncio.run(main())


def test_trio() -> None:
    """Any loop that can wait for a descriptor can read a queue, as the documentation says."""
    trio = pytest.importorskip("trio")
    kernel = FakeKernel()
    kernel.feed(3)

    async def main() -> None:
        with nfnet.Queue(1, transport=kernel) as queue:
            with trio.fail_after(TIMEOUT):
                while len(kernel.judged) < 6:
                    if not queue.process(lambda packet: packet.accept()):
                        await trio.lowlevel.wait_readable(queue.fileno())
                    if len(kernel.judged) == 3:
                        kernel.feed(3)

    trio.run(main)
    assert words(kernel) == [(number, 1) for number in range(1, 7)]


@pytest.mark.parametrize("kind", ["iteration", "plain", "async"])
def test_a_recording_ends(run: Any, kind: str) -> None:
    async def main() -> None:
        replay = nfnet.replay(FIXTURES / "queue-output-ipv4.pcapng")
        async with AsyncQueue(1, transport=replay) as queue:

            async def later(packet: Packet) -> None:
                await asyncio.sleep(0.001)
                packet.accept()

            if kind == "iteration":
                async for packet in queue:
                    packet.accept()
            else:
                await queue.run(later if kind == "async" else Packet.accept, concurrency=3)
            assert queue.counters.accepted == 8
        assert len(replay.verdicts) == 8

    run(main)


@pytest.mark.parametrize("kind", ["iteration", "plain", "async"])
def test_a_recording_of_a_log_ends(run: Any, kind: str) -> None:
    async def main() -> None:
        found: list[Any] = []

        async def later(message: nfnet.LogMessage) -> None:
            found.append(message)

        async with AsyncLog(5, transport=nfnet.replay(FIXTURES / "log-input-ipv4.pcapng")) as log:
            if kind == "iteration":
                found += [message async for message in log]
            else:
                await log.run(later if kind == "async" else found.append)
        assert len(found) == 6

    run(main)
