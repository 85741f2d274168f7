"""Reads log groups and passes the messages to the outputs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import quote

from .._annotated import Annotated
from .._arguments import check
from .._io.poller import Poller
from .._printable import counted
from ..errors import ArgumentError, NfnetError
from ..log import Log, LogMessage
from ..netns import Netns
from ._batch import Batch, Session, consecutive
from ._counts import Counts
from ._delivery import Delivery, DeliveryState
from ._limits import Limiter
from ._output import Output
from ._spool import Memory, Spool, Store
from ._units import Rate, rate

_log = logging.getLogger("nfnet")

# With these the kernel sends many messages at a time (some hundreds in a datagram of 128 KiB), and none late.
_TIMEOUT = 0.1  # seconds
_THRESHOLD = 1000  # messages
_BUFFER_SIZE = 128 << 10
_RCVBUF = 128 << 20  # the memory is used only while so much data waits
_MOST_IN_MEMORY = 64 << 20  # bytes, for each output
_SPOOL_SIZE = 1 << 30
_LAST_STORING = 5.0  # seconds, at the end, in which no more is read than there is room for
_LAST_READING = 10.0  # seconds, at the end, for rules that never stop logging
_WAIT_FOR_ROOM = 0.005  # seconds
_LONGEST_WAIT = 1.0  # seconds between two looks at the state of outputs


@dataclass(frozen=True)
class Group:
    """A log group, and its own settings."""

    number: int
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of its records, besides the collector's. The label ``verdict`` states what the rules do with the packets
    that they log; it is a label of the metrics, too."""
    limit: str | Rate | None = None
    """How many messages of each prefix to store, "100/s" for instance. Default: the collector's limit."""


class SourceState(NamedTuple):
    """The state of the source of a worker."""

    name: str
    waiting: int | None
    """Batches that no worker has acknowledged; None before the first look, a second after the begin."""
    error: str | None
    """The error of its last call; None if the call succeeded."""
    failing: float
    """Seconds since its first error in a row; 0 if there is none."""

    def __str__(self) -> str:
        text = self.name
        if self.waiting is not None:
            text += ": 1 batch waits" if self.waiting == 1 else f": {self.waiting:,} batches wait"
        return text if self.error is None else f"{text}, failing for {self.failing:.0f} s: {self.error}"


class State(NamedTuple):
    """The state of a collector, or of a worker; see `Collector.state` and `Forwarder.state`."""

    seen: int
    """Messages that were read; of a worker, those that every output has stored."""
    lost: int
    """Messages that the kernel lost."""
    suppressed: int
    """Messages that a limit left out."""
    outputs: tuple[DeliveryState, ...]
    source: SourceState | None = None
    """That of a worker; None for a collector, which reads log groups."""

    def __str__(self) -> str:
        text = counted(self.seen, "message")
        text += f", {self.lost} lost" if self.lost else ""
        return text + (f", {self.suppressed} suppressed" if self.suppressed else "")


class _Source:
    """A log that is bound, with its session and counters."""

    def __init__(self, log: Log, labels: Mapping[str, str], limit: Rate | None) -> None:
        self.log = log
        self.labels = labels
        self.limiter = None if limit is None else Limiter(limit)
        self.session = Session.begin(log.group)
        self.expected = 0


