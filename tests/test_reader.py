"""What queues and logs share: opening, refusals, closing, and errors in the loop."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from operator import length_hint
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import AsyncQueue, Packet, Queue
from nfnet._core import flusher
from nfnet.errors import KernelError, NotPermittedError
from nfnet.protocol import nfqnl

from .kernel import FakeKernel, error_message
from .live.conftest import wait_for

TIMEOUT = 30.0


def accept(packet: Packet) -> None:
    packet.accept()


class Refusing(FakeKernel):
    """Answers one request after the other with these errors; None: it is granted."""

    def __init__(self, *answers: KernelError | None) -> None:
        super().__init__()
        self.answers = list(answers)

    def request(self, build: Callable[[int], bytes], operation: str) -> None:
        if self.answers and (error := self.answers.pop(0)) is not None:
            raise error
        super().request(build, operation)


NOT_PERMITTED = NotPermittedError("asking", errno.EPERM)


def test_transport_must_be_one() -> None:
    with pytest.raises(nfnet.ArgumentTypeError, match=r"transport .* an nfnet.Transport"):
        Queue(1, transport=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("second", [None, KernelError("asking", errno.EBUSY)])
def test_a_queue_that_somebody_else_has(second: KernelError | None) -> None:
    """The kernel answers EPERM to that, too. The answer to a second request distinguishes the two causes."""
    with pytest.raises(nfnet.BusyError, match="binding queue 1: another socket has it"):
        Queue(1, transport=Refusing(NOT_PERMITTED, second)).open()


def test_a_queue_that_this_process_may_not_have() -> None:
    with pytest.raises(NotPermittedError) as caught:
        Queue(1, transport=Refusing(NOT_PERMITTED, NOT_PERMITTED)).open()
    assert not isinstance(caught.value, nfnet.BusyError)


def test_a_recording_of_what_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "session.pcapng"
    with pytest.raises(nfnet.ArgumentError, match="its transport, a FakeKernel, cannot be"):
        Queue(1, transport=FakeKernel(), record=path).open()
    assert not path.exists()


def test_a_recording_of_a_queue_in_no_namespace_leaves_its_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "session.pcapng"
    path.write_bytes(b"an old one")
    queue = Queue(1, netns=str(tmp_path / "no namespace"), record=path)
    with pytest.raises(nfnet.NfnetError):
        queue.open()
    assert path.read_bytes() == b"an old one"
    path.unlink()


def test_what_was_never_open_says_so() -> None:
    queue = Queue(1)
    for use in (lambda: queue.counters, queue.fileno, queue.fetch, lambda: queue.process(accept), lambda: list(queue)):
        with pytest.raises(nfnet.ClosedError, match="queue 1"):
            use()
    queue.stop()
    queue.close()


def test_a_transport_that_ends_without_being_closed_here_is_an_error() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.receive = closed  # type: ignore[method-assign]
        with pytest.raises(nfnet.ClosedError, match="the other end"):
            queue.process(accept)


def closed(into: list[bytes], limit: int) -> bool:
    raise nfnet.ClosedError("the other end is gone")


def test_a_transport_that_ends_because_the_queue_was_closed_meanwhile_ends_the_loop() -> None:
    class Kernel(FakeKernel):
        def receive(self, into: list[bytes], limit: int) -> bool:
            queue.close()
            return closed(into, limit)

    queue = Queue(1, transport=Kernel())
    queue.open()
    assert queue.process(accept) == 0


class Blocking(FakeKernel):
    """Delivers packets while the loop waits for them, and ends."""

    def __init__(self, *coming: bytes) -> None:
        super().__init__(ends=True)
        self._coming = iter(coming)

    @property
    def incoming(self) -> Iterator[bytes]:
        return self._coming

    def receive(self, into: list[bytes], limit: int) -> bool:
        return length_hint(self._coming) > 0


def test_a_refused_verdict_that_comes_while_the_loop_waits_is_raised() -> None:
    """KernelError is an OSError, as are the errors of the transport's iterator."""
    with (
        Queue(1, transport=Blocking(error_message(errno.EINVAL, nfqnl.verdict(1, 1, 1)))) as queue,
        pytest.raises(KernelError) as caught,
    ):
        queue.run(accept)
    assert caught.value.errno == errno.EINVAL


def test_what_a_forked_child_may_have_read_is_not_counted_as_lost() -> None:
    kernel = FakeKernel(ends=True)
    kernel.inherit = True
    with Queue(1, transport=kernel) as queue:
        kernel.feed(1)
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        kernel.skip(5)
        kernel.feed(1)
        queue.run(accept)
        assert queue.counters.lost == 0


def test_without_threads_verdicts_leave_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("nfnet._core.flusher.start_new_thread", refuse)
    kernel = FakeKernel()
    waiting: list[int] = []

    def handler(packet: Packet) -> None:
        packet.accept()
        waiting.append(len(kernel.queued))

    with Queue(1, transport=kernel) as queue:
        kernel.feed(20)
        assert queue.process(handler) == 20
    assert waiting == list(range(19, -1, -1))


# --- the thread that sends verdicts when the handler keeps the loop from doing so


def test_verdicts_leave_while_the_handler_waits() -> None:
    """For example because of an error that the packet causes."""
    kernel = FakeKernel()

    def handler(packet: Packet) -> None:
        packet.accept()
        if packet.id == 10:
            assert wait_for(lambda: 10 not in kernel.queued)
            assert list(kernel.queued) == list(range(11, 21))

    with Queue(1, transport=kernel) as queue:
        kernel.feed(20)
        assert queue.process(handler) == 20
        assert not kernel.queued


