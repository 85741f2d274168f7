"""The beginnings of TCP streams, put together from segments."""

from __future__ import annotations

from collections import OrderedDict

from .._arguments import check
from ._headers import TCP, TcpFlag, end_of, transport

_SYN, _RST, _ENDS = int(TcpFlag.SYN), int(TcpFlag.RST), int(TcpFlag.FIN | TcpFlag.RST)


class Beginnings:
    """Collects the beginnings of TCP streams from packets, in whatever order their segments come.

        beginnings = inet.Beginnings()

        def handle(packet):
            name = inet.server_name(beginnings.add(packet.payload))
            ...

    A stream is what one end of a connection sends: the two directions of a connection are two streams, told apart by
    addresses and ports. A stream begins with its SYN, so the SYN must be among the packets that are added: the rule
    must not leave it out, as ``state="established"`` would.

    max_bytes: how many bytes of each stream are kept; what follows them is passed over. Default: 16 KiB, as many as
        `server_name` reads.
    max_streams: how many streams are kept. When one more begins, another is forgotten: the one that ended the longest
        ago, or if none has ended, the one whose last packet was the longest ago. Default: 4096.

    A stream takes some 300 bytes of memory, and twice the bytes that are kept of it. With the defaults all of them take
    at most 150 MiB, if every sender sends that much, and about 17 MiB for 4096 TLS hellos of 2 KB. The time for a
    packet depends neither on the number of streams nor, on average, on how a sender cuts, orders or repeats segments.

    One thread at a time may use an object. ``len()`` is the number of streams.

    Raises ArgumentError for limits outside of 1 to 16,777,216.
    """

    def __init__(self, *, max_bytes: int = 16_384, max_streams: int = 4_096) -> None:
        # Sequence numbers tell places apart that are less than 2 GiB away from each other.
        self._max_bytes = check("max_bytes", max_bytes, 1, 1 << 24)
        self._max_streams = check("max_streams", max_streams, 1, 1 << 24)
        # Both in the order in which they are forgotten.
        self._open: OrderedDict[bytes, _Stream] = OrderedDict()
        self._ended: OrderedDict[bytes, _Stream] = OrderedDict()
        self.forgotten = 0
        """How many streams were forgotten before they ended: if that grows, ``max_streams`` is too small."""

    def __len__(self) -> int:
        return len(self._open) + len(self._ended)

    def add(self, packet: bytes) -> bytes | None:
        """Add an IP packet; returns the beginning of the stream that it is part of, as far as it is known now.

        That is everything from the first byte on, this packet's data included, up to the first byte that is missing, or
        to ``max_bytes``; b"" after a SYN alone. Later packets of the stream get it, too. Where segments overlap, the
        bytes that came first count, if the others differ.

        None if that beginning is not known: the SYN was not among the packets, or the stream has been forgotten; the
        packet is not TCP, or a fragment; or not the whole packet was copied (``copy_range``), and data are missing.

        A SYN with another sequence number begins the stream anew, as a new connection between the same ports does. A
        FIN or RST ends it: it is kept while there is room, since segments may be sent once more, and forgotten before
        those that have not ended.
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
            seq += 1  # the SYN has a number itself, the one before the first byte's
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
    """What is known of the beginning of a stream.

    An exception may interrupt its methods anywhere, a signal handler's for instance, and nothing is wrong afterwards:
    bytes count as known only once they are in their places.
    """

    __slots__ = ("_data", "_known", "_length", "start")

    def __init__(self, start: int) -> None:
        self.start = start  # the sequence number of the first byte
        self._data = bytearray()
        self._known = bytearray()  # for each byte of the data 1 if it has come, else 0
        self._length = 0  # without a gap

    def beginning(self) -> bytes:
        return bytes(self._data[: self._length])

    def put(self, place: int, data: bytes) -> None:
        """Fill with the data, whose first byte is at ``place``, what is not known yet.

        Each turn of the loop fills a gap, or a part of one at an end of the data. A segment leaves at most one gap more
        than there were, so the turns are at most three times as many as segments, however these overlap.
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
