"""Reads log groups and brings what comes to the outputs."""

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
from ._batch import Batch, Session, split_at_losses
from ._counts import Counts
from ._delivery import Delivery, DeliveryState
from ._limits import Limiter
from ._output import Output
from ._spool import Memory, Spool, Store
from ._units import Rate, rate

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


@dataclass(frozen=True)
class Group:
    """A log group, and what is different from others in it."""

    number: int
    labels: Mapping[str, str] = field(default_factory=dict)
    """What to add to its records, beside the collector's labels. The label ``verdict`` says what the rules do with
    packets that they log; it is a label of the metrics, too."""
    limit: str | Rate | None = None
    """How many messages of each prefix to store: "100/s". None: as many as the collector says."""


class State(NamedTuple):
    """What `Collector.state` says."""

    seen: int
    """Messages that were read."""
    lost: int
    """Messages that the kernel lost."""
    suppressed: int
    """Messages that a limit left out."""
    outputs: tuple[DeliveryState, ...]

    def __str__(self) -> str:
        text = counted(self.seen, "message")
        text += f", {self.lost} lost" if self.lost else ""
        return text + (f", {self.suppressed} suppressed" if self.suppressed else "")


class _Source:
    """A log, and what is known of it while it is bound."""

    def __init__(self, log: Log, labels: Mapping[str, str], limit: Rate | None) -> None:
        self.log = log
        self.labels = labels
        self.limiter = None if limit is None else Limiter(limit)
        self.session = Session.begin(log.group)
        self.expected: int | None = 0


class Collector:
    """Brings what rules log to outputs, until `stop`.

    groups: numbers of log groups, or `Group` objects.
    outputs: where to; see `nfnet.collect.output`.
    labels: what to add to each record: in databases to the table ``sessions``.
    limit: how many messages of each prefix to store, "100/s" for instance: the first hundred in each second. Of those
        that are left out the last one is stored, with how many they were (`LogMessage.suppressed`), after ten seconds,
        or a minute if the period is longer than a second. Default: all.
    process: whether to find the processes behind packets, for those outputs that say them; see `LogMessage.process`,
        also for what it costs.
    conntrack: whether to ask the kernel for the state of connections; see `nfnet.Log`.
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
        """Messages by prefix, interface and protocol, once `count_messages` was called."""
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
        """One more output, before `run`.

        apart: in a thread of its own, so that it holds up nobody.
        groups: whose messages it gets; those of all if not given.
        """
        store: Store = Memory(_MOST_IN_MEMORY)
        if self._spool is not None:
            store = Spool(os.path.join(self._spool, f"{quote(output.name, safe='')}.spool"), self._spool_size)
        self.deliveries.append(Delivery(output, store, report or self._report, name=name, apart=apart))
        if groups is not None:
            self._only[self.deliveries[-1]] = frozenset(groups)
        return self.deliveries[-1]

    def count_messages(self) -> None:
        """Have `counts` count messages from now on."""
        if self.counts is None:
            self.counts = Counts()

    def stop(self) -> None:
        """End `run`, from any thread or a signal handler; the second time without waiting for outputs that are away."""
        self._stops += 1
        self._poller.wake()

    def reopen(self) -> None:
        """Have all outputs open their files anew; from any thread or a signal handler."""
        self._reopen = True
        self._poller.wake()

    @property
    def reopening(self) -> bool:
        """Whether an output has yet to open its files anew."""
        return self._reopen or any(delivery.reopening for delivery in self.deliveries)

    def run(self, each_turn: Callable[[], object] = lambda: None) -> bool:
        """Collect, and return whether all that was read is stored, or in the spool.

        each_turn: is called when all groups are bound and all outputs have begun, and then at least once a second as
            long as messages are read and handed to outputs, to the very end.

        Raises NfnetError or OSError if a group cannot be bound or an output cannot begin; then nothing was touched.
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
        deadline: float | None = None  # the kernel may still be collecting what happened before `stop`
        while True:
            each_turn()
            now = time.monotonic()  # before the look at what came: a process that is paused behind it looks once more
            came = False
            for source in self._sources:
                came |= self._read_one(source)
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
            if deadline is not None and not came and (now >= deadline or self._stops > 1):
                return
            if deadline is not None and now >= deadline + _LAST_READING:
                return
            if not came:
                self._poller.wait(_LONGEST_WAIT if deadline is None else _TIMEOUT / 2)

    def _has_enough(self) -> bool:
        return self._count is not None and self.seen >= self._count

    def _read_one(self, source: _Source) -> bool:
        messages: list[LogMessage] = []
        try:
            source.log.process(messages.append)
        except NfnetError as error:  # of a datagram that is damaged; those after it still come
            self._report(f"group {source.log.group}: {error}")
        if self._count is not None:
            del messages[self._count - self.seen :]
        if not messages:
            return False
        self.seen += len(messages)
        whole = Batch(source.session, messages, labels=source.labels)
        if self.counts is not None:
            self.counts.add(whole)
        batches, source.expected = split_at_losses(whole, source.expected)
        for batch in batches:
            passed: Batch | None = batch
            if source.limiter is not None:
                passed = source.limiter.limit(batch)
            if passed is not None:
                self._put(passed)
        return True

    def _tell_suppressed(self, *, everything: bool = False) -> None:
        for source in self._sources:
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
        """Let go of the outputs; `run` does so, too. May be called twice."""
        for delivery in self.deliveries:
            delivery.close()

    def state(self) -> State:
        """What was read and lost, and how each output does; also from another thread."""
        return State(
            self.seen,
            sum(source.log.counters.lost or 0 for source in self._sources),
            sum(source.limiter.total for source in self._sources if source.limiter is not None),
            tuple(delivery.state() for delivery in self.deliveries),
        )

    def summary(self) -> str:
        """How much was read, lost, and not stored, in a line."""
        return str(self.state())


def _rate(limit: str | Rate | None) -> Rate | None:
    try:
        return None if limit is None else rate(limit)
    except ValueError as error:
        raise ArgumentError(f"limit: {error}") from None
