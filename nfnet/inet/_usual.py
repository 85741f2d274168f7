"""Readers of the usual IP headers and of the four bytes after them in one step, for writers of many records.

The caller must check that the packet is a usual one: no options, no extension headers, no later fragment.
"""

from __future__ import annotations

from .._construct import Bytes, Int8ub, Int16ub, Padding, Struct
from ..protocol.layout import compile_struct

read_ipv4 = compile_struct(
    Struct(
        "version" / Int8ub,
        Padding(1),
        "length" / Int16ub,
        Padding(2),
        "fragment" / Int16ub,
        "ttl" / Int8ub,
        "protocol" / Int8ub,
        Padding(2),
        "source" / Bytes(4),
        "destination" / Bytes(4),
        "source_port" / Int16ub,
        "destination_port" / Int16ub,
    )
).unpack_from
read_ipv6 = compile_struct(
    Struct(
        Padding(4),
        "length" / Int16ub,
        "protocol" / Int8ub,
        "ttl" / Int8ub,
        "source" / Bytes(16),
        "destination" / Bytes(16),
        "source_port" / Int16ub,
        "destination_port" / Int16ub,
    )
).unpack_from

LEAST_IPV4, LEAST_IPV6 = 24, 44
"""The minimum sizes of packets for `read_ipv4` and `read_ipv6`, in bytes."""
