"""A packet or log message as a line of JSON, with the field names of the Elastic Common Schema.

`ecs` reads every field from a table. `JsonLines` writes the same lines for many log messages, in an eighth of the time:
it reads the table once for all messages that differ only in time, sequence number, addresses, ports and length, and,
for TCP and ICMP, have the same flags, or type and code.
"""

from __future__ import annotations

import datetime
import json
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from . import inet
from ._accounts import group_name, user_name
from ._annotated import Annotated
from ._core.message import FAMILY
from ._printable import printable
from ._processes import Process
from .inet._headers import WITH_PORTS
from .inet._usual import LEAST_IPV4, LEAST_IPV6, read_ipv4, read_ipv6
from .log import LogMessage
from .packet import Packet
from .protocol.conntrack import Conntrack
from .protocol.nfnetlink import Family

_IP = (Family.IPV4, Family.IPV6)
_TRANSPORTS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}


class _Seen(NamedTuple):
    """The sources of the fields."""

    message: Packet | LogMessage
    ip: inet.Ip | None
    flow: inet.Flow | None
    conntrack: Conntrack | None
    process: Process | None  # if it is known already, because finding it takes long
    moment: int | None  # the time for messages without one


def _when(seen: _Seen) -> str | None:
    moment = seen.message.timestamp_ns
    if moment is None:
        moment = seen.moment
    if moment is None:
        return None
    try:
        utc = datetime.datetime.fromtimestamp(moment // 1_000_000_000, datetime.timezone.utc)
    except (OverflowError, ValueError, OSError):  # a damaged recording can have a time outside the calendar
        return None
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{moment // 1000 % 1_000_000:06}Z"


_ETHERNET_HEADER = 14
_LIKE_ETHERNET = (1, 772)  # ARPHRD_ETHER, ARPHRD_LOOPBACK


def _clean(text: str | None) -> str | None:
    """Return text that JSON can contain, without surrogates for bytes that are not UTF-8."""
    return None if text is None else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _arguments(process: Process) -> list[str | None] | None:
    return [_clean(word) for word in process.command_line or ()] or None


def _interface_name(name: str | None) -> str | None:
    return name and printable(name)


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)


def _prefix(message: Packet | LogMessage) -> str | None:
    if isinstance(message, Packet):
        return None
    return _clean(message.prefix)


def _mac(address: bytes | None) -> str | None:
    return None if address is None else address.hex("-").upper()


def _tcp_flags(seen: _Seen) -> list[str] | None:
    tcp = seen.message.tcp
    return None if tcp is None else [flag.name or "" for flag in inet.TcpFlag if flag in tcp.flags]


def _icmp(seen: _Seen, name: str) -> int | None:
    icmp = seen.message.icmp
    return None if icmp is None else getattr(icmp, name)


def link_header(message: Packet | LogMessage) -> bytes:
    """Return the link-layer header of a packet (outgoing ones: only in the families bridge and netdev), or b""."""
    header = message.l2header
    if header is None and isinstance(message, LogMessage):
        header = message.hwheader
    return header or b""


def destination_mac(message: Packet | LogMessage) -> bytes | None:
    """Return the destination address of a frame, for Ethernet and similar link layers."""
    header = link_header(message)
    hwtype = message.hwtype if isinstance(message, LogMessage) else None
    return header[:6] if len(header) >= _ETHERNET_HEADER and hwtype in (None, *_LIKE_ETHERNET) else None


def _source_mac(seen: _Seen) -> bytes | None:
    found = seen.message.hwaddr
    if found is None and destination_mac(seen.message) is not None:
        found = link_header(seen.message)[6:12]
    return found


def _other_header(seen: _Seen) -> str | None:
    """Return the link-layer header if it contains more than addresses and EtherType."""
    header = link_header(seen.message)
    if destination_mac(seen.message) is not None and len(header) == _ETHERNET_HEADER:
        return None
    return header.hex() or None


def _vlan_tag(seen: _Seen, shift: int, mask: int) -> int | None:
    vlan = seen.message.vlan
    return None if vlan is None else vlan.tci >> shift & mask


def _state(seen: _Seen) -> str | None:
    ctinfo = seen.message.ctinfo
    return None if ctinfo is None else ctinfo.name.lower()


def _suppressed(seen: _Seen) -> int | None:
    return (seen.message.suppressed or None) if isinstance(seen.message, LogMessage) else None


def _ethertype(seen: _Seen) -> int | None:
    return seen.message.hw_protocol if seen.ip is None and seen.message.family not in _IP else None


# A row for each field: its name and its value; None is left out. Fields under nfnet are not in the schema. Fields that
# differ between messages of equal `LogMessage.metadata` are also in `_VARYING`.
_FIELDS: tuple[tuple[str, Callable[[_Seen], Any]], ...] = (
    ("@timestamp", _when),
    ("source.ip", lambda seen: seen.ip and seen.ip.source),
    ("source.port", lambda seen: seen.flow and seen.flow.source_port),
    ("source.mac", lambda seen: _mac(_source_mac(seen))),
    ("destination.ip", lambda seen: seen.ip and seen.ip.destination),
    ("destination.port", lambda seen: seen.flow and seen.flow.destination_port),
    ("destination.mac", lambda seen: _mac(destination_mac(seen.message))),
    ("network.type", lambda seen: seen.ip and f"ipv{seen.ip.version}"),
    ("network.transport", lambda seen: seen.ip and _TRANSPORTS.get(seen.ip.protocol)),
    ("network.iana_number", lambda seen: seen.ip and str(seen.ip.protocol)),
    ("network.bytes", lambda seen: seen.ip and seen.ip.length),
    ("network.vlan.id", lambda seen: _text(_vlan_tag(seen, 0, 0xFFF))),
    ("observer.ingress.interface.id", lambda seen: _text(seen.message.indev)),
    ("observer.ingress.interface.name", lambda seen: _interface_name(seen.message.indev_name)),
    ("observer.egress.interface.id", lambda seen: _text(seen.message.outdev)),
    ("observer.egress.interface.name", lambda seen: _interface_name(seen.message.outdev_name)),
    ("user.id", lambda seen: _text(seen.message.uid)),
    ("user.name", lambda seen: user_name(seen.message.uid, seen.message.raw)),
    ("user.group.id", lambda seen: _text(seen.message.gid)),
    ("user.group.name", lambda seen: group_name(seen.message.gid, seen.message.raw)),
    ("process.pid", lambda seen: seen.process and seen.process.pid),
    ("process.name", lambda seen: seen.process and _clean(seen.process.name)),
    ("process.executable", lambda seen: seen.process and _clean(seen.process.executable)),
    ("process.args", lambda seen: seen.process and _arguments(seen.process)),
    ("container.id", lambda seen: seen.process and seen.process.container),
    ("event.sequence", lambda seen: seen.message.seq if isinstance(seen.message, LogMessage) else None),
    ("event.action", lambda seen: "messages-suppressed" if _suppressed(seen) else None),
    ("nfnet.hook", lambda seen: seen.message.hook.name.lower()),
    ("nfnet.mark", lambda seen: seen.message.mark),
    ("nfnet.id", lambda seen: seen.message.id if isinstance(seen.message, Packet) else None),
    ("nfnet.prefix", lambda seen: _prefix(seen.message)),
    ("nfnet.suppressed", _suppressed),
    ("nfnet.tcp.flags", _tcp_flags),
    ("nfnet.icmp.type", lambda seen: _icmp(seen, "type")),
    ("nfnet.icmp.code", lambda seen: _icmp(seen, "code")),
    ("nfnet.hw_protocol", _ethertype),
    ("nfnet.hwtype", lambda seen: seen.message.hwtype if isinstance(seen.message, LogMessage) else None),
    ("nfnet.hwheader", _other_header),
    ("nfnet.vlan.priority", lambda seen: _vlan_tag(seen, 13, 0x7)),
    ("nfnet.vlan.protocol", lambda seen: seen.message.vlan and seen.message.vlan.protocol),
    ("nfnet.physindev.id", lambda seen: _text(seen.message.physindev)),
    ("nfnet.physindev.name", lambda seen: _interface_name(seen.message.physindev_name)),
    ("nfnet.physoutdev.id", lambda seen: _text(seen.message.physoutdev)),
    ("nfnet.physoutdev.name", lambda seen: _interface_name(seen.message.physoutdev_name)),
    ("nfnet.unit", lambda seen: seen.process and seen.process.unit),
    ("nfnet.conntrack.state", _state),
    ("nfnet.conntrack.id", lambda seen: seen.conntrack and seen.conntrack.id and seen.conntrack.id.hex()),
    ("nfnet.conntrack.mark", lambda seen: seen.conntrack and seen.conntrack.mark),
    ("nfnet.sequence_global", lambda seen: seen.message.seq_global if isinstance(seen.message, LogMessage) else None),
)
_VARYING = {  # conversions of the operator ``%``, in the order of the table
    "@timestamp": '"%s.%06dZ"',
    "source.ip": '"%s"',
    "source.port": "%d",
    "destination.ip": '"%s"',
    "destination.port": "%d",
    "network.bytes": "%d",
    "event.sequence": "%d",
}


def fields(
    message: Packet | LogMessage,
    moment: int | None,
    more: Mapping[str, Any],
    top: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the contents of a line of JSON; ``moment``, nanoseconds since 1970, is for a message without a time.

    more: further fields under nfnet.
    top: further fields beside it.
    """
    raw = message.raw
    process = raw.process if isinstance(raw, Annotated) else None
    seen = _Seen(message, message.ip, message.flow, message.conntrack, process, moment)
    found: dict[str, Any] = {}
    for path, read in _FIELDS:
        if (value := read(seen)) is not None:
            *groups, name = path.split(".")
            group = found
            for each in groups:
                group = group.setdefault(each, {})
            group[name] = value
    found["nfnet"].update(more)
    found.update(top or {})
    return found


def ecs(message: Packet | LogMessage, *, recorded: bool = False, **more: Any) -> str:
    """Return a line of JSON; ``more`` are further fields under nfnet. Without ``recorded``, now is the default time."""
    return json.dumps(fields(message, None if recorded else time.time_ns(), more))


_TCP = 6
_ICMP = (1, 58)  # of IPv4, of IPv6
_PLAIN = WITH_PORTS | {1, 58}  # protocols that are not IPv6 extension headers
_MOST_REMEMBERED = 4096  # of lines and of addresses
_LAST_SECOND = 253_402_300_800  # when the year 10000 begins
_FORGET = 1.0  # seconds; as long as names of interfaces are cached


class JsonLines:
    """Writes log messages as lines of JSON.

    top: further fields, the same in each line.
    more: further fields under nfnet, the same in each line.
    """

    def __init__(self, top: Mapping[str, Any] | None = None, **more: Any) -> None:
        self._top = top or {}
        self._more = more
        self._lines: dict[tuple[bytes, int, int, object], str] = {}
        self._addresses: dict[bytes, str] = {}
        self._second, self._clock = -1, ""
        self._forget = 0.0

    def __call__(self, messages: Iterable[LogMessage], moment: int) -> str:
        """Return a line for each, with its end; ``moment``, nanoseconds since 1970, is for messages without a time."""
        if time.monotonic() >= self._forget:
            self._lines.clear()
            self._forget = time.monotonic() + _FORGET
        return "".join([self._line(message, moment) for message in messages])

    def _line(self, message: LogMessage, otherwise: int) -> str:
        packet = message.payload
        family, size = message.raw[FAMILY], len(packet)
        if family == Family.IPV4 and size >= LEAST_IPV4:
            first, length, fragment, _, protocol, source, destination, source_port, destination_port = read_ipv4(packet)
            plain = first == 0x45 and not fragment & 0x1FFF and length >= LEAST_IPV4
            header = 20
        elif family == Family.IPV6 and size >= LEAST_IPV6 and packet[0] >> 4 == 6:
            length, protocol, _, source, destination, source_port, destination_port = read_ipv6(packet)
            plain = length >= 4 and protocol in _PLAIN
            length += 40
            header = 40
        else:
            plain = False
        seq = message.seq
        if not plain or seq is None:
            return self._slowly(message, otherwise)
        # The other parts of the packet itself that a line contains.
        variant = 0
        if protocol == _TCP:
            end = size if size < length else length
            data = header + (packet[header + 12] >> 2 & 0x3C if size > header + 12 else 0)
            if end < header + 20 or end < data:
                return self._slowly(message, otherwise)
            variant = packet[header + 13]
        elif protocol in _ICMP:
            if (size if size < length else length) < header + 8 or protocol != _ICMP[header // 40]:
                return self._slowly(message, otherwise)
            variant = source_port
        moment = message.timestamp_ns
        if moment is None:
            moment = otherwise
        second = moment // 1_000_000_000
        if second != self._second:
            if not 0 <= second < _LAST_SECOND:
                return self._slowly(message, otherwise)
            self._second, self._clock = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        raw = message.raw
        note = (raw.process, raw.accounts, raw.suppressed) if isinstance(raw, Annotated) else None
        key = message.metadata, protocol, variant, note
        line = self._lines.get(key)
        if line is None:
            if len(self._lines) >= _MOST_REMEMBERED:
                self._lines.clear()
            line = self._lines[key] = _template(fields(message, moment, self._more, self._top)) + "\n"
        fraction = moment // 1000 % 1_000_000
        from_ip = self._addresses.get(source) or self._address(source)
        to_ip = self._addresses.get(destination) or self._address(destination)
        if protocol in WITH_PORTS:
            return line % (self._clock, fraction, from_ip, source_port, to_ip, destination_port, length, seq)
        return line % (self._clock, fraction, from_ip, to_ip, length, seq)

    def _slowly(self, message: LogMessage, moment: int) -> str:
        return json.dumps(fields(message, moment, self._more, self._top)) + "\n"

    def _address(self, address: bytes) -> str:
        if len(self._addresses) >= _MOST_REMEMBERED:
            self._addresses.clear()
        text = socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
        self._addresses[address] = text
        return text


def _template(value: Any, path: str = "") -> str:
    """Return JSON in which the varying values are conversions of the operator ``%``."""
    if path in _VARYING:
        return _VARYING[path]
    if isinstance(value, dict):
        inner = [
            f"{json.dumps(name).replace('%', '%%')}: {_template(item, f'{path}.{name}' if path else name)}"
            for name, item in value.items()
        ]
        return "{" + ", ".join(inner) + "}"
    return json.dumps(value).replace("%", "%%")
