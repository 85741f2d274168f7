"""The copies of a set in the tables of the rules that use it.

If a change fails in one of several tables it is undone. A copy that may differ from the set (`Table.is_stale`) is
rewritten, in one transaction like any other change.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence

from .._io.netlink_socket import NetlinkSocket
from ..errors import AckTimeoutError, ClosedError, KernelError
from . import _nftables
from ._contents import Change, Content
from ._nftables import Message
from ._set_messages import KernelSet

# The kernel's errors for elements that expire at this moment, which the kernel removes slightly earlier or later.
_OTHER_MOMENT = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT)
_GONE = "Another program removed the table of the rule: remove the rule, and install it again"


class Table:
    """The tables of one installation that have a copy of a set: one for each family, with one name and one socket."""

    def __init__(self, sock: NetlinkSocket, name: str) -> None:
        self.sock, self.name = sock, name
        self.families: list[int] = []
        self.is_stale = False
        """Whether the kernel's copy may differ, because a change was interrupted."""


class Copies:
    """Keeps the copies of a set equal to its contents. Its methods are called with the lock of the sets."""

    def __init__(self, kind: str, kernel_sets: Sequence[KernelSet], contents: Sequence[Content]) -> None:
        self._kind, self._kernel_sets, self._contents = kind, kernel_sets, contents
        self.tables: list[Table] = []

    def attach(self, sock: NetlinkSocket, family: int, name: str) -> None:
        """Register a copy in a table that belongs to a socket."""
        table = next((table for table in self.tables if table.sock is sock), None)
        if table is None:
            table = Table(sock, name)
            self.tables = [*self.tables, table]
        table.families.append(family)

    def detach(self, sock: NetlinkSocket) -> None:
        """Forget the copies in the tables of a socket."""
        self.tables = [table for table in self.tables if table.sock is not sock]

    def forget(self) -> None:
        """Forget all copies."""
        self.tables = []

    def creation(self, family: int, table: str, now: float) -> Iterator[Message]:
        """Yield the messages that make a copy in a table."""
        for kernel_set in self._kernel_sets:
            yield kernel_set.creation(family, table)
        for kernel_set, segments in zip(self._kernel_sets, self.segments(now)):
            yield from kernel_set.addition(family, table, segments.items(), now)

    def send(self, plans: Sequence[Change], now: float, begun: list[Table]) -> None:
        """Change all copies; ``begun`` gets the tables whose copies may have changed. Raises KernelError."""
        for table in self.tables:
            was_stale, table.is_stale = table.is_stale, True
            begun.append(table)
            try:
                self._send_to(table, plans, now, was_stale)
            except ClosedError:  # the socket was closed, and the kernel has removed the table with it
                self.detach(table.sock)
            except AckTimeoutError:
                raise
            except KernelError:  # the kernel refused the whole transaction
                table.is_stale = was_stale
                raise

    def _send_to(self, table: Table, plans: Sequence[Change], now: float, was_stale: bool) -> None:
        if not was_stale:
            try:
                self._commit(table, self._messages(table, plans, now))
                return
            except KernelError as error:
                if error.errno not in _OTHER_MOMENT:
                    raise
        self._rewrite(table, plans, now)

    def restore(self, begun: list[Table], now: float) -> None:
        """Rewrite the copies that a failed or interrupted change may have changed."""
        for table in begun:
            if table.is_stale:
                try:
                    self._rewrite(table, (), now)
                except (KernelError, ClosedError):
                    continue  # the next change rewrites it
                table.is_stale = False

    def _messages(self, table: Table, plans: Sequence[Change], now: float) -> Iterator[Message]:
        for family in table.families:
            for kernel_set, plan in zip(self._kernel_sets, plans):
                yield from kernel_set.removal(family, table.name, plan.gone)
                yield from kernel_set.addition(family, table.name, plan.come, now)

    def _rewrite(self, table: Table, plans: Sequence[Change], now: float) -> None:
        """Replace the contents of a copy by the elements that are stored here, with the changes of ``plans``."""
        messages: list[Message] = []
        for family in table.families:
            for kernel_set, segments in zip(self._kernel_sets, self.segments(now, plans)):
                messages.append(kernel_set.clearing(family, table.name))
                messages += kernel_set.addition(family, table.name, segments.items(), now)
        try:
            self._commit(table, messages)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                raise KernelError(error.operation, errno.ENOENT, message=error.message, hint=_GONE) from None
            raise

    def segments(self, now: float, plans: Sequence[Change] = ()) -> Iterator[dict[bytes, float]]:
        """Yield the segments of each of the kernel's sets with their deadlines, after the changes of ``plans``."""
        for place, content in enumerate(self._contents):
            there = {segment: content.deadlines[element] for segment, element in content.segments(now).items()}
            for plan in plans[place : place + 1]:
                for segment in plan.gone:
                    there.pop(segment, None)
                there.update(plan.come)
            yield there

    def _commit(self, table: Table, messages: Iterable[Message]) -> None:
        messages = list(messages)
        if messages:
            _nftables.commit(table.sock, messages, f"changing a set of the kind {self._kind!r}")

    def listed(self, now: float) -> Iterator[tuple[dict[bytes, bytes], bytes]]:
        """Yield the elements by their keys in the kernel, and data for `read_counts`."""
        for kernel_set, content in zip(self._kernel_sets, self._contents):
            size = kernel_set.part.size
            elements = {segment[:size]: element for segment, element in content.segments(now).items()}
            for table in self.tables:
                for family in table.families:
                    for data in kernel_set.listing(table.sock, family, table.name):
                        yield elements, data
