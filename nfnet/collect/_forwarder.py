"""Receives batches from a source and stores them in outputs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from .._printable import counted
from ..errors import NfnetError
from ._nats_source import NatsSource, Received
from ._output import Output, OutputError

_log = logging.getLogger("nfnet")

_MOST = 64  # batches that are stored together
_WAIT = 0.5  # seconds to wait for batches, between two looks whether to stop
_AGAIN = 1.0  # seconds until the next try


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
        self._source = source
        self._count = count
        self._report = report
        self._at_a_time = _MOST
        self._stopped = self._reopen = self._broken = False
        self._trouble = ""  # when the last try began

    def stop(self) -> None:
        """End `run`, from any thread or a signal handler."""
        self._stopped = True

    def reopen(self) -> None:
        """Let all outputs reopen their files; from any thread or a signal handler."""
        self._reopen = True

    def run(self) -> bool:
        """Store batches, and return whether `stop` or ``count`` ended it.

        Raises NfnetError or OSError if the source or an output cannot begin.
        """
        try:
            self._source.begin()
            for output in sorted(self.outputs, key=lambda output: output.overwrites):
                output.begin()
            self._work()
            return not self._broken
        finally:
            self.close()

    def _work(self) -> None:
        idled = time.monotonic()
        while not (self._stopped or self._broken or self._has_enough()):
            self._try(self._step)
            if time.monotonic() >= idled + 1.0:
                idled = time.monotonic()
                self._try(self._care)

    def _has_enough(self) -> bool:
        return self._count is not None and self.stored >= self._count

    def _try(self, step: Callable[[], bool]) -> None:
        try:
            worked = step()
        except NfnetError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                self._report(f"{error}; trying again")
            self._broken |= isinstance(error, OutputError) and error.lasting
            deadline = time.monotonic() + _AGAIN
            while time.monotonic() < deadline and not (self._stopped or self._broken):
                time.sleep(0.05)
        else:
            if worked and self._trouble:
                self._trouble = ""
                self._report("going on")

    def _step(self) -> bool:
        received = self._source.receive(self._at_a_time, _WAIT)
        if not received:
            return False
        try:
            self._store(received)
        except OutputError:
            # The next batches are tried one by one, so that one which cannot be stored does not block others for ever.
            self._at_a_time = 1
            self._source.give_back(received)
            raise
        self._at_a_time = min(2 * self._at_a_time, _MOST)
        self.stored += sum(len(each.batch) for each in received)
        self._source.acknowledge(received)
        return True

    def _store(self, received: list[Received]) -> None:
        batches = [each.batch for each in received]
        for output in self.outputs:
            try:
                output.write_many(batches)
            except OutputError as error:
                raise OutputError(f"{output.name}: {error}", lasting=error.lasting) from error

    def _care(self) -> bool:
        for output in self.outputs:
            if self._reopen:
                output.reopen()
            output.idle()
        self._reopen = False
        return False

    def close(self) -> None:
        """Close source and outputs, as `run` does at its end. Can be called twice."""
        for output in self.outputs:
            output.close()
        self._source.close()

    def summary(self) -> str:
        """Return a line with how many messages were stored."""
        return f"{counted(self.stored, 'message')} stored"
