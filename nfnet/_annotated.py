"""Datagrams with information that the kernel does not send: from recordings and from tests."""

from __future__ import annotations

from ._processes import Process


class Annotated(bytes):
    """A datagram, or a message in it, and what a recording or a test says of it."""

    time_ns: int | None
    """The time of its record, in nanoseconds since 1970 (UTC): `Message.timestamp` if the message has none."""
    process: Process | None
    """The process that a test says is behind the packet: `Message.process`."""
    interface_name: str | None
    """The name of the interface that a recording says the packet passed: of `Message.indev` or `Message.outdev`."""

    def __new__(
        cls,
        data: bytes,
        *,
        time_ns: int | None = None,
        process: Process | None = None,
        interface_name: str | None = None,
    ) -> Annotated:
        self = super().__new__(cls, data)
        self.time_ns, self.process, self.interface_name = time_ns, process, interface_name
        return self

    def part(self, data: bytes) -> Annotated:
        """Return ``data``, a part of the datagram, with the same information."""
        return Annotated(data, time_ns=self.time_ns, process=self.process, interface_name=self.interface_name)
