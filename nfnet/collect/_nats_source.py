"""Receives batches from a stream of NATS JetStream."""

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

_ACKNOWLEDGE_WITHIN = 60.0  # seconds without an acknowledgement until the server delivers a message to another worker
_AGAIN = 5.0  # seconds until the server delivers a message again that was given back
_NEWER_AGAIN = 60.0
_MOST_OUT = 10_000  # unacknowledged messages of all workers together


class Received(NamedTuple):
    """A received batch, and the message by which it is acknowledged."""

    batch: Batch
    message: Msg


class NatsSource:
    """The messages that `Nats` outputs published; each is delivered to one worker.

    All workers with the same ``consumer`` share a stream's messages. If a message is not acknowledged within a minute,
    for instance because its worker was killed, it is delivered to another.

    target: the part of the URL behind ``nats:``.
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
        """Check the URL; see `Output.check`."""
        check(f"{cls.scheme}:{target}")

    @property
    def name(self) -> str:
        """Its name in reports, without a password."""
        return without_password(f"{self.scheme}:{self.target}")

    def create(self) -> None:
        """Create the stream if it does not exist."""
        self._client.create()

    def begin(self) -> None:
        """Create the consumer if it does not exist. Raises NfnetError."""
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
        """Wait for messages, and return at most ``most``. Raises NfnetError.

        A message that cannot be read is reported, and never delivered again. One that a newer nfnet wrote is left to a
        worker of that version.
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
                _log.warning("%s: %s; it is discarded", message.subject, error)
                answers.append(message.term)
        self._answer(answers)
        return found

    def waiting(self) -> int:
        """Return how many messages of the stream no worker has acknowledged. Raises NfnetError."""

        async def work(connection: Connection) -> int:
            js = connection.jetstream(timeout=PATIENCE)
            found = await js.consumer_info(self._client.stream, self._consumer)
            return (found.num_pending or 0) + (found.num_ack_pending or 0)

        return self._run(work)

    def acknowledge(self, received: Iterable[Received]) -> None:
        """Report batches as stored. Raises NfnetError; then the server can deliver them again."""
        self._answer([each.message.ack for each in received])

    def give_back(self, received: Iterable[Received]) -> None:
        """Report batches as not stored: the server delivers them again after some seconds, to any worker.

        Raises NfnetError.
        """
        self._answer([partial(each.message.nak, _AGAIN) for each in received])

    def _answer(self, answers: Sequence[Callable[[], Awaitable[None]]]) -> None:
        async def work(connection: Connection) -> None:
            for answer in answers:
                await answer()
            await connection.flush(int(PATIENCE))  # the server has received the answers

        if answers:
            self._run(work)

    def _run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            return self._client.run(work)
        except NfnetError:
            self._subscription = None  # it ended with the connection
            raise

    def close(self) -> None:
        """Close the connection. Raises no exception."""
        self._client.close()
