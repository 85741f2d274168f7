"""Passes batches to one output, and keeps those that it could not store.

With ``apart=True`` a thread of its own calls the output. If a call takes longer than a moment, the batch is put into
the store, and the collector continues with the other outputs. So every message is either stored by the output, or in
the store, before more messages are read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

from .._printable import counted
from ._batch import Batch
from ._output import Output, OutputError
from ._spool import Spool, Store

_MOMENT = 0.25  # seconds for which the other outputs wait for one
_AGAIN = 1.0  # seconds until the next try
_AT_A_TIME = 0.1  # seconds of storing kept messages before more are read from the kernel
_SAY_USUAL = 5.0  # seconds: a lock is usual, and soon released
_LAST_PATIENCE = 30.0  # seconds, at the end
_LAST_PATIENCE_SPOOLED = 2.0  # seconds: the rest stays in the spool for the next start

_Call = Callable[[], None]


class DeliveryState(NamedTuple):
    """The state of an output."""

    name: str
    stored: int
    """Messages that it has stored."""
    waiting: int
    """Messages that are kept for it, or that it is storing."""
    missed: int
    """Messages that it lost: there was no room to keep them, or it was broken."""
    spool: str | None
    """The file in which they are kept; None for memory."""
    spool_size: int
    """Bytes of messages that are kept."""
    error: str | None
    """The error of its last call; None if the call succeeded."""
    failing: float
    """Seconds since its first error in a row; 0 if there is none."""
    busy: float
    """Seconds since its current call began; 0 if there is none."""
    broken: bool
    """Whether it has failed for good."""

    def __str__(self) -> str:
        text = f"{self.name}: {self.stored:,} stored, {self.waiting:,} waiting"
        if self.waiting:
            text += f" in {self.spool or 'memory'} ({self.spool_size:,} bytes)"
        text += f", {self.missed:,} lost to it" if self.missed else ""
        if self.broken:
            text += f", given up: {self.error}"
        elif self.error is not None:
            text += f", failing for {self.failing:.0f} s: {self.error}"
        elif self.busy >= 1:
            text += f", busy for {self.busy:.0f} s"
        return text


class Delivery:
    """Passes batches to one output.

    report: a function that is called with a line for the operator.
    name: the name of the output in reports. Default: its own name.
    """

    def __init__(
        self, output: Output, store: Store, report: Callable[[str], None], *, name: str = "", apart: bool = False
    ) -> None:
        self.output = output
        self.store = store
        self.broken = False
        """Whether it has failed for good, and stores nothing more."""
        self.stored = 0
        """Messages that the output has stored."""
        self.missed = 0
        """Messages for which there was no room, or that arrived when it was broken."""
        self._report = report
        self._name = name or output.name
        self._worker = _Worker(self._name) if apart else None
        self._under_way: Callable[[], None] | None = None  # the function to call when the worker has finished
        self._unkept = 0  # messages of the current call that are not in the store, which was full
        self._reopen = False
        self._untold = 0  # missed messages that no record reports yet
        self._late = 0
        self._trouble: OutputError | None = None  # when the last try began
        self._last_trouble: OutputError | None = None
        self._since = self._tried = self._idled = 0.0
        self._said = False

    def say(self, text: str) -> None:
        """Report something about the output."""
        self._report(f"{self._name}: {text}")

    def put(self, batch: Batch) -> None:
        """Store a batch, or keep it. Raises no exception."""
        if self._untold:
            batch = Batch(batch.session, batch.messages, batch.lost + self._untold, batch.read_ns, batch.labels)
        self._look()
        if self.broken:
            self._miss(batch)
            return
        kept = started = False
        if self._under_way is None and not len(self.store) and self._trouble is None:

            def done() -> None:
                self.stored += len(batch)
                if kept:
                    self.store.remove_first()

            if self._do(partial(self.output.write, batch), done):
                self._untold = 0
                return
            started = self._under_way is not None
        kept = not self.broken and self.store.add(batch)
        if kept:
            self._untold = 0
        elif started:
            self._untold, self._unkept = 0, len(batch)
        else:
            self._miss(batch)

    def flush(self) -> None:
        """Store kept batches, unless that failed just now, and do what is due. Raises no exception."""
        self._look()
        now = time.monotonic()
        if self.broken or self._under_way is not None or (self._trouble is not None and now < self._tried + _AGAIN):
            return
        if not len(self.store):  # then the output was busy with `idle` or `reopen`
            self._trouble = None
        if self._reopen:
            self._do(self.output.reopen, self._reopened)
        while self._under_way is None and len(self.store) and time.monotonic() < now + _AT_A_TIME:
            if not self._store_first():
                break
        if self._trouble is None and self._under_way is None and now >= self._idled + 1.0:
            self._idled = now
            self._do(self.output.idle, lambda: None)

    def reopen(self) -> None:
        """Let the output reopen its files. Raises no exception."""
        self._reopen = True  # as soon as no call is in progress

    @property
    def reopening(self) -> bool:
        """Whether it has not yet reopened its files."""
        return self._reopen and not self.broken

    @property
    def failing(self) -> bool:
        """Whether its last call failed."""
        return self.broken or self._trouble is not None

    @property
    def has_room(self) -> bool:
        """Whether nothing that is read next is lost to it."""
        return not self.broken and self.store.has_room

    @property
    def busy(self) -> float:
        """Seconds since the current call of the output began; 0 if there is none."""
        return time.monotonic() - self._tried if self._under_way is not None else 0.0

    def state(self) -> DeliveryState:
        """Return the state of the output; from any thread."""
        trouble = self._trouble
        return DeliveryState(
            name=self._name,
            stored=self.stored,
            waiting=len(self.store) + self._unkept,
            missed=self.missed,
            spool=self.store.path if isinstance(self.store, Spool) else None,
            spool_size=self.store.size,
            error=None if trouble is None else str(trouble),
            failing=0.0 if trouble is None else time.monotonic() - self._since,
            busy=self.busy,
            broken=self.broken,
        )

    def finish(self, is_enough: Callable[[], bool]) -> bool:
        """Store the rest at the end, and return whether all is stored or kept on disk; report what is not.

        is_enough: returns whether the operator does not want to wait any longer.
        """
        spooled = isinstance(self.store, Spool)
        deadline = time.monotonic() + (_LAST_PATIENCE_SPOOLED if spooled else _LAST_PATIENCE)
        tries = 0
        while not self.broken and (len(self.store) or self._under_way is not None):
            self._look(0.1)
            if self._under_way is None and (not len(self.store) or self._store_first()):
                continue
            if self._under_way is None:
                tries += 1  # at least twice: after an error other than a lock the output reopens its file
            usual = self._trouble is None or self._trouble.usual
            if (tries > 1 or self._under_way is not None) and (
                is_enough() or time.monotonic() > deadline or not usual or (spooled and self._under_way is None)
            ):
                break
            if tries == 1 and usual and self._under_way is None and not spooled:
                text = f"waiting for it, for {_LAST_PATIENCE:.0f} s or until told to stop again"
                self.say(f"{self._trouble}; {text}")
        left = len(self.store)
        if spooled and left:
            self.say(f"{counted(left, 'message')} in the spool, to be stored the next time")
        elif left:
            self.missed += left
        if self.missed:
            self.say(f"{counted(self.missed, 'message')} not stored: {self._last_trouble or 'it is too slow'}")
        return not self.missed

    def close(self) -> None:
        """Close output and store. Raises no exception."""
        if self._worker is not None:
            self._worker.calls.put(None)
        if self._under_way is None:  # otherwise the worker is still calling it; the process ends nevertheless
            self.output.close()
        self.store.close()

    # --- one step

    def _reopened(self) -> None:
        self._reopen = False

    def _store_first(self) -> bool:
        batch = self.store.first()
        if batch is None:
            return False
        count = len(batch)

        def done() -> None:
            self.stored += count
            self._late += count
            self.store.remove_first()
            if not len(self.store):
                if self._said:
                    self.say(f"{counted(self._late, 'message')} stored late")
                self._said, self._late = False, 0

        return self._do(partial(self.output.write, batch), done)

    def _do(self, call: _Call, done: Callable[[], None]) -> bool:
        """Call the output, and return whether it has finished without an error."""
        self._tried = time.monotonic()
        self._under_way = done
        if self._worker is None:
            error = _outcome(call)
        else:
            self._worker.calls.put(call)
            try:
                error = self._worker.outcomes.get(timeout=_MOMENT)
            except Empty:
                return False
        return self._through(error)

    def _look(self, timeout: float = 0.0) -> None:
        """Look whether the current call has finished."""
        if self._worker is not None and self._under_way is not None:
            try:
                error = self._worker.outcomes.get(timeout=timeout) if timeout else self._worker.outcomes.get_nowait()
            except Empty:
                return
            self._through(error)

    def _through(self, error: OutputError | None) -> bool:
        done, self._under_way = self._under_way, None
        unkept, self._unkept = self._unkept, 0
        if error is not None:
            self.missed += unkept
            self._failed(error)
            return False
        self._trouble = None
        if done is not None:
            done()
        if not len(self.store):
            self._said = False  # report the next error, also if no message arrived during this one
        return True

    def _failed(self, error: OutputError) -> None:
        if self._trouble is None:
            self._since = self._tried
        self._trouble = self._last_trouble = error
        if error.lasting:
            self.broken = True
            self.missed += len(self.store)
            self.say(f"{error}; nothing more is stored there")
        elif not self._said and (not error.usual or self._tried >= self._since + _SAY_USUAL):
            self._said = True
            self.say(f"{error}; messages are kept, to be stored later")

    def _miss(self, batch: Batch) -> None:
        if not self.missed and not self.broken:
            self.say("no more room for what it cannot take; messages are lost")
        self.missed += len(batch)
        self._untold = batch.lost + len(batch)


def _outcome(call: _Call) -> OutputError | None:
    try:
        call()
    except OutputError as error:
        return error
    except Exception as error:  # a bug in an output, perhaps of a third party: the others continue
        return OutputError(f"{type(error).__name__}: {error}")
    return None


class _Worker:
    """A thread that makes calls, and puts their errors (or None) into `outcomes`."""

    def __init__(self, name: str) -> None:
        self.calls: SimpleQueue[_Call | None] = SimpleQueue()
        self.outcomes: SimpleQueue[OutputError | None] = SimpleQueue()
        Thread(target=self._run, name=f"output {name}", daemon=True).start()

    def _run(self) -> None:
        while True:
            call = self.calls.get()
            if call is None:
                return
            self.outcomes.put(_outcome(call))
