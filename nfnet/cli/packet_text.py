"""A packet or log message as one line: for people, or as JSON with the field names of the Elastic Common Schema."""

from __future__ import annotations

import datetime
import json
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from .. import inet
from .._printable import printable
from ..log import LogMessage
from ..packet import Packet
from ..protocol.nfnetlink import Family

_IP = (Family.IPV4, Family.IPV6)
_TRANSPORTS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}


def line(message: Packet | LogMessage, note: str = "", *, recorded: bool = False) -> str:
    """What a person reads; what has no time came just now, unless it is from a recording."""
    text = message.summary(None if recorded else time.time())
    return f"{text} {note}" if note else text


def _when(message: Packet | LogMessage, recorded: bool) -> str | None:
    moment = message.timestamp
    if moment is None:
        if recorded:
            return None
        moment = time.time()
    try:
        utc = datetime.datetime.fromtimestamp(moment, datetime.timezone.utc)
    except (OverflowError, ValueError, OSError):  # a damaged recording has a time that no calendar has
        return None
    return utc.isoformat().replace("+00:00", "Z")


class _Seen(NamedTuple):
    """What the fields are read from."""

    message: Packet | LogMessage
    ip: inet.Ip | None
    flow: inet.Flow | None
    recorded: bool


def _interface_name(name: str | None) -> str | None:
    return name and printable(name)


def _ethertype(seen: _Seen) -> int | None:
    return seen.message.hw_protocol if seen.ip is None and seen.message.family not in _IP else None


# A row for each field: where it is, and what it is; what is None is left out. Those under nfnet are not in the schema.
_FIELDS: tuple[tuple[str, Callable[[_Seen], Any]], ...] = (
    ("@timestamp", lambda seen: _when(seen.message, seen.recorded)),
    ("source.ip", lambda seen: seen.ip and seen.ip.source),
    ("source.port", lambda seen: seen.flow and seen.flow.source_port),
    ("source.mac", lambda seen: _mac(seen.message.hwaddr) if seen.ip else None),
    ("destination.ip", lambda seen: seen.ip and seen.ip.destination),
    ("destination.port", lambda seen: seen.flow and seen.flow.destination_port),
    ("network.type", lambda seen: seen.ip and f"ipv{seen.ip.version}"),
    ("network.transport", lambda seen: seen.ip and _TRANSPORTS.get(seen.ip.protocol)),
    ("network.iana_number", lambda seen: seen.ip and str(seen.ip.protocol)),
    ("network.bytes", lambda seen: seen.ip and seen.ip.length),
    ("observer.ingress.interface.id", lambda seen: _text(seen.message.indev)),
    ("observer.ingress.interface.name", lambda seen: _interface_name(seen.message.indev_name)),
    ("observer.egress.interface.id", lambda seen: _text(seen.message.outdev)),
    ("observer.egress.interface.name", lambda seen: _interface_name(seen.message.outdev_name)),
    ("user.id", lambda seen: _text(seen.message.uid)),
    ("nfnet.hook", lambda seen: seen.message.hook.name.lower()),
    ("nfnet.mark", lambda seen: seen.message.mark),
    ("nfnet.id", lambda seen: seen.message.id if isinstance(seen.message, Packet) else None),
    ("nfnet.prefix", lambda seen: _prefix(seen.message) if isinstance(seen.message, LogMessage) else None),
    ("nfnet.hw_protocol", _ethertype),
)


def ecs(message: Packet | LogMessage, *, recorded: bool = False, **more: Any) -> str:
    """One line of JSON; ``more`` are further fields under nfnet."""
    seen = _Seen(message, message.ip, message.flow, recorded)
    found: dict[str, Any] = {}
    for path, read in _FIELDS:
        if (value := read(seen)) is not None:
            *groups, name = path.split(".")
            group = found
            for each in groups:
                group = group.setdefault(each, {})
            group[name] = value
    found["nfnet"].update(more)
    return json.dumps(found)


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)


def _prefix(message: LogMessage) -> str:
    return message.prefix.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _mac(address: bytes | None) -> str | None:
    return None if address is None else address.hex("-").upper()


def protocol_number(text: str) -> int:
    """ "udp" or "17". Raises ValueError."""
    if text.isdecimal():
        return int(text)
    try:
        return {"icmpv6": 58}.get(text) or socket.getprotobyname(text)
    except OSError:
        raise ValueError(f"unknown protocol {text!r}") from None
