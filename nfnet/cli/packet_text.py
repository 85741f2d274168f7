"""A packet or log message as one line of text or JSON, and the names of protocols in such lines."""

from __future__ import annotations

import socket
import time

from .._ecs import ecs
from ..log import LogMessage
from ..packet import Packet

__all__ = ["ecs", "line", "protocol_number"]


def line(message: Packet | LogMessage, note: str = "", *, recorded: bool = False) -> str:
    """Return the line of text. A message without a time gets the current one, unless it is from a recording."""
    text = message.summary(None if recorded else time.time())
    return f"{text} {note}" if note else text


def protocol_number(text: str) -> int:
    """ "udp" or "17". Raises ValueError."""
    if text.isdecimal():
        return int(text)
    try:
        return {"icmpv6": 58}.get(text) or socket.getprotobyname(text)
    except OSError:
        raise ValueError(f"unknown protocol {text!r}") from None
