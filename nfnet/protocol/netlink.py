"""Netlink framing: message header, attributes, and the kernel's answer to a request.

Everything at this level is in the byte order of the host, which only this module defines. The data that the netfilter
subsystems put into attributes is big-endian; see `nfqnl`. The schemas are the reference and are slow; `layout` reads
packets.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator
from enum import IntEnum, IntFlag
from typing import Any, Literal, NamedTuple

from .._construct import (
    Bytes,
    Construct,
    ConstructError,
    FormatField,
    GreedyBytes,
    GreedyRange,
    NullStripped,
    Optional,
    Padding,
    Rebuild,
    Struct,
    this,
)
from ..errors import DecodeError

ByteOrder = Literal["little", "big"]

HOST: ByteOrder = sys.byteorder
"""The byte order of this machine. All code that reads host byte order uses this."""
PREFIX = "<" if HOST == "little" else ">"  # for struct formats: host byte order with standard sizes, no alignment

HEADER_SIZE = 16  # sizeof(struct nlmsghdr)
ATTRIBUTE_HEADER_SIZE = 4  # sizeof(struct nlattr)
MAX_ATTRIBUTE_DATA = 0xFFFF - ATTRIBUTE_HEADER_SIZE  # nla_len is 16 bits wide and counts its own header
NESTED = 0x8000  # NLA_F_NESTED, in the type of an attribute that holds attributes
TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK: without NLA_F_NESTED and NLA_F_NET_BYTEORDER (0x4000)

NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_MIN_TYPE = 0x10  # types below this are control messages, the same in all subsystems


class Flag(IntFlag):
    """``nlmsg_flags``; the last two only in answers."""

    REQUEST = 0x1
    MULTI = 0x2
    ACK = 0x4
    ECHO = 0x8
    CAPPED = 0x100
    ACK_TLVS = 0x200


class ErrorAttribute(IntEnum):
    """``NLMSGERR_ATTR_*``: the attributes of an extended acknowledgement."""

    MSG = 1
    OFFS = 2
    COOKIE = 3
    POLICY = 4
    MISS_TYPE = 5
    MISS_NEST = 6


_uint16, _uint32, _int32 = (FormatField(PREFIX, code) for code in "HLl")

# struct nlmsghdr. `length` includes the header but not the padding after the message.
header = Struct(
    "length" / _uint32,
    "type" / _uint16,
    "flags" / _uint16,
    "seq" / _uint32,
    "pid" / _uint32,
)

# The first two fields of `header`, for stepping over many messages.
read_length_and_type = struct.Struct(PREFIX + "IH").unpack_from
read_length_type_and_seq = struct.Struct(PREFIX + "IH2xI").unpack_from

# struct nlattr and its data. The padding can be missing after the last attribute: NFQUEUE never sends it there.
attribute = Struct(
    "length" / Rebuild(_uint16, lambda this: ATTRIBUTE_HEADER_SIZE + len(this.data)),
    "type" / _uint16,
    "data" / Bytes(this.length - ATTRIBUTE_HEADER_SIZE),
    Optional(Padding(-this.length % 4)),
)

attributes = GreedyRange(attribute)

# struct nlmsgerr, up to the header of the request that it echoes. The rest of the request follows unless Flag.CAPPED is
# set; then attributes follow if Flag.ACK_TLVS is set.
nlmsgerr = Struct("error" / _int32, "request" / header)

# The fields of `header` and `nlmsgerr` that are used: length and flags of the answer, the error, and length, type and
# seq of the request.
_read_answer = struct.Struct(PREFIX + "I2xH8xiIH2xI4x").unpack_from
ANSWER_SIZE = 36

error_attributes: dict[int, Construct[Any, Any]] = {
    ErrorAttribute.MSG: NullStripped(GreedyBytes),
    ErrorAttribute.OFFS: _uint32,
    ErrorAttribute.COOKIE: GreedyBytes,
    ErrorAttribute.POLICY: attributes,
    ErrorAttribute.MISS_TYPE: _uint32,
    ErrorAttribute.MISS_NEST: _uint32,
}


class Answer(NamedTuple):
    """The kernel's answer to a request (``NLMSG_ERROR``).

    ``errno`` is 0 for success, ``seq`` and ``type`` are those of the request, ``message`` is the kernel's error text
    and ``offset`` the offset in the request to which the error refers; both are None if the kernel does not send them.
    """

    errno: int
    seq: int
    type: int
    message: str | None = None
    offset: int | None = None


def build_message(type: int, flags: int, seq: int, body: bytes) -> bytes:
    """Return one netlink message. If another message will follow, the body's length must be a multiple of 4."""
    fields = {"length": HEADER_SIZE + len(body), "type": type, "flags": flags, "seq": seq, "pid": 0}
    return bytes(header.build(fields)) + body


def with_length(message: bytes) -> bytes:
    """Return a message with its size as the length in its header."""
    return len(message).to_bytes(4, HOST) + message[4:]


def build_attributes(items: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the attributes, each padded to a multiple of 4 bytes."""
    return bytes(attributes.build([{"type": number, "data": data} for number, data in items]))


def split_messages(datagram: bytes, order: ByteOrder = HOST, size: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield the messages of a datagram, each as its offset and its ``nlmsg_len`` bytes. Raises DecodeError.

    ``size`` is the size of the whole datagram in bytes, if ``datagram`` is only its beginning. Then the last message
    can have fewer bytes than its ``nlmsg_len``; a message without a complete header is left out.
    """
    offset, size = 0, len(datagram) if size is None else size
    while offset < len(datagram):
        left = size - offset
        if left < HEADER_SIZE:
            raise DecodeError(f"{left} bytes are too few for a netlink header", offset)
        if len(datagram) - offset < HEADER_SIZE:
            return
        length = int.from_bytes(datagram[offset : offset + 4], order)
        if length < HEADER_SIZE:
            raise DecodeError(f"netlink message of impossible length {length}", offset)
        if length > left:
            raise DecodeError(f"netlink message of {length} bytes where only {left} are left", offset)
        yield offset, datagram[offset : offset + length]
        offset += (length + 3) & ~3


def is_answer(message: bytes) -> bool:
    """Return whether this is an NLMSG_ERROR, which is also the type of acknowledgements."""
    return int.from_bytes(message[4:6], HOST) == NLMSG_ERROR


def parse_answer(message: bytes) -> Answer:
    """Read one message of type NLMSG_ERROR. Raises DecodeError."""
    # Not with the schemas, which are slow: when a program changes rules the kernel drops queued packets, and then
    # refuses as many verdicts.
    try:
        length, flags, error, request_length, request_type, request_seq = _read_answer(message)
    except struct.error:
        length = 0
    if length < ANSWER_SIZE:
        raise DecodeError("answer of the kernel cut short", len(message))
    text: str | None = None
    offset: int | None = None
    if flags & Flag.ACK_TLVS:
        # If capped, the echo is only the request's header; otherwise the whole request, padded.
        echoed = HEADER_SIZE if flags & Flag.CAPPED else (request_length + 3) & ~3
        for item in attributes.parse(message[HEADER_SIZE + 4 + echoed : length]):
            schema = error_attributes.get(item.type & TYPE_MASK)
            try:
                value = schema.parse(item.data) if schema else item.data
            except ConstructError:
                raise DecodeError(f"extended acknowledgement {item.type} cut short", HEADER_SIZE) from None
            if item.type == ErrorAttribute.MSG:
                text = value.decode("utf-8", "replace")
            elif item.type == ErrorAttribute.OFFS:
                offset = value
    return Answer(-error, request_seq, request_type, text, offset)
