"""Takes batches from a stream of NATS JetStream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from ..errors import DecodeError, NfnetError
from ._batch import Batch
from ._nats_client import PATIENCE, SETTINGS, Client, check, token
from ._output import without_password
from ._packed import NewerError, unpack

if TYPE_CHECKING:
    from nats.aio.client import Client as Connection
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

_log = logging.getLogger("nfnet")
T = TypeVar("T")

_ACKNOWLEDGE_WITHIN = 60.0  # seconds; then the server gives a message to another worker
_AGAIN = 5.0  # seconds after which what was given back comes again
_NEWER_AGAIN = 60.0
_MOST_OUT = 10_000  # messages, with all workers together


class Received(NamedTuple):
    """A batch that was taken, and what it is acknowledged with."""

    batch: Batch
    message: Msg


class NatsSource:
    """The messages that `Nats` outputs publish, each to one worker.

    All workers with the same ``consumer`` share a stream's messages. One that is not acknowledged within a minute, for
    its worker was killed, say, goes to another.

    target: what follows ``nats:`` in the URL.
    consumer: the name that workers have in common. Default: "nfnet".
    settings: those of the connection.
    """

    scheme: ClassVar[str] = "nats"
    settings: ClassVar[Mapping[str, Callable[[Any], Any]]] = {**SETTINGS, "consumer": token}

    def __init__(self, target: str, *, consumer: str = "nfnet", **settings: Any) -> None:
        self.target = target
        self._consumer = consumer
        self._client = Client(f"{self.scheme}:{target}", **settings)
        self._subscription: JetStreamContext.PullSubscription | None = None

    @classmethod
    def check(cls, target: str) -> None:
        """As `Output.check`."""
        check(f"{cls.scheme}:{target}")

    @property
    def name(self) -> str:
        """What it is called in reports, without a password."""
        return without_password(f"{self.scheme}:{self.target}")

    def create(self) -> None:
        """Make the stream if it is not there."""
        self._client.create()

    def begin(self) -> None:
        """Make the consumer if it is not there. Raises NfnetError."""
        self._client.find_stream()
        self._subscription = self._client.run(self._subscribe)

    async def _subscribe(self, connection: Connection) -> JetStreamContext.PullSubscription:
        from nats.js.api import AckPolicy, ConsumerConfig
        from nats.js.errors import NotFoundError

        config = ConsumerConfig(
            durable_name=self._consumer,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=_ACKNOWLEDGE_WITHIN,
            max_ack_pending=_MOST_OUT,
        )
        js, stream = connection.jetstream(timeout=PATIENCE), self._client.stream
        try:
            await js.consumer_info(stream, self._consumer)
        except NotFoundError:
            await js.add_consumer(stream, config)
        return await js.pull_subscribe_bind(self._consumer, stream)

    def receive(self, most: int, timeout: float) -> list[Received]:
        """Wait for messages, and take at most so many. Raises NfnetError.

        What cannot be read is reported, and not given out again; what a newer nfnet wrote is left to a worker that is
        as new.
        """

        async def work(connection: Connection) -> list[Msg]:
            if self._subscription is None:
                self._subscription = await self._subscribe(connection)
            try:
                return await self._subscription.fetch(most, timeout)
            except asyncio.TimeoutError:
                return []

        found: list[Received] = []
        answers: list[Callable[[], Awaitable[None]]] = []
        for message in self._run(work):
            try:
                found.append(Received(unpack(message.data), message))
            except NewerError as error:
                _log.warning("%s: %s; it is left to a newer nfnet", message.subject, error)
                answers.append(partial(message.nak, _NEWER_AGAIN))
            except DecodeError as error:
                _log.warning("%s: %s; it is thrown away", message.subject, error)
                answers.append(message.term)
        self._answer(answers)
        return found

    def acknowledge(self, received: Iterable[Received]) -> None:
        """The batches have been stored. Raises NfnetError; then they may come again."""
        self._answer([each.message.ack for each in received])

    def give_back(self, received: Iterable[Received]) -> None:
        """They were not stored: they come again after some seconds, to this worker or another. Raises NfnetError."""
        self._answer([partial(each.message.nak, _AGAIN) for each in received])

    def _answer(self, answers: Sequence[Callable[[], Awaitable[None]]]) -> None:
        async def work(connection: Connection) -> None:
            for answer in answers:
                await answer()
            await connection.flush(int(PATIENCE))  # the server has them

        if answers:
            self._run(work)

    def _run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            return self._client.run(work)
        except NfnetError:
            self._subscription = None  # it went with the connection
            raise

    def close(self) -> None:
        """Close the connection. Raises nothing."""
        self._client.close()
