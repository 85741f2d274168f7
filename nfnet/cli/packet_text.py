"""A packet or log message as one line: for people, or as JSON with the field names of the Elastic Common Schema."""

from __future__ import annotations

import datetime
import json
import socket
import time
from typing import Any

from .._printable import printable
from ..log import LogMessage
from ..packet import Packet
from ..protocol.nfnetlink import Family

_IP = (Family.IPV4, Family.IPV6)


def line(message: Packet | LogMessage, note: str = "", *, recorded: bool = False) -> str:
    """What a person reads; what has no time came just now, unless it is from a recording."""
    text = message.summary(None if recorded else time.time())
    return f"{text} {note}" if note else text


def _when(message: Packet | LogMessage, recorded: bool) -> datetime.datetime | None:
    moment = message.timestamp
    if moment is None:
        if recorded:
            return None
        moment = time.time()
    try:
        return datetime.datetime.fromtimestamp(moment, datetime.timezone.utc)
    except (OverflowError, ValueError, OSError):  # a damaged recording has a time that no calendar has
        return None


def ecs(message: Packet | LogMessage, *, recorded: bool = False, **more: Any) -> str:
    """One line of JSON."""
    ip, flow = message.ip, message.flow
    found: dict[str, Any] = {}
    if (when := _when(message, recorded)) is not None:
        found["@timestamp"] = when.isoformat().replace("+00:00", "Z")
    if ip is not None and flow is not None:
        found["source"] = _present(ip=ip.source, port=flow.source_port, mac=_mac(message.hwaddr))
        found["destination"] = _present(ip=ip.destination, port=flow.destination_port)
        transport = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}.get(ip.protocol)
        found["network"] = _present(
            type=f"ipv{ip.version}", transport=transport, iana_number=str(ip.protocol), bytes=ip.length
        )
    observer = _present(ingress=_interface(message, "indev"), egress=_interface(message, "outdev"))
    if observer:
        found["observer"] = observer
    if message.uid is not None:
        found["user"] = {"id": str(message.uid)}
    nfnet: dict[str, Any] = {"hook": message.hook.name.lower(), "mark": message.mark, **more}
    if isinstance(message, LogMessage):
        nfnet["prefix"] = message.prefix.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    else:
        nfnet["id"] = message.id
    if ip is None and message.family not in _IP:
        nfnet["hw_protocol"] = message.hw_protocol
    found["nfnet"] = nfnet
    return json.dumps(found)


def _interface(message: Packet | LogMessage, which: str) -> dict[str, Any] | None:
    index = getattr(message, which)
    name = getattr(message, f"{which}_name")
    return None if index is None else {"interface": _present(id=str(index), name=name and printable(name))}


def _mac(address: bytes | None) -> str | None:
    return None if address is None else address.hex("-").upper()


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def protocol_number(text: str) -> int:
    """ "udp" or "17". Raises ValueError."""
    if text.isdecimal():
        return int(text)
    try:
        return {"icmpv6": 58}.get(text) or socket.getprotobyname(text)
    except OSError:
        raise ValueError(f"unknown protocol {text!r}") from None
