"""Several queues, each with its own process: for handlers that need more than one core."""

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
from ._io.system import check_linux
from ._typing import Unpack
from .errors import ArgumentError, ClosedError, NfnetError
from .queue import Handler, Queue, WorkerOptions
from .stats import QueueCounters

_GIVE_UP = 5  # times in a row that a worker may end just after its start
_QUICKLY = 1.0  # seconds: a worker that ran longer did not end just after its start, even if it got no packet
_PATIENCE = 5.0  # seconds in which all workers must end after a request to stop
_REPORT_EVERY = 0.5  # seconds
_PID_SIZE = 4  # bytes

# All counters except `refused`, which is not a number.
_NAMES = tuple(name for name in QueueCounters._fields if name != "refused")

_log = logging.getLogger("nfnet")


class Workers:
    """Processes that run a handler on the packets of several queues.

        with nfnet.rules.queue(range(0, 4), hook="forward"), nfnet.Workers(handler, range(0, 4)) as workers:
            workers.wait()

    handler: called with each packet, in one of the processes. They are forked and share no variables.
    queues: numbers of the queues, as in the rule that distributes packets to them.
    processes: how many processes (default: one for each queue). With fewer, each process reads several queues, with one
        thread for each queue.
    options: those of `Queue`, except ``transport`` and ``record``: processes cannot share a transport or a file.

    A worker that ends, because its handler raised or it was killed, is restarted; meanwhile the kernel accepts its
    packets, if the rule has ``bypass``. Entering the context starts the workers, leaving it stops them.

    Raises ArgumentError at once. `wait` raises NfnetError if a worker ends just after its start, five times in a row:
    it cannot open its queues, or it ends within a second and without a packet. A worker that ends because of a packet
    is restarted each time.
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
            Queue(num, **options)  # raises ArgumentError for invalid options
        self._handler, self._options = handler, options
        self._shares = [nums[start::count] for start in range(count)]
        self._workers: list[_Worker] = []
        # A plain attribute: a signal handler that calls `stop` could wait for ever for the lock of an Event.
        self._stopping = False
        # Kept as long as this object lives: `stop` can be called at any time, even while `close` runs.
        self._waiter = Poller()
        self._running = False

    def start(self) -> None:
        """Start the processes, with counters at 0. Raises NfnetError if they are running; `close` ends them."""
        if self._running:
            raise NfnetError("the workers are running already")
        check_linux("starting workers")
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
        """Restart workers that end, until `stop`. Raises NfnetError if one ends just after its start, five times."""
        from multiprocessing.connection import wait

        while not self._stopping:
            ended = wait([self._waiter.fileno(), *(worker.sentinel for worker in self._workers)], timeout=1.0)
            for worker in self._workers:
                if worker.sentinel in ended and not self._stopping:
                    worker.restart()

    def stop(self) -> None:
        """End `wait`. Can be called from any thread or a signal handler."""
        self._stopping = True
        self._waiter.wake()

    def close(self) -> None:
        """Stop the processes; can be called twice. Those that do not end within five seconds are killed."""
        self._stopping = True
        for worker in self._workers:
            worker.ask_to_end()
        deadline = time.monotonic() + _PATIENCE
        try:
            for worker in self._workers:
                worker.wait_until(deadline)
        finally:  # KeyboardInterrupt ends the wait, but no process is left running
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
        """The sums over all queues, including workers that ended; up to half a second old while the workers run.

        The counts of the last half second before a worker was killed are missing. ``refused`` is always {}.
        """
        sums = {name: sum(worker.count(name) for worker in self._workers) for name in _NAMES}
        return QueueCounters(**sums, refused={})

    @property
    def restarts(self) -> int:
        """How often workers were restarted."""
        return sum(worker.restarts for worker in self._workers)


def run_workers(
    handler: Handler,
    queues: Sequence[int] = range(4),
    processes: int | None = None,
    **options: Unpack[WorkerOptions],
) -> QueueCounters:
    """Run `Workers` until SIGINT or SIGTERM, and return their counters. Must be called in the main thread.

        with nfnet.rules.queue(range(0, 4), hook="forward"):
            nfnet.run_workers(handler, queues=range(0, 4))

    The arguments are those of `Workers`. Raises the errors of `Workers` and `Workers.wait`.
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
    """One worker process, and those that replace it."""

    def __init__(self, handler: Handler, nums: list[int], options: WorkerOptions) -> None:
        from multiprocessing import get_context
        from multiprocessing.sharedctypes import RawArray, RawValue

        self._handler, self._nums, self._options = handler, nums, options
        self._context = get_context("fork")
        # The counts of the running process, and of those before it; the child writes, the parent reads.
        self._now = RawArray(c_uint64, len(_NAMES))
        self._before = [0] * len(_NAMES)
        self._opened = RawValue(c_bool, False)  # whether the running process has opened all of its queues
        self._quick = 0
        self._parent = os.getpid()
        self._process: Any = None
        self.restarts = 0

    def start(self) -> None:
        self._began = time.monotonic()
        self._opened.value = False
        told, tell = os.pipe()
        process = self._context.Process(target=self._begin, args=(tell,), name=f"nfnet-queue-{self._nums[0]}")
        # A signal that arrives before the child has set its own handlers would call the parent's.
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
        """Start the next process after this one has ended."""
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
        """Return whether the ended process had begun its work."""
        if not self._opened.value:
            return False
        # A killed process could not report that it had a packet, and the packet may be the cause.
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
            _log.warning("the worker of queue %d did not stop in time, and was killed", self._nums[0])
            self._process.kill()
        self._process.join()

    # --- in the process

    def _begin(self, tell: int) -> None:
        os.write(tell, os.getpid().to_bytes(_PID_SIZE, "big"))
        os.close(tell)
        self._work()

    def _work(self) -> None:
        parent = self._parent
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent handles it
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
            if not stopped:  # a signal arrived before the queue was open
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
            # If the parent was killed, the worker must end, because no other process would stop it.
            if os.getppid() != parent:
                if deadline is None:
                    deadline = time.monotonic() + _PATIENCE
                    os.kill(os.getpid(), signal.SIGTERM)
                elif time.monotonic() > deadline:  # the handler does not return
                    os._exit(1)

    def _report(self, queues: list[Queue]) -> None:
        counters = []
        for queue in queues:
            with suppress(ClosedError):  # the queue was never open
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
