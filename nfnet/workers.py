"""Several queues, each with a process of its own: for handlers that are busier than one core."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from ctypes import c_bool, c_uint64
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

from ._arguments import check, check_handler
from ._io.native import select
from ._io.poller import Poller
from ._typing import Unpack
from .errors import ArgumentError, ClosedError, NfnetError
from .queue import Handler, Queue, WorkerOptions
from .stats import QueueCounters

_GIVE_UP = 5  # times in a row that a worker may end as soon as it began
_QUICKLY = 1.0  # seconds after which a worker did not end as soon as it began, even if no packet came
_PATIENCE = 5.0  # seconds for all workers to end when they are asked to
_REPORT_EVERY = 0.5  # seconds
_PID_SIZE = 4  # bytes

# All counters but `refused`, which is no number.
_NAMES = tuple(name for name in QueueCounters._fields if name != "refused")

_log = logging.getLogger("nfnet")


class Workers:
    """Processes that run a handler on the packets of several queues.

        with nfnet.rules.queue(range(0, 4), hook="forward"), nfnet.Workers(handler, range(0, 4)) as workers:
            workers.wait()

    handler: what is called with each packet, in one of the processes: they are forked, and share nothing that changes.
    queues: numbers of the queues, as in the rule that fans packets out to them.
    processes: how many processes; one a queue if not given. With fewer, each serves several, a thread a queue.
    options: those of `Queue`, but for ``transport`` and ``record``: processes cannot share one, or write one file.

    A worker that ends, because its handler raised or it was killed, is started anew; meanwhile its packets pass, if the
    rule says ``bypass``. Entering the context starts them, leaving it stops them all.

    Raises ArgumentError at once. `wait` raises NfnetError if a worker ends as soon as it begins, five times in a row:
    it cannot open its queues, or it ends within a second of its start and without a packet. A worker that ends because
    of a packet is started anew each time.
    """

    def __init__(
        self,
        handler: Handler,
        queues: Sequence[int] = range(4),
        processes: int | None = None,
        **options: Unpack[WorkerOptions],
    ) -> None:
        check_handler(handler, "workers take plain functions")
        nums = list(queues)
        if not nums or len(set(nums)) != len(nums):
            raise ArgumentError(f"queues are {nums} and must be at least one, none of them twice")
        count = len(nums) if processes is None else check("processes", processes, 1, len(nums))
        for name in ("transport", "record"):
            if options.get(name) is not None:
                raise ArgumentError(f"{name} is not for workers: each is a process of its own")
        for num in nums:
            Queue(num, **options)  # says what cannot be
        self._handler, self._options = handler, options
        self._shares = [nums[start::count] for start in range(count)]
        self._workers: list[_Worker] = []
        # A plain attribute: an Event has a lock, which a signal handler that calls `stop` may find locked for ever.
        self._stopping = False
        # As long as this object lives: `stop` may come at any time, even while `close` is at work.
        self._waiter = Poller()
        self._running = False

    def start(self) -> None:
        """Start the processes, and count from 0. Raises NfnetError if they are running; after `close` they are not."""
        if self._running:
            raise NfnetError("the workers are running already")
        self._running = True
        self._stopping = False
        self._waiter.reset()
        self._workers = [_Worker(self._handler, share, self._options) for share in self._shares]
        try:
            for worker in self._workers:
                worker.start()
        except BaseException:
            self.close()
            raise

    def wait(self) -> None:
        """Start anew what ends, until `stop`. Raises NfnetError if a worker ends as soon as it begins, five times."""
        from multiprocessing.connection import wait

        while not self._stopping:
            ended = wait([self._waiter.fileno(), *(worker.sentinel for worker in self._workers)], timeout=1.0)
            for worker in self._workers:
                if worker.sentinel in ended and not self._stopping:
                    worker.restart()

    def stop(self) -> None:
        """End `wait`; from any thread or a signal handler."""
        self._stopping = True
        self._waiter.wake()

    def close(self) -> None:
        """Stop the processes; may be called twice. Those that do not end within five seconds are killed."""
        self._stopping = True
        for worker in self._workers:
            worker.ask_to_end()
        deadline = time.monotonic() + _PATIENCE
        try:
            for worker in self._workers:
                worker.wait_until(deadline)
        finally:  # an interrupt ends the wait, and leaves no process behind
            for worker in self._workers:
                worker.end()
            self._running = False

    def __enter__(self) -> Workers:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def counters(self) -> QueueCounters:
        """The sum over all queues, of workers that ended, too; half a second old while they run.

        Without what a worker did in the last half second before it was killed. ``refused`` is not added up: {}.
        """
        sums = {name: sum(worker.count(name) for worker in self._workers) for name in _NAMES}
        return QueueCounters(**sums, refused={})

    @property
    def restarts(self) -> int:
        """How often a worker was started anew."""
        return sum(worker.restarts for worker in self._workers)


def run_workers(
    handler: Handler,
    queues: Sequence[int] = range(4),
    processes: int | None = None,
    **options: Unpack[WorkerOptions],
) -> QueueCounters:
    """Run `Workers` until SIGINT or SIGTERM, and return what they did in all; to be called in the main thread.

        with nfnet.rules.queue(range(0, 4), hook="forward"):
            nfnet.run_workers(handler, queues=range(0, 4))

    Arguments as for `Workers`. Raises NfnetError as `Workers.wait`.
    """
    workers = Workers(handler, queues, processes, **options)

    def stop(number: int, frame: object) -> None:
        workers.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with workers:
            workers.wait()
    finally:
        for number, handling in before.items():
            signal.signal(number, handling)
    return workers.counters


class _Worker:
    """One process, and its successors."""

    def __init__(self, handler: Handler, nums: list[int], options: WorkerOptions) -> None:
        from multiprocessing import get_context
        from multiprocessing.sharedctypes import RawArray, RawValue

        self._handler, self._nums, self._options = handler, nums, options
        self._context = get_context("fork")
        # Of the process that runs, and of those before it; a child writes, the parent reads.
        self._now = RawArray(c_uint64, len(_NAMES))
        self._before = [0] * len(_NAMES)
        self._opened = RawValue(c_bool, False)  # whether the process that runs had all of its queues open
        self._quick = 0
        self._parent = os.getpid()
        self._process: Any = None
        self.restarts = 0

    def start(self) -> None:
        self._began = time.monotonic()
        self._opened.value = False
        told, tell = os.pipe()
        process = self._context.Process(target=self._begin, args=(tell,), name=f"nfnet-queue-{self._nums[0]}")
        # A signal that comes before the child has handlers of its own would be for the parent's.
        signals = (signal.SIGINT, signal.SIGTERM)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            process.start()
            self._process = process
        except BaseException:
            # There may be a child all the same. Under ``-W error`` `os.fork` of Python 3.15 raises DeprecationWarning
            # in the parent, because it has several threads, when the child exists already; a signal handler may raise
            # then in any version.
            os.close(tell)
            tell = -1
            _end_child(told)
            raise
        finally:
            os.close(told)
            if tell >= 0:
                os.close(tell)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def sentinel(self) -> int:
        return int(self._process.sentinel)

    def count(self, name: str) -> int:
        place = _NAMES.index(name)
        return self._before[place] + self._now[place]

    def restart(self) -> None:
        """It has ended: start the next one."""
        self._process.join()
        status = self._process.exitcode
        self._quick = 0 if self._worked(status) else self._quick + 1
        if self._quick >= _GIVE_UP:
            text = f"the worker of queue {self._nums[0]} ended as soon as it began, {self._quick} times in a row"
            raise NfnetError(f"{text}, {_why(status)}")
        _log.warning("the worker of queue %d ended, %s; starting another", self._nums[0], _why(status))
        self._before = [before + now for before, now in zip(self._before, self._now)]
        self._now[:] = [0] * len(_NAMES)
        self.restarts += 1
        self.start()

    def _worked(self, status: int | None) -> bool:
        """Whether the process that ended had begun its work."""
        if not self._opened.value:
            return False
        # One that was killed could not say that it had a packet, and the packet may be the reason.
        killed = status is not None and status < 0
        received = self._now[_NAMES.index("received")]
        return received > 0 or killed or time.monotonic() - self._began >= _QUICKLY

    def ask_to_end(self) -> None:
        if self._process is not None and self._process.is_alive():
            self._process.terminate()

    def wait_until(self, deadline: float) -> None:
        if self._process is not None:
            self._process.join(max(0.0, deadline - time.monotonic()))

    def end(self) -> None:
        if self._process is None:
            return
        if self._process.is_alive():
            _log.warning("the worker of queue %d did not end when asked to, and was killed", self._nums[0])
            self._process.kill()
        self._process.join()

    # --- in the process

    def _begin(self, tell: int) -> None:
        os.write(tell, os.getpid().to_bytes(_PID_SIZE, "big"))
        os.close(tell)
        self._work()

    def _work(self) -> None:
        parent = self._parent
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent sees to it
        queues = [Queue(num, **self._options) for num in self._nums]

        stopped = False

        def stop(number: int, frame: object) -> None:
            nonlocal stopped
            stopped = True
            for queue in queues:
                queue.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
        if os.getppid() != parent:
            return
        done: SimpleQueue[None] = SimpleQueue()
        reporter = threading.Thread(target=self._report_now_and_then, args=(queues, done, parent), daemon=True)
        reporter.start()
        try:
            for queue in queues:
                queue.open()
            self._opened.value = True
            if not stopped:  # before it was open
                self._run(queues)
        finally:
            done.put(None)
            reporter.join()
            for queue in queues:
                queue.close()
            self._report(queues)

    def _run(self, queues: list[Queue]) -> None:
        errors: list[BaseException] = []

        def run(queue: Queue) -> None:
            try:
                queue.run(self._handler)
            except BaseException as error:
                errors.append(error)
                for other in queues:
                    other.stop()

        threads = [threading.Thread(target=run, args=(queue,)) for queue in queues[1:]]
        for thread in threads:
            thread.start()
        try:
            run(queues[0])
        finally:
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]

    def _report_now_and_then(self, queues: list[Queue], done: SimpleQueue[None], parent: int) -> None:
        deadline = None
        while True:
            with suppress(Empty):
                done.get(timeout=_REPORT_EVERY)
                return
            self._report(queues)
            # If the parent is killed the worker must not go on: nobody would ever end it.
            if os.getppid() != parent:
                if deadline is None:
                    deadline = time.monotonic() + _PATIENCE
                    os.kill(os.getpid(), signal.SIGTERM)
                elif time.monotonic() > deadline:  # the handler does not come to an end
                    os._exit(1)

    def _report(self, queues: list[Queue]) -> None:
        counters = []
        for queue in queues:
            with suppress(ClosedError):  # it was never open
                counters.append(queue.counters)
        self._now[:] = [sum(getattr(each, name) for each in counters) for name in _NAMES]


def _end_child(told: int) -> None:
    """Kill the child that wrote its process id to a pipe, if there is one. The parent has closed the other end."""
    with select.epoll() as poll:  # in case that another thread forks now: its child has the pipe open
        poll.register(told, select.EPOLLIN)
        written = os.read(told, _PID_SIZE) if poll.poll(_PATIENCE) else b""
    if written:
        pid = int.from_bytes(written, "big")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _why(status: int | None) -> str:
    if status is not None and status < 0:
        return f"killed by signal {-status} ({signal.strsignal(-status)})"
    return f"with status {status}"
