"""Receives batches from a source and stores them in outputs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial

from .._printable import counted
from ..errors import NfnetError
from ._collector import SourceState, State
from ._counts import Counts
from ._delivery import DeliveryState
from ._nats_source import NatsSource, Received
from ._output import Output, OutputError

_log = logging.getLogger("nfnet")

_MOST = 64  # batches that are stored together
_WAIT = 0.5  # seconds to wait for batches, between two looks whether to stop
_AGAIN = 1.0  # seconds until the next try


class _Calls:
    """Calls what can fail, and remembers how that went."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.error: NfnetError | None = None  # of the last call
        self._since = 0.0  # when the first of the errors in a row was raised
        self._began = 0.0  # when the current call began; 0 if there is none

    def call(self, call: Callable[[], object], *, proves: bool = True) -> None:
        """Make a call; ``proves``: if it succeeds, the last error is over."""
        self._began = time.monotonic()
        try:
            call()
        except NfnetError as error:
            if self.error is None:
                self._since = time.monotonic()
            self.error = error
            raise
        finally:
            self._began = 0.0
        if proves:
            self.error = None

    @property
    def failing(self) -> float:
        return 0.0 if self.error is None else time.monotonic() - self._since

    @property
    def busy(self) -> float:
        began = self._began  # another thread can change it
        return time.monotonic() - began if began else 0.0


