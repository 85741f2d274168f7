"""NETLINK_SOCK_DIAG: the socket that has a connection or a port, and its owner.

Facts: ``linux/inet_diag.h`` and ``linux/sock_diag.h``. Addresses and ports are big-endian; an IPv4 address is in the
first four of sixteen bytes. Everything else is in the byte order of the host.
"""

from __future__ import annotations

import socket
import struct
from enum import IntEnum
from typing import NamedTuple

from .._construct import Bytes, Const, Default, FormatField, GreedyBytes, Int8ub, Int16ub, Struct
from ..errors import DecodeError
from . import netlink
from .netlink import HEADER_SIZE, PREFIX

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
ANY_COOKIE = b"\xff" * 8  # INET_DIAG_NOCOOKIE: matches every socket
ANY_STATE = 0xFFFFFFFF


class TcpState(IntEnum):
    """``TCP_*`` (``net/tcp_states.h``): the state of a socket. A UDP socket is ESTABLISHED if connected, else CLOSE."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11


_UDPLITE = 136  # socket.IPPROTO_UDPLITE, for which macOS and Windows have no name
_uint32 = FormatField(PREFIX, "L")

# struct inet_diag_sockid
sockid = Struct(
    "source_port" / Int16ub,
    "destination_port" / Int16ub,
    "source" / Bytes(16),
    "destination" / Bytes(16),
    "interface" / Default(_uint32, 0),
    "cookie" / Default(Bytes(8), ANY_COOKIE),
)

# struct inet_diag_req_v2. The kernel uses the states only in a request for all sockets.
request = Struct(
    "family" / Int8ub,
    "protocol" / Int8ub,
    "extensions" / Default(Int8ub, 0),
    "pad" / Const(0, Int8ub),
    "states" / Default(_uint32, ANY_STATE),
    "id" / sockid,
)

# struct inet_diag_msg; attributes follow. Of the addresses, `source` is the socket's own.
message = Struct(
    "family" / Int8ub,
    "state" / Int8ub,
    "timer" / Int8ub,
    "retransmits" / Int8ub,
    "id" / sockid,
    "expires" / _uint32,
    "receive_queue" / _uint32,
    "send_queue" / _uint32,
    "uid" / _uint32,
    "inode" / _uint32,
    "attributes" / GreedyBytes,
)


class Socket(NamedTuple):
    """A socket of this machine, as the kernel describes it.

    ``source`` is its own address, 4 or 16 bytes, all zero if it receives packets to any address. ``cookie`` is unique
    among all sockets since the machine started. ``inode`` is 0 if no file refers to the socket: the program has not yet
    accepted the connection, or has closed it.
    """

    state: int
    source: bytes
    cookie: bytes
    uid: int
    inode: int


# The whole request, and the fields of a message that `Socket` contains. Their schemas mix two byte orders, so these
# formats are written by hand; tests/test_processes.py compares them with the schemas.
_request = struct.Struct(f"{PREFIX}IHHII BBBxI 2s2s16s16sI8s")
_socket = struct.Struct(f"{PREFIX}{HEADER_SIZE}x BB2x 4x16s16x4x8s 12xII")


def build_request(
    protocol: int, local: bytes, local_port: int, remote: bytes, remote_port: int, interface: int = 0
) -> bytes:
    """Return a request for the socket to which the kernel would deliver a packet from ``remote`` to ``local``.

    Both addresses have 4 bytes, or both have 16. A socket that is bound to an interface is found only with the
    interface's index.
    """
    family = socket.AF_INET if len(local) == 4 else socket.AF_INET6
    ends = local_port.to_bytes(2, "big"), remote_port.to_bytes(2, "big"), local, remote
    if protocol in (socket.IPPROTO_UDP, _UDPLITE):
        # For UDP the kernel looks for the socket that receives a packet with this source and destination
        # ("src and dst are swapped for historical reasons", net/ipv4/udp_diag.c).
        ends = ends[1], ends[0], remote, local
    return _request.pack(
        _request.size,
        SOCK_DIAG_BY_FAMILY,
        netlink.Flag.REQUEST,
        0,
        0,
        family,
        protocol,
        0,
        ANY_STATE,
        *ends,
        interface,
        ANY_COOKIE,
    )


def parse_socket(datagram: bytes) -> Socket | None:
    """Return the socket in the kernel's answer, or None if the kernel found no such socket. Raises DecodeError."""
    if netlink.is_answer(datagram):
        netlink.parse_answer(datagram)
        return None
    if len(datagram) < _socket.size:
        raise DecodeError("answer of sock_diag cut short", len(datagram))
    family, state, source, cookie, uid, inode = _socket.unpack_from(datagram)
    return Socket(state, source[:4] if family == socket.AF_INET else source, cookie, uid, inode)
