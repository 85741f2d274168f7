"""Reads log groups and brings what comes to the outputs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from urllib.parse import quote

from .._arguments import check
from .._io.poller import Poller
from .._printable import counted
from ..errors import ArgumentError, NfnetError
from ..log import Log, LogMessage
from ..netns import Netns
from ._batch import Batch, Session, split_at_losses
from ._delivery import Delivery
from ._output import Output
from ._spool import Memory, Spool, Store

_log = logging.getLogger("nfnet")

# What makes the kernel send many messages at a time, and no message late: with 128 KiB a datagram has some hundred.
_TIMEOUT = 0.1  # seconds
_THRESHOLD = 1000  # messages
_BUFFER_SIZE = 128 << 10
_RCVBUF = 128 << 20  # taken up only while so much waits
_MOST_IN_MEMORY = 64 << 20  # bytes, for each output
_SPOOL_SIZE = 1 << 30
_LAST_READING = 10.0  # seconds, at the end: more may come for ever
_LONGEST_WAIT = 1.0  # seconds, to see that an output is broken, or that one is there again


class Collector:
    """Brings what rules log to outputs, until `stop`.

    groups: numbers of log groups.
    outputs: where to; see `nfnet.collect.output`.
    labels: what to add to each line of JSON, and to the table ``sessions``.
    spool: a directory for what an output cannot take at the moment; in memory, up to 64 MiB for each, if not given.
        What is there when the collector begins is stored first.
    spool_size: how many bytes of messages the spool may hold for each output; what has no room is counted, and reported
        to the output as lost. Default: 1 GiB.
    netns: the network namespace to work in, as for `nfnet.Log`.
    rcvbuf: size of the receive buffer of each group, in bytes. Default: 128 MiB.
    count: end after so many messages.
    report: is told, in a line, what the person who runs the collector should know. Default: a warning of the logger
        "nfnet".

    Each message that the kernel hands over is stored by every output, or kept for it, before more is read: killing the
    process loses what is in the kernel and the one batch that was just read. Raises ArgumentError for what cannot be
    right, NfnetError or OSError if the spool cannot be used.
    """

    def __init__(
        self,
        groups: Iterable[int],
        outputs: Iterable[Output] = (),
        *,
        labels: Mapping[str, str] | None = None,
        spool: str | os.PathLike[str] | None = None,
        spool_size: int = _SPOOL_SIZE,
        netns: Netns | None = None,
        rcvbuf: int = _RCVBUF,
        count: int | None = None,
        report: Callable[[str], None] = _log.warning,
    ) -> None:
        numbers = [check("log group", group, 0, 0xFFFF) for group in groups]
        if not numbers or len(set(numbers)) < len(numbers):
            raise ArgumentError("groups must be there, each once")
        self.logs: tuple[Log, ...] = tuple(
            Log(
                group,
                timeout=_TIMEOUT,
                threshold=_THRESHOLD,
                buffer_size=_BUFFER_SIZE,
                rcvbuf=rcvbuf,
                sequence=True,
                netns=netns,
            )
            for group in numbers
        )
        self.deliveries: list[Delivery] = []
        self.seen = 0
        """Messages that were read."""
        self._labels = dict(labels or {})
        self._count = count
        self._report = report
        self._spool = None if spool is None else os.fspath(spool)
        self._spool_size = check("spool_size", spool_size, 1, 1 << 62)
        self._poller = Poller()
        self._stops = 0
        self._reopen = False
        try:
            for output in outputs:
                self.add(output, apart=True)
        except BaseException:
            self.close()
            raise

    def add(
        self, output: Output, *, name: str = "", apart: bool = False, report: Callable[[str], None] | None = None
    ) -> Delivery:
        """One more output, before `run`; ``apart``: in a thread of its own, so that it holds up nobody."""
        store: Store = Memory(_MOST_IN_MEMORY)
        if self._spool is not None:
            store = Spool(os.path.join(self._spool, f"{quote(output.name, safe='')}.spool"), self._spool_size)
        self.deliveries.append(Delivery(output, store, report or self._report, name=name, apart=apart))
        return self.deliveries[-1]

    def stop(self) -> None:
        """End `run`, from any thread or a signal handler; the second time without waiting for outputs that are away."""
        self._stops += 1
        self._poller.wake()

    def reopen(self) -> None:
        """Have all outputs open their files anew; from any thread or a signal handler."""
        self._reopen = True
        self._poller.wake()

    def run(self) -> bool:
        """Collect, and return whether all that was read is stored, or in the spool.

        Raises NfnetError or OSError if a group cannot be bound or an output cannot begin; then nothing was touched.
        """
        with ExitStack() as stack:
            stack.callback(self.close)
            sessions: dict[Log, Session] = {}
            for log in self.logs:
                stack.enter_context(log)
                self._poller.watch(log.fileno())
                stack.callback(self._poller.unwatch, log.fileno())
                sessions[log] = Session.begin(log.group)
            for delivery in sorted(self.deliveries, key=lambda delivery: delivery.output.overwrites):
                delivery.output.begin()
            self._expected: dict[Log, int | None] = dict.fromkeys(self.logs, 0)
            try:
                self._read(sessions)
            finally:
                before = self._stops
                complete = True
                for delivery in self.deliveries:
                    complete &= delivery.finish(lambda: self._stops > before)
            return complete

    def _read(self, sessions: Mapping[Log, Session]) -> None:
        deadline: float | None = None  # the kernel may still be collecting what happened before `stop`
        while True:
            came = False
            for log, session in sessions.items():
                came |= self._read_one(log, session)
            if self._reopen:
                self._reopen = False
                for delivery in self.deliveries:
                    delivery.reopen()
            for delivery in self.deliveries:
                delivery.flush()
            if self._has_enough() or (self.deliveries and all(delivery.broken for delivery in self.deliveries)):
                return
            if self._stops and deadline is None:
                deadline = time.monotonic() + 2 * _TIMEOUT
            if deadline is not None and not came and (time.monotonic() >= deadline or self._stops > 1):
                return
            if deadline is not None and time.monotonic() >= deadline + _LAST_READING:
                return
            if not came:
                self._poller.wait(_LONGEST_WAIT if deadline is None else _TIMEOUT / 2)

    def _has_enough(self) -> bool:
        return self._count is not None and self.seen >= self._count

    def _read_one(self, log: Log, session: Session) -> bool:
        messages: list[LogMessage] = []
        try:
            log.process(messages.append)
        except NfnetError as error:  # of a datagram that is damaged; those after it still come
            self._report(f"group {log.group}: {error}")
        if self._count is not None:
            del messages[self._count - self.seen :]
        if not messages:
            return False
        self.seen += len(messages)
        batches, self._expected[log] = split_at_losses(
            Batch(session, messages, labels=self._labels), self._expected[log]
        )
        for batch in batches:
            for delivery in self.deliveries:
                delivery.put(batch)
        return True

    def close(self) -> None:
        """Let go of the outputs; `run` does so, too. May be called twice."""
        for delivery in self.deliveries:
            delivery.close()

    def summary(self) -> str:
        """How much was read, lost, and not stored, in a line."""
        lost = sum(log.counters.lost or 0 for log in self.logs)
        return counted(self.seen, "message") + (f", {lost} lost" if lost else "")