class Collector:
    """Stores the messages of log groups in outputs, until `stop`.

    groups: numbers of log groups, or `Group` objects.
    outputs: objects that `nfnet.collect.output` returned.
    labels: labels of each record; databases have them in the table ``sessions``.
    limit: how many messages of each prefix to store, "100/s" for instance: the first hundred in each second. The last
        of those left out is stored with their number (`LogMessage.suppressed`), after ten seconds, or after a minute if
        the period is longer than a second. Default: all.
    process: whether to find the processes behind packets, for the outputs that store them; see `LogMessage.process`,
        also for what it costs.
    conntrack: whether to request the state of connections from the kernel; see `nfnet.Log`.
    spool: a directory in which messages of failing outputs are kept. Messages that are in it when the collector begins
        are stored first. Default: memory, 64 MiB for each output.
    spool_size: bytes of messages that the spool holds for each output; further messages are counted, and reported to
        the output as lost. Default: 1 GiB.
    netns: the network namespace to work in, as for `nfnet.Log`.
    rcvbuf: size of the receive buffer of each group, in bytes. Default: 128 MiB.
    count: end after so many messages. Default: no limit.
    report: a function that is called with a line for the operator, about an error for instance. Default: a warning of
        the logger "nfnet".

    Every output has stored each message, or it is kept for that output, before more messages are read. If no output
    has room to keep more, none are read until one has: they wait in the receive buffer. Killing the process loses the
    messages that wait in the kernel and the batch that was just read. Raises ArgumentError for wrong arguments,
    NfnetError or OSError if the spool cannot be used.
    """

    def __init__(
        self,
        groups: Iterable[int | Group],
        outputs: Iterable[Output] = (),
        *,
        labels: Mapping[str, str] | None = None,
        limit: str | Rate | None = None,
        process: bool = False,
        conntrack: bool = False,
        spool: str | os.PathLike[str] | None = None,
        spool_size: int = _SPOOL_SIZE,
        netns: Netns | None = None,
        rcvbuf: int = _RCVBUF,
        count: int | None = None,
        report: Callable[[str], None] = _log.warning,
    ) -> None:
        self._groups = [group if isinstance(group, Group) else Group(group) for group in groups]
        numbers = [check("log group", group.number, 0, 0xFFFF) for group in self._groups]
        self._limits = [_rate(limit if group.limit is None else group.limit) for group in self._groups]
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
                conntrack=conntrack,
                netns=netns,
            )
            for group in numbers
        )
        self.deliveries: list[Delivery] = []
        self.seen = 0
        """Messages that were read."""
        self.counts: Counts | None = None
        """Counts by prefix, interface and protocol, after `count_messages` was called; otherwise None."""
        self._sources: list[_Source] = []
        self._only: dict[Delivery, frozenset[int]] = {}
        self._labels = dict(labels or {})
        self._process = process
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
        self,
        output: Output,
        *,
        name: str = "",
        apart: bool = False,
        groups: Iterable[int] | None = None,
        report: Callable[[str], None] | None = None,
    ) -> Delivery:
        """Add an output. Call this before `run`.

        apart: whether to call it in a thread of its own, so that it does not delay the others.
        groups: numbers of the groups whose messages it gets. Default: all.
        """
        store: Store = Memory(_MOST_IN_MEMORY)
        if self._spool is not None:
            store = Spool(os.path.join(self._spool, f"{quote(output.name, safe='')}.spool"), self._spool_size)
        self.deliveries.append(Delivery(output, store, report or self._report, name=name, apart=apart))
        if groups is not None:
            self._only[self.deliveries[-1]] = frozenset(groups)
        return self.deliveries[-1]

    def count_messages(self) -> None:
        """Count messages in `counts` from now on."""
        if self.counts is None:
            self.counts = Counts()

    def stop(self) -> None:
        """End `run`, from any thread or a signal handler. A second call ends it without waiting for failing outputs."""
        self._stops += 1
        self._poller.wake()

    def reopen(self) -> None:
        """Let all outputs reopen their files; from any thread or a signal handler."""
        self._reopen = True
        self._poller.wake()

    @property
    def reopening(self) -> bool:
        """Whether an output has not yet reopened its files."""
        return self._reopen or any(delivery.reopening for delivery in self.deliveries)

    def run(self, each_turn: Callable[[], object] = lambda: None) -> bool:
        """Collect until `stop`, and return whether all messages that were read are stored or in the spool.

        each_turn: a function that is called when all groups are bound and all outputs have begun, and then at least
            once a second until the last message has been passed to the outputs.

        Raises NfnetError or OSError if a group cannot be bound or an output cannot begin; then no output was changed.
        """
        with ExitStack() as stack:
            stack.callback(self.close)
            self._sources = []
            for group, log, limit in zip(self._groups, self.logs, self._limits):
                stack.enter_context(log)
                self._poller.watch(log.fileno())
                stack.callback(self._poller.unwatch, log.fileno())
                self._sources.append(_Source(log, {**self._labels, **group.labels}, limit))
            for delivery in sorted(self.deliveries, key=lambda delivery: delivery.output.overwrites):
                delivery.output.begin()
            try:
                self._read(each_turn)
            finally:
                self._tell_suppressed(everything=True)
                complete = self._finish(each_turn)
            return complete

    def _finish(self, each_turn: Callable[[], object]) -> bool:
        before = self._stops

        def is_enough() -> bool:
            each_turn()
            return self._stops > before

        complete = True
        for delivery in self.deliveries:
            complete &= delivery.finish(is_enough)
        return complete

    def _read(self, each_turn: Callable[[], object]) -> None:
        deadline: float | None = None  # the kernel can still hold messages of packets before `stop`
        while True:
            each_turn()
            now = time.monotonic()  # before reading: if the process is paused after it, it reads once more
            leaving = self._stops > 1 or (deadline is not None and now >= deadline + _LAST_STORING)
            came, full = False, not leaving and self._is_full()
            for source in self._sources:
                came |= not full and self._read_one(source)
            self._tell_suppressed()
            if self._reopen:
                for delivery in self.deliveries:
                    delivery.reopen()
                self._reopen = False
            for delivery in self.deliveries:
                delivery.flush()
            if self._has_enough() or (self.deliveries and all(delivery.broken for delivery in self.deliveries)):
                return
            if self._stops and deadline is None:
                deadline = time.monotonic() + 2 * _TIMEOUT
            if deadline is not None and not came and not full and (now >= deadline or self._stops > 1):
                return
            if deadline is not None and now >= deadline + _LAST_READING:
                return
            if full:
                time.sleep(_WAIT_FOR_ROOM)  # the poller would not wait: there are messages
            elif not came:
                self._poller.wait(_LONGEST_WAIT if deadline is None else _TIMEOUT / 2)

    def _is_full(self) -> bool:
        """Return whether messages have to wait in the receive buffer, because no output has room for them.

        After `stop` they wait for an output that works. If there is none, they are read, and counted as lost.
        """
        if not self.deliveries or any(delivery.has_room for delivery in self.deliveries):
            return False
        return not self._stops or not all(delivery.failing for delivery in self.deliveries)

    def _has_enough(self) -> bool:
        return self._count is not None and self.seen >= self._count

    def _read_one(self, source: _Source) -> bool:
        messages: list[LogMessage] = []
        try:
            source.log.process(messages.append)
        except NfnetError as error:  # in a damaged datagram; the following ones are read
            self._report(f"group {source.log.group}: {error}")
        if self._count is not None:
            del messages[self._count - self.seen :]
        if not messages:
            return False
        self.seen += len(messages)
        whole = Batch(source.session, messages, labels=source.labels)
        if self.counts is not None:
            self.counts.add(whole)
        batches, source.expected = consecutive(whole, source.expected)
        for batch in batches:
            if batch.session != source.session:
                self._tell_suppressed_of(source, everything=True)  # their numbers are those of the old session
                source.session = batch.session
            passed: Batch | None = batch
            if source.limiter is not None:
                passed = source.limiter.limit(batch)
            if passed is not None:
                self._put(passed)
        return True

    def _tell_suppressed(self, *, everything: bool = False) -> None:
        for source in self._sources:
            self._tell_suppressed_of(source, everything=everything)

    def _tell_suppressed_of(self, source: _Source, *, everything: bool) -> None:
        if source.limiter is not None:
            messages, lost = source.limiter.due(everything=everything)
            if messages:
                self._put(Batch(source.session, messages, lost, labels=source.labels))

    def _put(self, batch: Batch) -> None:
        if self._process:
            for message in batch.messages:
                if (process := message.process) is not None:
                    message.raw = Annotated(message.raw, process=process, suppressed=message.suppressed)
        for delivery in self.deliveries:
            only = self._only.get(delivery)
            if only is None or batch.session.group in only:
                delivery.put(batch)

    def close(self) -> None:
        """Close the outputs, as `run` does at its end. Can be called twice."""
        for delivery in self.deliveries:
            delivery.close()

    def state(self) -> State:
        """Return what was read and lost, and the state of each output; from any thread."""
        return State(
            self.seen,
            sum(source.log.counters.lost or 0 for source in self._sources),
            sum(source.limiter.total for source in self._sources if source.limiter is not None),
            tuple(delivery.state() for delivery in self.deliveries),
        )

    def summary(self) -> str:
        """Return a line with how many messages were read, lost, and not stored."""
        return str(self.state())


def _rate(limit: str | Rate | None) -> Rate | None:
    try:
        return None if limit is None else rate(limit)
    except ValueError as error:
        raise ArgumentError(f"limit: {error}") from None
