"""How ``nfnet queue`` selects, shows and decides packets, at once or when they leave the emulated line."""

from __future__ import annotations

import argparse
import ipaddress
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator

from .._injection import inject
from .._io.poller import Poller
from .._io.raw_socket import INJECTED_MARK
from .._io.system import freeze_objects
from .._printable import counted
from ..captures import Replay
from ..errors import ArgumentError, CaptureError, KernelError, NotPermittedError
from ..packet import Packet
from ..queue import Queue, apply_policy
from . import packet_text
from .emulation import Line, Passage, Stamps, flip
from .signals import wait_readable
from .summaries import say

_LAST_ROUNDS = 20  # of up to 512 packets
_WHY_DROPPED = {"lost": "by chance", "full": "for lack of room: --max-len"}


class Decider:
    """Decides the packets of a queue according to the options, or by a handler.

    line: the emulated line that packets pass first, if any.
    replay: the capture that the packets come from, if any.

    ``damaged`` is the number of records of the capture that could not be read.
    """

    def __init__(
        self,
        queue: Queue,
        options: argparse.Namespace,
        handler: Callable[[Packet], object] | None,
        line: Line[Packet] | None,
        replay: Replay | None = None,
    ) -> None:
        self._queue, self._options, self._handler, self._line = queue, options, handler, line
        self._replay = replay
        self.damaged = 0
        self._seen = 0
        self._stamps = Stamps()
        self._stopped = self._ending = False
        self._poller = Poller()
        self._counts: Counter[str] = Counter()
        self._failures: dict[str, str] = {}

    def stop(self) -> None:
        """Let `run` return, at once if it is waiting for packets."""
        self._stopped = True
        self._poller.wake()

    def run(self) -> None:
        """Decide packets until `stop`."""
        queue, line = self._queue, self._line
        self._poller.watch(queue.fileno())
        freeze_objects()  # that were imported: a garbage collection over them would delay packets by milliseconds
        is_readable = True  # once after opening, also if it returns False
        while not self._stopped:
            if is_readable:
                if line is not None and line.conditions.keeps:
                    self._stamps.compare(time.monotonic(), time.time(), time.monotonic())
                try:
                    queue.process(self._take)
                except CaptureError as error:
                    self.damaged += 1
                    say(f"nfnet queue: {error}")
                    continue
                if self._replay is not None and self._replay.ended:
                    break
            left = None
            if line is not None:
                self._let_go(time.monotonic())
                queue.flush()
                left = None if (due := line.due) is None else max(0.0, due - time.monotonic())
            is_readable = wait_readable(self._poller, left)

    def finish(self) -> None:
        """Decide the packets that still wait, without showing them, or leave them undecided as --undecided says."""
        self._stopped = self._ending = True
        if self._line is not None:
            self._let_go(math.inf)
        for packet in self._queue.pending:  # packets that arrived after `stop`, and those that the handler keeps
            self._take(packet)
        for _ in range(_LAST_ROUNDS):  # packets that were read, or wait in the receive buffer; bounded
            if not self._queue.process(self._take):
                break
        self._queue.flush()

    def summary(self) -> str:
        """Return a line with how many packets had each outcome."""
        kernel, counts = self._queue.counters, self._counts
        rejected = counts["rejected"]
        text = f"{counted(kernel.received, 'packet')}: {kernel.accepted} accepted, {kernel.dropped - rejected} dropped"
        reasons = [f"{counts[name]} {why}" for name, why in _WHY_DROPPED.items() if counts[name]]
        text += f" ({', '.join(reasons)})" if reasons else ""
        numbers = {"rejected": rejected, "repeated": kernel.repeated, "requeued": kernel.requeued}
        numbers["delayed"] = 0 if self._line is None else self._line.delayed
        numbers |= {name: counts[name] for name in ("duplicated", "corrupted", "reordered")}
        text += "".join(f", {count} {name}" for name, count in numbers.items() if count)
        return text + (f", {kernel.pending} left undecided, which the kernel drops" if kernel.pending else "")

    def failures(self) -> Iterator[str]:
        """Yield a line for each kind of failure: how many packets, and the first error."""
        for what, reason in self._failures.items():
            count = self._counts[f"not {what}"]
            yield f"{counted(count, 'packet')} could not be {what}: {reason}" + (", for one" if count > 1 else "")

    # --- packets that come

    def _take(self, packet: Packet) -> None:
        options, line = self._options, self._line
        if self._stopped and not self._ending:
            return  # `finish` sees to it
        if not self._is_chosen(packet):
            packet.accept()
            return
        self._seen += 1
        if options.count is not None and self._seen >= options.count:
            self._stopped = True
        if self._ending and self._handler is not None:
            self._leave_undecided(packet)  # the handler is no longer called
        elif line is None:
            self._decide(packet)
        else:
            now = time.monotonic()
            came = self._stamps.arrival(packet.timestamp, now) if line.conditions.keeps else now
            refused = line.arrive(packet, packet.cap_len, came)
            if refused is not None:
                packet.drop()
                self._counts[refused] += 1
                self._show(packet, refused)
            self._let_go(math.inf if self._ending else now)

    def _is_chosen(self, packet: Packet) -> bool:
        options = self._options
        # Our own resets and copies, if the rule queues them, too, must be neither rejected nor copied again.
        if (options.verdict == "reject" or options.duplicate) and packet.mark == INJECTED_MARK:
            return False
        if options.protocol is None and options.source is None and options.destination is None and options.port is None:
            return True
        flow = packet.flow
        return (
            flow is not None
            and options.protocol in (None, flow.protocol)
            and (options.source is None or ipaddress.ip_address(flow.source) in options.source)
            and (options.destination is None or ipaddress.ip_address(flow.destination) in options.destination)
            and (options.port is None or options.port in (flow.source_port, flow.destination_port))
        )

    # --- packets that leave

    def _let_go(self, now: float) -> None:
        assert self._line is not None
        for passage in self._line.leave(now):
            if passage.is_copy:
                self._send_copy(passage.item)
            else:
                self._counts["reordered"] += passage.overtaken
                self._leave(passage)

    def _leave(self, passage: Passage[Packet]) -> None:
        packet, payload = passage.item, None
        if self._ending and self._handler is not None:
            self._leave_undecided(packet)
            return
        if passage.damage is not None:
            payload = self._damaged(packet, passage.damage)
        self._decide(packet, payload)

    def _decide(self, packet: Packet, payload: bytes | None = None) -> None:
        """Give the packet its verdict; ``payload`` replaces its bytes."""
        options = self._options
        # At the end the rules that carry out verdicts on connections are about to be removed.
        connection = options.connection and not self._ending
        if self._handler is not None:
            self._handler(packet)
            if packet.decided is None:
                self._leave_undecided(packet)
        elif options.requeue is not None:
            packet.requeue(options.requeue, mark=options.mark, payload=payload)
        elif options.verdict == "drop":
            packet.drop(connection=connection)
        elif options.verdict == "reject":
            self._reject(packet, connection)
            return
        else:
            packet.accept(mark=options.mark, payload=payload, connection=connection)
        verdict = packet.decided
        note = "undecided" if verdict is None else verdict.name.lower()
        self._show(packet, note if payload is None else "corrupted")

    def _leave_undecided(self, packet: Packet) -> None:
        if self._options.undecided not in (None, "pending"):
            apply_policy(self._options.undecided, packet)

    def _reject(self, packet: Packet, connection: bool) -> None:
        try:
            packet.reject(connection=connection)
        except (ArgumentError, KernelError) as error:
            if not self._ending and (connection or isinstance(error, NotPermittedError)):
                raise  # no packet can be rejected
            self._failed("rejected", error)
            packet.drop()
            self._show(packet, "drop")
        else:
            self._counts["rejected"] += 1
            self._show(packet, "reject")

    def _damaged(self, packet: Packet, where: float) -> bytes | None:
        """Return its bytes with one bit behind the IP header flipped: it arrives, with a wrong checksum."""
        payload, ip = packet.payload, packet.ip
        if packet.truncated:  # the bytes that were not copied would be cut off
            return None
        begin = 0 if ip is None else 40 if ip.version == 6 else (payload[0] & 15) * 4
        damaged = flip(payload, begin, where)
        self._counts["corrupted"] += damaged is not None
        return damaged

    def _send_copy(self, packet: Packet) -> None:
        self._queue.flush()  # the packet itself must leave first
        try:
            if packet.truncated:
                raise ArgumentError(f"only {len(packet.payload)} of its {packet.cap_len} bytes were copied")
            inject(packet.payload, netns=self._options.netns)
        except (ArgumentError, KernelError) as error:
            if isinstance(error, NotPermittedError) and not self._ending:
                raise
            self._failed("duplicated", error)
        else:
            self._counts["duplicated"] += 1
            self._show(packet, "duplicate")

    def _failed(self, what: str, error: Exception) -> None:
        self._counts[f"not {what}"] += 1
        self._failures.setdefault(what, str(error))

    def _show(self, packet: Packet, verdict: str) -> None:
        if self._options.quiet or self._ending:
            return
        recorded = self._replay is not None
        if self._options.json:
            more = {"queue": self._options.number, "verdict": verdict}
            print(packet_text.ecs(packet, recorded=recorded, **more), flush=True)
        else:
            print(packet_text.line(packet, verdict, recorded=recorded), flush=True)
