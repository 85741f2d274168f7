"""The beginnings of TCP streams, assembled from segments."""

from __future__ import annotations

from collections import OrderedDict

from .._arguments import check
from ._headers import TCP, TcpFlag, end_of, transport

_SYN, _RST, _ENDS = int(TcpFlag.SYN), int(TcpFlag.RST), int(TcpFlag.FIN | TcpFlag.RST)


class Beginnings:
    """Collects the beginnings of TCP streams from packets, whose segments can arrive in any order.

        beginnings = inet.Beginnings()

        def handle(packet):
            name = inet.server_name(beginnings.add(packet.payload))
            ...

    A stream is the data that one end of a connection sends: the two directions of a connection are two streams,
    distinguished by addresses and ports. A stream begins with its SYN, so the SYN must be among the packets that are
    added. A rule with ``state="established"``, for instance, does not queue the SYN.

    max_bytes: how many bytes of each stream are kept; later bytes are ignored. Default: 16 KiB, as many as
        `server_name` reads.
    max_streams: how many streams are kept. When one more begins, another is discarded: the one that ended first, or, if
        none has ended, the one that has been without a packet for the longest time. Default: 4096.

    A stream takes about 300 bytes of memory, and twice the bytes that are kept of it. With the defaults all streams
    take at most 150 MiB, if every sender sends 16 KiB, and about 17 MiB for 4096 TLS hellos of 2 KB. The time for a
    packet depends neither on the number of streams nor, on average, on how a sender cuts, orders or repeats segments.

    Only one thread at a time may use an object. ``len()`` is the number of streams.

    Raises ArgumentError for limits outside of 1 to 16,777,216.
    """

    def __init__(self, *, max_bytes: int = 16_384, max_streams: int = 4_096) -> None:
        # Sequence numbers distinguish places that are less than 2 GiB away from each other.
        self._max_bytes = check("max_bytes", max_bytes, 1, 1 << 24)
        self._max_streams = check("max_streams", max_streams, 1, 1 << 24)
        # Both in the order in which streams are discarded.
        self._open: OrderedDict[bytes, _Stream] = OrderedDict()
        self._ended: OrderedDict[bytes, _Stream] = OrderedDict()
        self.forgotten = 0
        """How many streams were discarded before they ended. If this grows, ``max_streams`` is too small."""

    def __len__(self) -> int:
        return len(self._open) + len(self._ended)

    def add(self, packet: bytes) -> bytes | None:
        """Add an IP packet, and return the known beginning of the stream to which it belongs.

        That is all data from the first byte on, this packet's data included, up to the first missing byte or to
        ``max_bytes``; b"" after only a SYN. Later packets of the stream also return it. If segments overlap and differ,
        the bytes that arrived first count.

        Returns None if the beginning is not known: the SYN was not among the packets, or the stream was discarded; the
        packet is not TCP, or is a fragment; or data is missing because only a part of the packet was copied
        (``copy_range``).

        A SYN with another sequence number begins a new stream, because it begins a new connection between the same
        ports. A FIN or RST ends the stream. An ended stream is kept while there is room, because its segments can be
        retransmitted, and is discarded before streams that have not ended.
        """
        where = transport(packet)
        if where is None or where.protocol != TCP:
            return None
        header = where.header
        addresses = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
        key = addresses + packet[header : header + 4]
        seq, flags = int.from_bytes(packet[header + 4 : header + 8], "big"), packet[header + 13]
        stream = self._open.get(key) or self._ended.get(key)
        if flags & _SYN and not flags & _RST:
            seq += 1  # the SYN takes a sequence number, the one before that of the first byte
            if stream is None or stream.start != seq:
                stream = self._begin(key, seq)
        if stream is None:
            return None
        place = (seq - stream.start + 0x80000000 & 0xFFFFFFFF) - 0x80000000
        end = end_of(packet)
        data = packet[where.data : min(end, where.data + max(self._max_bytes - place, 0))]
        if end > len(packet) and place + len(data) < self._max_bytes:
            return None
        stream.put(place, data)
        if flags & _ENDS:
            self._ended[key] = stream
            self._open.pop(key, None)
        elif key in self._open:
            self._open.move_to_end(key)
        return stream.beginning()

    def _begin(self, key: bytes, start: int) -> _Stream:
        self._ended.pop(key, None)
        stream = self._open[key] = _Stream(start)
        while len(self) > self._max_streams:
            if self._ended:
                self._ended.popitem(last=False)
            else:
                self._open.popitem(last=False)
                self.forgotten += 1
        return stream


class _Stream:
    """The known data of the beginning of a stream.

    An exception of a signal handler can interrupt its methods anywhere without damage: bytes count as known only after
    they have been stored.
    """

    __slots__ = ("_data", "_known", "_length", "start")

    def __init__(self, start: int) -> None:
        self.start = start  # the sequence number of the first byte
        self._data = bytearray()
        self._known = bytearray()  # for each byte of the data 1 if it has arrived, else 0
        self._length = 0  # of the data before the first gap

    def beginning(self) -> bytes:
        return bytes(self._data[: self._length])

    def put(self, place: int, data: bytes) -> None:
        """Fill gaps with the data, whose first byte is at ``place``. Known bytes stay.

        Each iteration of the loop fills a gap, or a part of one at an end of the data. A segment adds at most one gap,
        so all iterations are at most three times as many as segments, however these overlap.
        """
        end = place + len(data)
        if not data or end <= self._length:
            return
        self._data += bytes(max(end - len(self._data), 0))
        self._known += bytes(max(end - len(self._known), 0))
        gap = self._known.find(0, max(place, self._length), end)
        while gap >= 0:
            stop = self._known.find(1, gap, end)
            stop = end if stop < 0 else stop
            self._data[gap:stop] = data[gap - place : stop - place]
            self._known[gap:stop] = b"\1" * (stop - gap)
            gap = self._known.find(0, stop, end)
        gap = self._known.find(0, self._length)
        self._length = len(self._known) if gap < 0 else gap
