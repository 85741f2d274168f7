"""A model of the kernel's side of a queue, for tests without privileges.

It understands requests by the construct schemas alone, so it is a witness for the fast writers, and it applies them
as net/netfilter/nfnetlink_queue.c does.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Any

from nfnet.protocol import netlink, nfnetlink, nfqnl
from nfnet.protocol.nfqnl import NFQA, Verdict


def packet_message(
    packet_id: int,
    payload: bytes | None = b"E" + bytes(19),
    *,
    number: int = 1,
    family: int = 2,
    hook: int = 3,
    **attributes: Any,
) -> bytes:
    """A packet as the kernel sends it, built by the schemas; keywords are names of NFQA members."""
    protocol = {2: 0x0800, 10: 0x86DD}.get(family, 0)
    values = {"PACKET_HDR": {"packet_id": packet_id, "hw_protocol": protocol, "hook": hook}, **attributes}
    rows = [(nfqnl.NFQA_TABLE[NFQA[name]], value) for name, value in values.items()]
    data = nfnetlink.build_attributes(rows)
    if payload is not None:  # the kernel does not pad the last one
        data += struct.pack("=HH", 4 + len(payload), NFQA.PAYLOAD) + payload
    return nfnetlink.build_message(nfqnl.MSG_PACKET, number, data, family=family)


def error_message(number: int, request: bytes) -> bytes:
    """The kernel's answer to a request, capped."""
    header = netlink.header.parse(request)
    body = netlink.nlmsgerr.build({"error": -number, "request": header})
    return netlink.build_message(netlink.NLMSG_ERROR, netlink.Flag.CAPPED, header.seq, body)


class FakeKernel:
    """A transport whose other end is a queue of this test's."""

    trusted = True

    def __init__(self, *, number: int = 1, ends: bool = False) -> None:
        self.queued: dict[int, bytes] = {}
        self.judged: list[tuple[int, int, dict[int, Any]]] = []  # id, verdict word, changes; in the kernel's order
        self.sent: list[bytes] = []
        self.config: list[dict[int, Any]] = []
        self.closed = False
        self.refuse_config = 0
        self.refuse_send = 0
        self._number = number
        self._ends = ends
        self._waiting: list[bytes] = []
        self._next_id = 1
        self._seq = 0
        self._readable = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def feed(self, count: int = 1, **attributes: Any) -> list[int]:
        """Queue packets; returns their ids."""
        ids = [(self._next_id + index) & 0xFFFFFFFF for index in range(count)]
        for packet_id in ids:
            self.queued[packet_id] = b""
            self.deliver(packet_message(packet_id, number=self._number, **attributes))
        self._next_id = (self._next_id + count) & 0xFFFFFFFF
        return ids

    def skip(self, count: int) -> None:
        """Packets that did not fit into the receive buffer: their ids are gone."""
        self._next_id = (self._next_id + count) & 0xFFFFFFFF

    def deliver(self, datagram: bytes) -> None:
        self._waiting.append(datagram)
        os.eventfd_write(self._readable, 1)

    # --- the transport

    def receive(self, into: list[bytes], limit: int) -> bool:
        taken, self._waiting = self._waiting[:limit], self._waiting[limit:]
        into.extend(taken)
        if not self._waiting and taken:
            os.eventfd_read(self._readable)
        return bool(self._waiting) or not self._ends

    def send(self, datagram: bytes) -> None:
        if self.refuse_send:
            raise OSError(self.refuse_send, "refused by the test")
        self.sent.append(datagram)
        for _, message in netlink.split_messages(datagram):
            self._execute(message)

    def request(self, build: Any, operation: str) -> None:
        from nfnet.errors import kernel_error

        self._seq += 1
        message = build(self._seq)
        if self.refuse_config:
            raise kernel_error(operation, self.refuse_config)
        self.send(message)

    def fileno(self) -> int:
        return self._readable

    def interface_name(self, index: int) -> str | None:
        return {2: "eth0"}.get(index)

    def close(self) -> None:
        if not self.closed:
            os.close(self._readable)
        self.closed = True

    # --- the kernel

    def _execute(self, message: bytes) -> None:
        header = netlink.header.parse(message)
        assert header.flags & netlink.Flag.REQUEST
        assert nfnetlink.nfgenmsg.parse(message[16:20]).resource == self._number
        values = nfnetlink.parse_attributes(message[20:], nfqnl.TABLES[header.type])
        if header.type == nfqnl.MSG_CONFIG:
            self.config.append(values)
            return
        assert header.seq == 0
        verdict = values.pop(NFQA.VERDICT_HDR)
        if verdict.verdict & 0xFF == 2 or verdict.verdict & 0xFF > Verdict.STOP:
            self.deliver(error_message(errno.EINVAL, message))
            return
        if header.type == nfqnl.MSG_VERDICT_BATCH:
            covered = [i for i in self.queued if (verdict.packet_id - i) & 0xFFFFFFFF < 0x80000000]
        else:
            covered = [verdict.packet_id] if verdict.packet_id in self.queued else []
        if not covered:
            self.deliver(error_message(errno.ENOENT, message))
        for packet_id in covered:
            del self.queued[packet_id]
            self.judged.append((packet_id, verdict.verdict, values))
