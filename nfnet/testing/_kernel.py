"""`FakeKernel`: a model of the kernel's queue."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from .._io.locks import RLock
from .._io.system import Event
from .._io.transport import Transport
from ..errors import ClosedError, kernel_error
from ..protocol import netlink, nfnetlink, nfqnl
from ..protocol.nfqnl import NFQA, NFQA_CFG, VERDICTS, Command
from ._messages import error_message, packet_message


class FakeKernel(Transport):
    """A transport whose other end is a model of the kernel's queue.

    num: the number of the queue.
    ends: whether the loop ends when it has read all packets that were fed. If not, it waits for more.

    It decodes requests with the construct schemas alone, and executes them as net/netfilter/nfnetlink_queue.c does.
    ``queued`` contains the ids of packets without a verdict; ``judged`` the verdicts in order, each with id, verdict
    word and changes by NFQA number; ``injected`` the packets that the program injected. None of them has a limit.
    """

    trusted = True
    simulated = True

    def __init__(self, *, num: int = 1, ends: bool = False) -> None:
        self.queued: dict[int, None] = {}
        self.judged: list[tuple[int, int, dict[int, Any]]] = []  # id, verdict word, changes; in the kernel's order
        self.sent: list[bytes] = []
        self.config: list[dict[int, Any]] = []
        self.interfaces: dict[int, str] = {}
        self.closed = False
        self.refuse_config = 0
        self.refuse_send = 0
        self.refuse_inject = 0
        self.injected: list[bytes] = []
        self._num = num
        self._ends = ends
        self._waiting: list[bytes] = []
        self._next_id = 1
        self._seq = 0
        self._reading = RLock()
        self._readable = Event()

    def feed(self, count: int = 1, **attributes: Any) -> list[int]:
        """Queue packets, and return their ids. The keywords are those of `packet_message`."""
        ids = [(self._next_id + index) & 0xFFFFFFFF for index in range(count)]
        for packet_id in ids:
            message = packet_message(packet_id, num=self._num, **attributes)
            self.queued[packet_id] = None
            self.deliver(message)
        self._next_id = (self._next_id + count) & 0xFFFFFFFF
        return ids

    def skip(self, count: int) -> None:
        """Skip ids, as for packets that did not fit into the receive buffer."""
        self._next_id = (self._next_id + count) & 0xFFFFFFFF

    def deliver(self, datagram: bytes) -> None:
        """Put a datagram into the receive buffer of the program."""
        self._waiting.append(datagram)
        self._readable.set()

    # --- the transport

    def receive(self, into: list[bytes], limit: int) -> bool:
        with self._reading:  # `close` in another thread waits
            if self.closed:
                raise ClosedError("the model of the kernel is closed")
            # Another thread can deliver at the same time: its datagrams must not be lost or go unnoticed.
            self._readable.clear()
            taken = self._waiting[:limit]
            del self._waiting[: len(taken)]
            into.extend(taken)
            if self._waiting:
                self._readable.set()
            return bool(self._waiting) or not self._ends

    def send(self, datagram: bytes) -> None:
        if self.refuse_send:
            raise kernel_error("sending", self.refuse_send)
        self.sent.append(datagram)
        for _, message in netlink.split_messages(datagram):
            header = netlink.header.parse(message)
            if header.type >= netlink.NLMSG_MIN_TYPE:
                self._execute(message)
            if header.flags & netlink.Flag.ACK and header.seq != self._seq:  # `request` reads its own answer
                self.deliver(error_message(0, message))

    def request(self, build: Callable[[int], bytes], operation: str) -> None:
        self._seq += 1
        message = build(self._seq)
        if self.refuse_config:
            raise kernel_error(operation, self.refuse_config)
        self.send(message)

    def fileno(self) -> int:
        return self._readable.fileno()

    def interface_name(self, index: int) -> str | None:
        return self.interfaces.get(index)

    def inject(self, packet: bytes, interface: int | None = None) -> None:
        if self.closed:
            raise ClosedError("the model of the kernel is closed")
        if self.refuse_inject:
            raise kernel_error("injecting a packet", self.refuse_inject)
        self.injected.append(packet)

    def close(self) -> None:
        with self._reading:
            closed, self.closed = self.closed, True
            if not closed:
                self._readable.close()

    # --- the kernel

    def _execute(self, message: bytes) -> None:
        header = netlink.header.parse(message)
        assert header.flags & netlink.Flag.REQUEST
        values = nfnetlink.parse_attributes(message[20:], nfqnl.TABLES[header.type])
        if header.type == nfqnl.MSG_CONFIG:
            command = values.get(NFQA_CFG.CMD)
            if command is not None and command.command in (Command.PF_BIND, Command.PF_UNBIND):
                return  # these have no effect, for any queue
        assert nfnetlink.nfgenmsg.parse(message[16:20]).resource == self._num
        if header.type == nfqnl.MSG_CONFIG:
            self.config.append(values)
            return
        assert header.seq == 0
        verdict = values.pop(NFQA.VERDICT_HDR)
        word = verdict.verdict
        if word & 0xFF not in VERDICTS:
            self.deliver(error_message(errno.EINVAL, message))
            return
        if header.type == nfqnl.MSG_VERDICT_BATCH:
            covered = nfqnl.covered_by_batch(self.queued, verdict.packet_id)
        else:
            covered = [verdict.packet_id] if verdict.packet_id in self.queued else []
        if not covered:
            self.deliver(error_message(errno.ENOENT, message))
        for packet_id in covered:  # no signal handler can run between these two statements
            del self.queued[packet_id]
            self.judged.append((packet_id, word, values))
