"""Read and change the contents of packets: IPv4 and IPv6, TCP, UDP and ICMP.

The kernel does not correct the lengths and checksums of a packet that a handler replaces; the functions here do. All of
them work on plain bytes, from the IP header on, such as ``packet.payload`` of a queue or a log. Readers return None for
bytes that are not such a packet, or do not contain its complete header.
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
