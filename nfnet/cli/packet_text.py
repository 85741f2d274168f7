"""A packet or log message as one line: for people, or as JSON with the field names of the Elastic Common Schema."""

from __future__ import annotations

import datetime
import json
import socket
import time
from typing import Any

from .. import inet
from .._printable import printable
from ..log import LogMessage
from ..packet import Packet
from ..protocol.nfnetlink import Family

_IP = (Family.IPV4, Family.IPV6)


def _when(
    message: Packet | LogMessage, recorded: bool, zone: datetime.tzinfo | None = None
) -> datetime.datetime | None:
    """When it arrived, local time if ``zone`` is None; None for a recorded one whose time no calendar has, or none."""
    moment = message.timestamp
    if moment is None and not recorded:
        moment = time.time()
    try:
        utc = None if moment is None else datetime.datetime.fromtimestamp(moment, datetime.timezone.utc)
        return None if utc is None else utc.astimezone(zone)
    except (OverflowError, ValueError, OSError):  # a damaged recording
        return None


def line(message: Packet | LogMessage, note: str = "", *, recorded: bool = False) -> str:
    """What a person reads, as tcpdump might put it; one from a recording has the time in that, or none."""
    when = _when(message, recorded)
    moment = "--:--:--" if when is None else when.strftime("%H:%M:%S.%f")
    way = printable(f"{message.indev_name or message.indev or '-'} > {message.outdev_name or message.outdev or '-'}")
    words = [moment, way, contents(message)]
    if isinstance(message, LogMessage) and message.prefix:
        words.insert(1, printable(message.prefix.rstrip(" :")) + ":")
    if message.mark:
        words.append(f"mark {message.mark:#x}")
    if message.uid is not None:
        words.append(f"uid {message.uid}")
    return " ".join([*words, note] if note else words)


def contents(message: Packet | LogMessage) -> str:
    """What a packet is."""
    ip, flow = message.ip, message.flow
    if ip is None or flow is None:
        behind = "" if message.family in _IP else f" (EtherType {message.hw_protocol:#06x})"
        return f"{len(message.payload)} bytes that are no IP packet{behind}"
    return _ip_contents(ip, flow, message.tcp, message.icmp)


def contents_as_ip(payload: bytes) -> str:
    """What bytes are that are known to be an IP packet."""
    ip, flow = inet.ip(payload), inet.flow(payload)
    if ip is None or flow is None:
        return "no IP packet"
    return _ip_contents(ip, flow, inet.tcp(payload), inet.icmp(payload))


def _ip_contents(ip: inet.Ip, flow: inet.Flow, tcp: inet.Tcp | None, icmp: inet.Icmp | None) -> str:
    text = str(flow)
    if tcp is not None:
        text += f" [{'.'.join(flag.name or '' for flag in inet.TcpFlag if flag in tcp.flags)}]"
    elif icmp is not None:
        text += f" type {icmp.type} code {icmp.code}"
    return f"{text} {ip.length} bytes{' (fragment)' if ip.fragment else ''}"


def ecs(message: Packet | LogMessage, *, recorded: bool = False, **more: Any) -> str:
    """One line of JSON."""
    ip, flow = message.ip, message.flow
    found: dict[str, Any] = {}
    if (when := _when(message, recorded, datetime.timezone.utc)) is not None:
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
