"""What is inside a packet: IPv4 and IPv6, TCP, UDP and ICMP; read it, and change it so that a receiver takes it.

For handlers that look and change: the kernel takes a replacement as it is, and mends neither lengths nor checksums.
All of this works on plain bytes, from the IP header on: ``packet.payload`` of a queue or a log. Readers return None for
bytes that are no such packet, or have not the whole header of it.
"""

from ._headers import (
    Flow,
    Icmp,
    Ip,
    Tcp,
    TcpFlag,
    TransportHeader,
    Udp,
    describe,
    flow,
    get_data,
    icmp,
    ip,
    protocol,
    tcp,
    transport,
    udp,
)
from ._rewriting import Address, checksum, replace_data, rewrite
from ._streams import Beginnings
from ._tls import INCOMPLETE, Incomplete, server_name

__all__ = [
    "INCOMPLETE",
    "Address",
    "Beginnings",
    "Flow",
    "Icmp",
    "Incomplete",
    "Ip",
    "Tcp",
    "TcpFlag",
    "TransportHeader",
    "Udp",
    "checksum",
    "describe",
    "flow",
    "get_data",
    "icmp",
    "ip",
    "protocol",
    "replace_data",
    "rewrite",
    "server_name",
    "tcp",
    "transport",
    "udp",
]
