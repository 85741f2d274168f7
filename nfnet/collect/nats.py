"""Log messages in a stream of NATS JetStream, from which workers receive them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import NfnetError
from . import _units
from ._batch import Batch
from ._nats_client import PATIENCE, SETTINGS, Client, check, subject
from ._output import AwayError, Output, OutputError
from ._packed import pack, pieces

if TYPE_CHECKING:
    from nats.aio.client import Client as Connection
    from nats.js import JetStreamContext


class Nats(Output):
    """Publishes each batch as one or several messages with the subject of the host: ``nfnet.log.HOST``.

    Each has an id of host, boot, group and sequence numbers, by which the server recognizes duplicates. It is stored
    when the server has acknowledged it; all messages of a batch are sent before waiting for acknowledgements.

    target: the part of the URL behind ``nats:``.
    compress: whether to compress with zlib: to about a fifth, for about 2 µs a record. Default: no.
    settings: those of the connection.
    """

    scheme = "nats"
    help = "messages in a JetStream stream, nats://HOST:4222; needs the extra nats"
    settings: ClassVar[Mapping[str, Callable[[Any], Any]]] = {**SETTINGS, "compress": _units.yes_or_no}

    def __init__(self, target: str, *, compress: bool = False, **settings: Any) -> None:
        super().__init__(target)
        self._compress = compress
        self._client = Client(f"{self.scheme}:{target}", **settings)

    @classmethod
    def check(cls, target: str) -> None:
        check(f"{cls.scheme}:{target}")

    def begin(self) -> None:
        try:
            self._client.find_stream()
        except AwayError:  # `idle` reports it; meanwhile messages are kept
            pass
        except NfnetError as error:
            raise NfnetError(f"{self.name}: {error}") from error

    def create(self) -> None:
        try:
            self._client.create()
        except NfnetError as error:
            raise NfnetError(f"{self.name}: {error}") from error

    def write(self, batch: Batch) -> None:
        async def work(connection: Connection) -> None:
            js = connection.jetstream(timeout=PATIENCE)
            await asyncio.gather(*[self._publish(js, piece) for piece in pieces(batch)])

        with _output_errors():
            self._client.run(work)

    async def _publish(self, js: JetStreamContext, batch: Batch) -> None:
        first, last = batch.messages[0].seq, batch.messages[-1].seq
        headers = {"Nats-Msg-Id": f"{batch.session.id}/{first}-{last}"}
        data = pack(batch, compress=self._compress)
        await js.publish(subject(batch.session.host), data, PATIENCE, self._client.stream, headers)

    def idle(self) -> None:
        async def work(connection: Connection) -> None:
            await connection.flush(int(PATIENCE))  # sends a ping, and answers the server's

        with _output_errors():
            self._client.run(work)

    def close(self) -> None:
        self._client.close()


@contextlib.contextmanager
def _output_errors() -> Any:
    try:
        yield
    except NfnetError as error:
        raise OutputError(str(error)) from error
