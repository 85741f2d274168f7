"""Messages with information that the kernel does not send: from recordings, from tests, and from the collector."""

from __future__ import annotations

from ._processes import Process


class Annotated(bytes):
    """A datagram, or a message in it, with further information about it."""

    time_ns: int | None
    """The time of its record, in nanoseconds since 1970 (UTC): `Message.timestamp` if the message has none."""
    process: Process | None
    """The process of the packet, set by a test or the collector: `Message.process`."""
    accounts: tuple[str | None, str | None] | None
    """The names of user and group, if the message is from another machine."""
    suppressed: int
    """How many messages this one represents, itself included, if a collector has a limit: `LogMessage.suppressed`."""
    interface_name: str | None
    """The recorded name of the packet's interface, which is `Message.indev` or `Message.outdev`."""

    def __new__(
        cls,
        data: bytes,
        *,
        time_ns: int | None = None,
        process: Process | None = None,
        accounts: tuple[str | None, str | None] | None = None,
        suppressed: int = 0,
        interface_name: str | None = None,
    ) -> Annotated:
        self = super().__new__(cls, data)
        self.time_ns, self.process, self.accounts, self.suppressed = time_ns, process, accounts, suppressed
        self.interface_name = interface_name
        return self

    def part(self, data: bytes) -> Annotated:
        """Return ``data``, a part of the datagram, with the same information."""
        return Annotated(
            data,
            time_ns=self.time_ns,
            process=self.process,
            accounts=self.accounts,
            suppressed=self.suppressed,
            interface_name=self.interface_name,
        )
