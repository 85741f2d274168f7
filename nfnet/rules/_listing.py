"""Lists of the rules of this library that any process has installed, and removal of those of ended processes."""

from __future__ import annotations

import os
from typing import NamedTuple

from .._io.netlink_socket import NetlinkSocket
from ..netns import Netns, call_in
from . import _nftables, _userdata
from ._expressions import COUNTER_BYTES, COUNTER_PACKETS
from ._installation import FAMILIES, TABLE_PREFIX


class InstalledRule(NamedTuple):
    """A rule that is installed."""

    family: str
    table: str
    """The name of its table in the kernel."""
    process: int
    """The id of the process that installed it."""
    orphaned: bool
    """Whether that process has ended, so that `clean` removes the rule."""
    words: str = ""
    """The rule in words of the command line. A long list of values is truncated: "(12 more)"."""
    packets: int = 0
    """How many packets have matched since it was installed."""
    bytes: int = 0
    """How many bytes these packets had."""


def installed(netns: Netns | None = None) -> list[InstalledRule]:
    """Return the rules of this library in a network namespace, of all processes. Raises KernelError."""
    sock = call_in(netns, NetlinkSocket)
    try:
        return list_rules(sock)
    finally:
        sock.close()


def list_rules(sock: NetlinkSocket) -> list[InstalledRule]:
    """Return the rules of this library in the namespace of a socket. Raises KernelError."""
    counted: dict[tuple[int, str], dict[int, tuple[str, int, int]]] = {}
    for found in _nftables.rules(sock):
        if (known := _userdata.unpack(found.userdata)) is not None:
            number, words = known
            rules = counted.setdefault((found.family, found.table), {})
            packets, size = _counts(found)
            before = rules.get(number, ("", 0, 0))
            rules[number] = (words, before[1] + packets, before[2] + size)
    rows: list[InstalledRule] = []
    for family, name, owner in _nftables.tables(sock):
        row = _row(family, name, owner)
        if row is not None:
            rules = counted.get((family, name), {})
            rows += [row._replace(words=w, packets=p, bytes=b) for _, (w, p, b) in sorted(rules.items())] or [row]
    return rows


def _counts(found: _nftables.FoundRule) -> tuple[int, int]:
    """Return the packets and bytes that the kernel's rule has counted."""
    for name, values in found.expressions:
        if name == "counter":
            packets, size = (int.from_bytes(values.get(key, b""), "big") for key in (COUNTER_PACKETS, COUNTER_BYTES))
            return packets, size
    return 0, 0


def _row(family: int, table: str, owner: int | None) -> InstalledRule | None:
    """Return a row with the common data of a table's rules; None if it is not a table of this library."""
    process = table.removeprefix(TABLE_PREFIX).partition("-")[0]
    if not table.startswith(TABLE_PREFIX) or not process.isdecimal():
        return None
    known = {number: text for text, number in FAMILIES.items()}
    # The kernel removes a table with an owner when its process ends.
    orphaned = owner is None and not os.path.exists(f"/proc/{process}")
    return InstalledRule(known.get(family, str(family)), table, int(process), orphaned)


def clean(netns: Netns | None = None) -> list[InstalledRule]:
    """Remove the rules of killed processes, and return them. Since Linux 5.12 the kernel removes such rules itself.

    A process in another pid namespace, such as a container's, looks like one that has ended. Raises KernelError.
    """
    sock = call_in(netns, NetlinkSocket)
    try:
        left = [row for row in list_rules(sock) if row.orphaned]
        for family, table in dict.fromkeys((row.family, row.table) for row in left):
            number = FAMILIES[family] if family in FAMILIES else int(family)
            delete = _nftables.Message(_nftables.DELTABLE, number, [(_nftables.TABLE_NAME, _nftables.text(table))])
            _nftables.commit(sock, [delete], f"removing table {table}")
        return left
    finally:
        sock.close()