class Forwarder:
    """A worker that stores the batches of a source in outputs, until `stop`. Any number of workers can share a source.

    source: an object that `nfnet.collect.source` returned.
    outputs: objects that `nfnet.collect.output` returned.
    count: end when so many messages have been stored. Default: no limit.
    report: a function that is called with a line for the operator. Default: a warning of the logger "nfnet".

    A batch is acknowledged when every output has stored it, so killing the process loses nothing. If an output fails,
    the batch is given back, and delivered again, to this worker or another. An output that had stored it gets it twice;
    a database stores it once.
    """

    def __init__(
        self,
        source: NatsSource,
        outputs: Iterable[Output],
        *,
        count: int | None = None,
        report: Callable[[str], None] = _log.warning,
    ) -> None:
        self.outputs = list(outputs)
        self.stored = 0
        """Messages that every output has stored."""
        self.counts: Counts | None = None
        """Counts by prefix, interface and protocol, after `count_messages` was called; otherwise None."""
        self._source = source
        self._count = count
        self._report = report
        self._at_a_time = _MOST
        self._stopped = self._reopen = self._broken = False
        self._trouble = ""  # when the last try began
        self._lost = self._suppressed = 0  # as the records say that were stored
        self._receiving = _Calls(source.name)
        self._storing = [_Calls(output.name) for output in self.outputs]
        self._stored_by = [0] * len(self.outputs)
        self._taken = 0  # messages that are being stored
        self._waiting: int | None = None

    def count_messages(self) -> None:
        """Count messages in `counts` from now on."""
        if self.counts is None:
            self.counts = Counts()

    def stop(self) -> None:
        """End `run`, from any thread or a signal handler."""
        self._stopped = True

    def reopen(self) -> None:
        """Let all outputs reopen their files; from any thread or a signal handler."""
        self._reopen = True

    @property
    def reopening(self) -> bool:
        """Whether an output has not yet reopened its files."""
        return self._reopen

    def run(self, each_turn: Callable[[], object] = lambda: None) -> bool:
        """Store batches, and return whether `stop` or ``count`` ended it.

        each_turn: a function that is called when the source and all outputs have begun, and then about once a second,
            but not while an output stores batches.

        Raises NfnetError or OSError if the source or an output cannot begin.
        """
        try:
            self._source.begin()
            for output in sorted(self.outputs, key=lambda output: output.overwrites):
                output.begin()
            self._work(each_turn)
            return not self._broken
        finally:
            self.close()

    def _work(self, each_turn: Callable[[], object]) -> None:
        idled = time.monotonic()
        while not (self._stopped or self._broken or self._has_enough()):
            each_turn()
            self._try(self._step, each_turn)
            if time.monotonic() >= idled + 1.0:
                idled = time.monotonic()
                self._try(self._care, each_turn)

    def _has_enough(self) -> bool:
        return self._count is not None and self.stored >= self._count

    def _try(self, step: Callable[[], bool], each_turn: Callable[[], object]) -> None:
        try:
            worked = step()
        except NfnetError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                self._report(f"{error}; trying again")
            self._broken |= isinstance(error, OutputError) and error.lasting
            deadline = time.monotonic() + _AGAIN
            while time.monotonic() < deadline and not (self._stopped or self._broken):
                each_turn()
                time.sleep(0.05)
        else:
            if worked and self._trouble:
                self._trouble = ""
                self._report("going on")

    def _step(self) -> bool:
        received: list[Received] = []
        self._receiving.call(lambda: received.extend(self._source.receive(self._at_a_time, _WAIT)))
        if not received:
            return False
        self._taken = sum(len(each.batch) for each in received)
        try:
            self._store(received)
        except OutputError:
            # The next batches are tried one by one, so that one which cannot be stored does not block others for ever.
            self._at_a_time = 1
            self._receiving.call(partial(self._source.give_back, received))
            raise
        finally:
            self._taken = 0
        self._at_a_time = min(2 * self._at_a_time, _MOST)
        self._note(received)
        self._receiving.call(partial(self._source.acknowledge, received))
        return True

    def _store(self, received: list[Received]) -> None:
        batches = [each.batch for each in received]
        for place, output in enumerate(self.outputs):
            self._call(place, partial(output.write_many, batches))
            self._stored_by[place] += self._taken

    def _call(self, place: int, call: Callable[[], object], *, proves: bool = True) -> None:
        """Call an output. Raises OutputError with its name."""
        storing = self._storing[place]
        try:
            storing.call(call, proves=proves)
        except OutputError as error:
            raise OutputError(f"{storing.name}: {error}", lasting=error.lasting) from error

    def _note(self, received: list[Received]) -> None:
        """Count what every output has stored."""
        for batch, _ in received:
            self.stored += len(batch)
            self._lost += batch.lost
            self._suppressed += sum([message.suppressed for message in batch.messages])
            if self.counts is not None:
                self.counts.add(batch)

    def _care(self) -> bool:
        empty = self._waiting == 0  # otherwise only storing a batch proves that an output works
        for place, output in enumerate(self.outputs):
            if self._reopen:
                self._call(place, output.reopen, proves=empty)
            self._call(place, output.idle, proves=empty)
        self._reopen = False
        self._receiving.call(self._look)
        return False

    def _look(self) -> None:
        self._waiting = self._source.waiting()

    def close(self) -> None:
        """Close source and outputs, as `run` does at its end. Can be called twice."""
        for output in self.outputs:
            output.close()
        self._source.close()

    def state(self) -> State:
        """Return what was stored, and the state of the source and of each output; from any thread.

        An output that had stored a batch before another one failed stores it again, and counts it again.
        """
        error = self._receiving.error
        source = SourceState(
            self._receiving.name, self._waiting, None if error is None else str(error), self._receiving.failing
        )
        outputs = [self._state_of(place) for place in range(len(self.outputs))]
        return State(self.stored, self._lost, self._suppressed, tuple(outputs), source)

    def _state_of(self, place: int) -> DeliveryState:
        storing = self._storing[place]
        error = storing.error
        return DeliveryState(
            name=storing.name,
            stored=self._stored_by[place],
            waiting=self._taken,
            missed=0,
            spool=None,
            spool_size=0,
            error=None if error is None else str(error),
            failing=storing.failing,
            busy=storing.busy,
            broken=isinstance(error, OutputError) and error.lasting,
        )

    def summary(self) -> str:
        """Return a line with how many messages were stored."""
        return f"{counted(self.stored, 'message')} stored"
