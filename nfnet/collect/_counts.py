"""Counts messages by prefix, interface and protocol, for metrics."""

from __future__ import annotations

import time
from typing import NamedTuple

from .._core.message import FAMILY
from .._printable import printable
from ..inet._headers import WITH_PORTS
from ..log import LogMessage
from ..protocol.nfnetlink import Family
from ._batch import Batch

OTHER = "other"
_MOST_SERIES = 1000
_MOST_REMEMBERED = 4096
_FORGET = 1.0  # seconds for which names of interfaces are cached
_LONGEST = 128  # characters of a prefix, the kernel's maximum
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}
_PLAIN = WITH_PORTS | {58}  # what is no extension header of IPv6


class Series(NamedTuple):
    """The labels of a series."""

    group: str
    prefix: str
    verdict: str
    interface: str
    protocol: str


class Counts:
    """Counts the messages of each series.

    There are at most a thousand series. Messages of further ones are counted with prefix, interface and protocol
    "other".
    """

    def __init__(self) -> None:
        self._series: dict[Series, int] = {}
        self._known: dict[tuple[bytes, int, int], Series] = {}
        self._forget = 0.0

    def add(self, batch: Batch) -> None:
        """Count the messages of a batch."""
        now = time.monotonic()
        if now >= self._forget or len(self._known) >= _MOST_REMEMBERED:
            self._known.clear()
            self._forget = now + _FORGET
        known, series = self._known, self._series
        group = batch.session.group
        for message in batch.messages:
            protocol = _protocol(message)
            key = message.metadata, protocol, group
            which = known.get(key)
            if which is None:
                which = known[key] = self._which(batch, message, protocol)
            series[which] = series.get(which, 0) + 1

    def _which(self, batch: Batch, message: LogMessage, protocol: int) -> Series:
        group, verdict = str(batch.session.group), batch.labels.get("verdict", "")
        found = Series(
            group,
            printable(message.prefix[:_LONGEST]),
            verdict,
            printable(message.indev_name or message.outdev_name or ""),
            _PROTOCOLS.get(protocol, OTHER),
        )
        if found not in self._series and len(self._series) >= _MOST_SERIES:
            return Series(group, OTHER, verdict, OTHER, OTHER)
        return found

    def all(self) -> dict[Series, int]:
        """Return a copy of the counts; from any thread."""
        return self._series.copy()


def _protocol(message: LogMessage) -> int:
    """Return the protocol of an IP packet, -1 for other packets."""
    family, packet = message.raw[FAMILY], message.payload
    if family == Family.IPV4 and len(packet) >= 20:
        return packet[9]
    if family == Family.IPV6 and len(packet) >= 40 and packet[6] in _PLAIN:
        return packet[6]
    flow = message.flow
    return -1 if flow is None else flow.protocol
