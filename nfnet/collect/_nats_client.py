"""A connection to a NATS server with JetStream, for programs that are not asynchronous.

The event loop of nats-py runs only during our calls, in the calling thread. The owner of a connection must therefore
call `Client.run` from time to time, so that the server's pings are answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from ..errors import ArgumentError, NfnetError, strerror
from . import _units
from ._output import AwayError, without_password

if TYPE_CHECKING:
    from nats.aio.client import Client as Connection

T = TypeVar("T")

SUBJECTS = "nfnet.log.*"
_CONNECT_PATIENCE = 5.0  # seconds
PATIENCE = 10.0
"""Seconds to wait for an answer of the server."""
_DUPLICATES = 120.0  # seconds for which the server remembers ids of messages, in about 100 bytes of memory each

# Errors of JetStream, by their err_code.
_NO_STREAM, _NO_ROOM, _NOT_ENABLED, _NOT_ENABLED_HERE = 10059, 10047, 10076, 10039


def subject(host: str) -> str:
    """Return the subject of a host's messages. Dots, spaces and wildcards, which a token cannot have, are replaced."""
    return "nfnet.log." + (re.sub(r"[^A-Za-z0-9_-]", "_", host) or "_")


def token(value: object) -> str:
    """Check the name of a stream or consumer. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", str(value)):
        raise ValueError(f"{value!r} is no name: letters, digits, - and _")
    return str(value)


SETTINGS: Mapping[str, Callable[[Any], Any]] = {
    "stream": token,
    "keep": _units.seconds,
    "max_size": _units.size,
    "tls": _units.yes_or_no,
    "ca": str,
    "certificate": str,
    "key": str,
    "credentials": str,
    "nkey": str,
}
"""The settings that outputs and sources share, with the function that parses each."""


def check(url: str) -> None:
    """Raise ArgumentError if the URL is wrong, or nats-py is not installed."""
    _driver()
    _servers(url)


def _driver() -> Any:
    try:
        import nats
        import nats.errors
        import nats.js.errors
    except ImportError as error:
        raise ArgumentError(f"NATS needs nats-py: pip install 'nfnet[nats]' ({error})") from None
    return nats


def _servers(url: str) -> tuple[list[str], str | None, str | None]:
    """Return the URLs of the servers without the user, the user (or token), and the password."""
    user: str | None
    hosts = url.removeprefix("nats://")
    login, at, hosts = hosts.rpartition("@")
    servers = [f"nats://{host}" for host in hosts.rstrip("/").split(",")]
    try:
        for server in servers:
            found = urlsplit(server)
            if not found.hostname or found.path or found.query or found.fragment or found.port == 0:
                raise ValueError
    except ValueError:  # from above, or for a wrong port
        servers = []
    if not servers or not url.startswith("nats://"):
        hint = "nats://USER:PASSWORD@HOST:PORT, or several HOST:PORT with commas"
        raise ArgumentError(f"{without_password(url)} is no URL of NATS: write {hint}")
    user, colon, password = login.partition(":")
    return servers, unquote(user) if at else None, unquote(password) if colon else None


class Client:
    """A connection, made when it is needed, and again after it broke.

    url: ``nats://user:password@host:4222``; with a token in place of user and password; or several hosts with commas.
    stream: the stream's name.
    keep, max_size: the stream that `create` makes keeps messages for so many seconds, and so many bytes of them.
    tls: whether to encrypt.
    ca: a file of certificates, one of which must have signed the server's.
    certificate, key: files of the client's certificate and its key.
    credentials, nkey: files of NATS by which the client authenticates itself.

    Raises ArgumentError or OSError for wrong settings.
    """

    def __init__(
        self,
        url: str,
        *,
        stream: str = "nfnet",
        keep: int | None = None,
        max_size: int = 1 << 30,
        tls: bool = False,
        ca: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        credentials: str | None = None,
        nkey: str | None = None,
    ) -> None:
        self.stream = stream
        self._driver = _driver()
        self._url = url
        self._keep, self._max_size = keep, max_size
        servers, user, password = _servers(url)
        self._options: dict[str, Any] = {"servers": servers, "name": "nfnet"}
        if password is not None:
            self._options.update(user=user, password=password)
        elif user is not None:
            self._options.update(token=user)
        for path in (ca, certificate, key, credentials, nkey):
            if path is not None:
                with open(path, "rb"):  # now, so that OSError has the file's name
                    pass
        self._options.update(user_credentials=credentials, nkeys_seed=nkey)
        if credentials or nkey:
            try:
                import nkeys  # noqa: F401
            except ImportError as error:
                raise ArgumentError(f"credentials of NATS need nkeys: pip install 'nfnet[nats]' ({error})") from None
        if tls or ca or certificate or key:
            self._options["tls"] = _context(ca, certificate, key)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: Connection | None = None
        self._said: Exception | None = None  # the last error that nats-py reported

    def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run a coroutine with the connection, and return its result.

        Raises NfnetError for an error of the server, AwayError if it does not answer. Then the connection is closed,
        and the next call makes a new one.
        """
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        try:
            return self._loop.run_until_complete(self._run(work))
        except (self._driver.errors.Error, OSError, asyncio.TimeoutError) as error:
            said = self._said
            self.close()
            raise self._error(error, said) from error
        except BaseException:
            self.close()
            raise

    async def _run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        if self._connection is None or self._connection.is_closed:
            self._connection = await self._connect()
        # nats-py continues to wait for an answer after the connection broke.
        done, broken = asyncio.ensure_future(work(self._connection)), asyncio.ensure_future(self._broken.wait())
        try:
            await asyncio.wait({done, broken}, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                raise self._driver.errors.ConnectionClosedError
            return done.result()
        finally:
            done.cancel()
            broken.cancel()

    async def _connect(self) -> Connection:
        async def heard(error: Exception) -> None:
            self._said = error

        async def closed() -> None:
            broken.set()

        self._said = None
        self._broken = broken = asyncio.Event()
        # A broken connection is made again here, where errors are reported; nats-py would retry without reporting.
        options: dict[str, Any] = {"allow_reconnect": False, "max_reconnect_attempts": 1, "reconnect_time_wait": 0}
        connection: Connection = self._driver.NATS()
        try:
            work = connection.connect(**self._options, **options, connect_timeout=2, error_cb=heard, closed_cb=closed)
            await asyncio.wait_for(work, _CONNECT_PATIENCE)
            context = self._options.get("tls")
            if context is not None and not context.is_used:
                raise NfnetError("the server offers no TLS")
        except BaseException:
            await self._let_go(connection)
            raise
        return connection

    def _error(self, error: Exception, said: Exception | None) -> NfnetError:
        errors, js = self._driver.errors, self._driver.js.errors
        if isinstance(error, js.NoStreamResponseError) or getattr(error, "err_code", None) == _NO_STREAM:
            return NfnetError(f"there is no stream {self.stream}: run nfnet collect with --create once")
        if isinstance(error, errors.NoRespondersError) or (
            isinstance(error, js.ServiceUnavailableError) and error.err_code in (None, _NOT_ENABLED, _NOT_ENABLED_HERE)
        ):
            return NfnetError("the server has no JetStream: start it with -js")
        if isinstance(error, (errors.NoServersError, asyncio.TimeoutError)) and said is not None:
            error = said
        if isinstance(error, ssl.SSLError):
            return NfnetError(f"TLS: {getattr(error, 'verify_message', None) or error.reason or error}")
        if isinstance(error, asyncio.TimeoutError) and not getattr(error, "errno", None):
            return AwayError("no answer")
        text = getattr(error, "description", None) or str(error).removeprefix("nats: ").strip("'")
        if isinstance(error, OSError) and error.errno:
            text = strerror(error.errno) if error.errno > 0 else str(error.strerror)
        text = without_password(" ".join(text.split()) or type(error).__name__)
        if getattr(error, "err_code", None) == _NO_ROOM:
            text += f", for the stream's max_size of {self._max_size} bytes"
        away = isinstance(error, (OSError, asyncio.TimeoutError, errors.NoServersError, errors.ConnectionClosedError))
        return AwayError(text) if away else NfnetError(text)

    def find_stream(self) -> None:
        """Raise NfnetError if the stream does not exist, or has other subjects than our messages."""

        async def work(connection: Connection) -> list[str]:
            return (await connection.jetstream(timeout=PATIENCE).stream_info(self.stream)).config.subjects or []

        subjects = self.run(work)
        if not {SUBJECTS, "nfnet.log.>", "nfnet.>", ">"} & set(subjects):
            raise NfnetError(f"stream {self.stream} takes {', '.join(subjects)}, and not {SUBJECTS}")

    def create(self) -> None:
        """Create the stream if it does not exist."""

        async def work(connection: Connection) -> None:
            from nats.js.api import DiscardPolicy, RetentionPolicy, StreamConfig

            # The server removes a message when a worker has acknowledged it. If the stream is full it refuses new ones,
            # and the senders keep them. DiscardPolicy.OLD would discard messages that no worker has stored.
            config = StreamConfig(
                name=self.stream,
                subjects=[SUBJECTS],
                retention=RetentionPolicy.WORK_QUEUE,
                discard=DiscardPolicy.NEW,
                max_bytes=self._max_size,
                max_age=self._keep or 0,
                duplicate_window=min(_DUPLICATES, self._keep or _DUPLICATES),
            )
            js = connection.jetstream(timeout=PATIENCE)
            try:
                await js.stream_info(self.stream)
            except self._driver.js.errors.NotFoundError:
                await js.add_stream(config)

        self.run(work)
        self.find_stream()

    def close(self) -> None:
        """Close the connection. Raises no exception."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.run_until_complete(self._finish())
            loop.close()

    async def _let_go(self, connection: Connection) -> None:
        with contextlib.suppress(self._driver.errors.Error, OSError, asyncio.TimeoutError):
            await asyncio.wait_for(connection.close(), 1.0)  # it may wait for ever for the other side of TLS

    async def _finish(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._let_go(connection)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # sockets are closed then


class _Context(ssl.SSLContext):
    """A TLS context that records whether it was used: nats-py does not encrypt if the server does not require it."""

    is_used = False

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        self.is_used = True
        return super().wrap_bio(*arguments, **options)


def _context(ca: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext:
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        elif key is not None:
            raise ArgumentError("key without certificate")
    except ssl.SSLError as error:
        files = ", ".join(path for path in (ca, certificate, key) if path)
        raise ArgumentError(f"{files}: no certificates, or another key: {error.reason or error}") from None
    return context