def test_the_thread_ends_when_there_are_no_verdicts_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher, "_LINGER", 2)
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        for _ in range(2):
            kernel.feed(20)
            queue.process(accept)
            assert not kernel.queued
            assert wait_for(lambda: not queue._bound()._flusher._running)


class Ledger:
    """Returns one after the other the verdict that has waited for the longest time."""

    closed = False

    def __init__(self, *oldest: str | None) -> None:
        self._oldest = list(oldest)
        self.flushed: list[int] = []

    def oldest_decided(self) -> str | None:
        return self._oldest.pop(0)

    def flush(self) -> None:
        self.flushed.append(len(self._oldest))
        raise nfnet.NfnetError("which the loop meets, too")


def test_what_is_collected_while_the_thread_ends_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher, "_LINGER", 2)
    # Two checks find nothing, one more precedes the end; a new verdict is found twice; then nothing.
    ledger = Ledger(None, None, "first", "first", "first", "second", None, None, None)
    thread = threading.Thread(target=flusher.Flusher(ledger)._run)  # type: ignore[arg-type]
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    assert ledger.flushed == [4]


# --- asyncio


def run(main: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main(), TIMEOUT))


async def iterate(queue: AsyncQueue) -> None:
    async for packet in queue:
        packet.accept()


def test_asyncio_what_was_never_open_says_so() -> None:
    async def main() -> None:
        queue = AsyncQueue(1, transport=FakeKernel())
        queue.stop()
        await queue.close()
        with pytest.raises(nfnet.ClosedError):
            queue.fileno()
        with pytest.raises(nfnet.ClosedError):
            await queue.run(accept)
        with pytest.raises(nfnet.ClosedError):
            async for _ in queue:
                pass

    run(main)


def test_asyncio_a_damaged_datagram_comes_out_of_the_iteration_and_the_rest_of_the_next() -> None:
    async def main() -> None:
        kernel = FakeKernel(ends=True)
        async with AsyncQueue(1, transport=kernel) as queue:
            assert queue.rcvbuf is None
            kernel.deliver(bytes(16))
            kernel.feed(2)
            with pytest.raises(nfnet.DecodeError):
                await iterate(queue)
            await iterate(queue)
            assert (queue.counters.accepted, queue.counters.malformed) == (2, 1)

    run(main)


@pytest.mark.parametrize("how", ["run", "iterate"])
def test_asyncio_stop_before_anything_came(how: str) -> None:
    async def main() -> None:
        kernel = FakeKernel()
        async with AsyncQueue(1, transport=kernel) as queue:
            task = asyncio.ensure_future(queue.run(accept) if how == "run" else iterate(queue))
            await asyncio.sleep(0)
            queue.stop()
            await task
            kernel.feed(1)  # for the next one, which is not stopped
            task = asyncio.ensure_future(queue.run(accept) if how == "run" else iterate(queue))
            while kernel.queued:
                await asyncio.sleep(0)
            queue.stop()
            await task
            assert queue.counters.accepted == 1

    run(main)


def test_asyncio_an_exit_in_a_handler_ends_the_program() -> None:
    """It is not an Exception, so the event loop itself raises it."""

    def leave(packet: Packet) -> None:
        packet.accept()
        raise SystemExit(3)

    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(1)
        async with AsyncQueue(1, transport=kernel) as queue:
            await queue.run(leave)

    with pytest.raises(SystemExit, match="3"):
        asyncio.run(main())


class Keeps(FakeKernel):
    """Reports several times that it has datagrams for which its descriptor is not readable."""

    looks = 5

    @property
    def kept(self) -> bool:
        self.looks -= 1
        return self.looks >= 0


def test_asyncio_what_the_descriptor_does_not_tell_of_is_not_waited_for() -> None:
    async def main() -> None:
        kernel = Keeps()
        async with AsyncQueue(1, transport=kernel) as queue:
            task = asyncio.ensure_future(iterate(queue))
            while kernel.looks >= 0:
                await asyncio.sleep(0)
            kernel.feed(2)
            while kernel.queued:
                await asyncio.sleep(0)
            queue.stop()
            await task
            assert queue.counters.accepted == 2

    run(main)


def test_asyncio_stop_comes_before_what_comes_at_the_same_time() -> None:
    async def main() -> None:
        kernel = FakeKernel()
        async with AsyncQueue(1, transport=kernel) as queue:
            task = asyncio.ensure_future(queue.run(accept))
            await asyncio.sleep(0)
            kernel.feed(1)
            queue.stop()
            await task
            assert list(kernel.queued) == [1]

    run(main)


def test_asyncio_what_nobody_waits_for_stays_where_it_is() -> None:
    async def main() -> None:
        kernel = FakeKernel()
        async with AsyncQueue(1, transport=kernel) as queue:
            packets = queue.__aiter__()
            first = asyncio.ensure_future(packets.__anext__())
            await asyncio.sleep(0)
            kernel.feed(1)
            (await first).accept()
            kernel.feed(1)
            for _ in range(5):
                await asyncio.sleep(0)
            assert queue.counters.received == 1
            (await packets.__anext__()).accept()
            assert (queue.counters.received, kernel.queued) == (2, {})

    run(main)


def test_asyncio_close_in_the_body_of_an_iteration_ends_it() -> None:
    async def main() -> None:
        kernel = FakeKernel()
        kernel.feed(1)
        async with AsyncQueue(1, transport=kernel) as queue:
            async for packet in queue:
                packet.accept()
                await queue.close()
            assert queue.counters.accepted == 1

    run(main)
