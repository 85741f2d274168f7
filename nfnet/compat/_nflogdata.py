"""The class of messages of nflogr."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from ..errors import DecodeError
from ..log import LogMessage
from ..protocol import nfnetlink, nfulnl
from ..protocol.layout import build_attribute
from ..protocol.nfulnl import MSG_PACKET, NFULA

_PAYLOAD_PADDING = 4  # bytes that the original appends to raw payloads


class NflogData:
    """A packet that a rule logged. Iteration yields pairs, so that ``dict(data)`` contains all attributes.

    Its arguments are the result of ``_get_raw``: names of interfaces by index, and the bytes of each attribute in the
    order of their numbers, NFULA_PACKET_HDR first, None for missing ones.
    """

    __slots__ = ("_message",)

    _message: LogMessage

    def __init__(self, names: dict[int, str], attributes: Sequence[bytes | None]) -> None:
        data = b""
        for number, value in enumerate(attributes, 1):
            if value is not None:
                end = -_PAYLOAD_PADDING if number == NFULA.PAYLOAD else None
                data += build_attribute(number, value[:end])
        self._message = LogMessage.from_bytes(nfnetlink.build_message(MSG_PACKET, 0, data), names.get)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for name in _FIELDS:
            yield name, getattr(self, name)

    def __repr__(self) -> str:
        try:
            return f"<NflogData {dict(self)}>"
        except DecodeError as error:  # a damaged recording
            return f"<NflogData unreadable: {error}>"

    def __reduce__(self) -> tuple[type[NflogData], tuple[dict[int, str], tuple[bytes | None, ...]]]:
        return NflogData, self._get_raw()

    def _get_raw(self, useraw: bool | None = None) -> tuple[dict[int, str], tuple[bytes | None, ...]]:
        message = self._message
        indexes = (message.indev, message.physindev, message.outdev, message.physoutdev)
        names = {index: self._name(index) or "" for index in indexes if index}
        spans = nfulnl.layouts.find(message.raw).spans
        values = [message.raw[spans[number]] if number in spans else None for number in range(1, max(NFULA) + 1)]
        payload = values[NFULA.PAYLOAD - 1]
        if payload is not None:
            values[NFULA.PAYLOAD - 1] = payload + bytes(_PAYLOAD_PADDING)
        return names, tuple(values)

    def _name(self, index: int | None) -> str | None:
        if not index:
            return None
        name = self._message._name(index)
        if name is None:  # the log was closed before this was read, or the interface was removed
            with suppress(OSError):
                name = socket.if_indextoname(index)
        return name or f"unkn/{index}"

    @property
    def proto(self) -> int:
        """EtherType, one of the constants ``PROTO_*``."""
        return self._message.hw_protocol

    @property
    def hwtype(self) -> int:
        """Type of the incoming interface, one of the constants ``HWTYPE_*``; 0 for packets that this machine sends."""
        return self._message.hwtype or 0

    @property
    def nfmark(self) -> int:
        """The packet's mark."""
        return self._message.mark

    @property
    def timestamp(self) -> float:
        """Arrival time in seconds since 1970; 0.0 if the kernel sent none, for example for packets of this machine."""
        return self._message.timestamp or 0.0

    @property
    def timestamp_us(self) -> int:
        """Arrival time in microseconds since 1970; see `timestamp`."""
        return (self._message.timestamp_ns or 0) // 1000

    @property
    def indev(self) -> str | None:
        """Name of the incoming interface; "unkn/N" for an interface N without a name."""
        return self._name(self._message.indev)

    @property
    def physindev(self) -> str | None:
        """Name of the incoming bridge port."""
        return self._name(self._message.physindev)

    @property
    def outdev(self) -> str | None:
        """Name of the outgoing interface."""
        return self._name(self._message.outdev)

    @property
    def physoutdev(self) -> str | None:
        """Name of the outgoing bridge port."""
        return self._name(self._message.physoutdev)

    @property
    def uid(self) -> int | None:
        """User id of the local sender."""
        return self._message.uid

    @property
    def gid(self) -> int | None:
        """Group id of the local sender."""
        return self._message.gid

    @property
    def hwaddr(self) -> bytes | None:
        """Link-layer source address."""
        return self._message.hwaddr

    @property
    def hwhdr(self) -> bytes | None:
        """Link-layer header."""
        return self._message.hwheader

    @property
    def payload(self) -> bytes | None:
        """The packet from its network header on; None if it was not copied."""
        return self._message.payload or None

    @property
    def prefix(self) -> str:
        """The prefix of the rule."""
        return self._message.prefix


_FIELDS = (
    *("proto", "hwtype", "nfmark", "timestamp", "timestamp_us", "indev", "physindev", "outdev", "physoutdev"),
    *("uid", "gid", "hwaddr", "hwhdr", "payload", "prefix"),
)


def wrap(message: LogMessage) -> NflogData:
    """Convert a message to one of nflogr."""
    data = NflogData.__new__(NflogData)
    data._message = message
    return data
