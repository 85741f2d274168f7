"""Interface names for the indexes that the kernel sends, in the network namespace of the calling thread."""

from __future__ import annotations

import socket
import time

# Names change and indexes are reused, but not often; and asking costs several system calls.
_KEEP = 1.0  # seconds
_names: dict[int, tuple[str | None, float]] = {}


def interface_name(index: int | None) -> str | None:
    """The name of the interface, None for one that is gone (or for None). Remembered for a second."""
    if index is None:
        return None
    now = time.monotonic()
    name, until = _names.get(index, (None, 0.0))
    if now >= until:
        try:
            name = socket.if_indextoname(index)
        except (OSError, OverflowError):
            name = None
        _names[index] = (name, now + _KEEP)
    return name
