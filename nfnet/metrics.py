"""Queues, logs and log collectors for Prometheus; needs prometheus-client (the extra ``prometheus``).

from prometheus_client import REGISTRY
REGISTRY.register(nfnet.metrics.Collector(queue, log))
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ._printable import printable
from .aio import AsyncLog, AsyncQueue
from .collect import Collector as LogCollector
from .collect import Forwarder, Series, SourceState
from .errors import ClosedError, NfnetError
from .log import Log
from .queue import Queue

_QUEUE = ("received", "accepted", "dropped", "repeated", "requeued", "lost", "overruns", "malformed")
_LOG = ("received", "lost", "overruns", "malformed")

_MOST_CLIENTS = 64  # at a time
_PATIENCE = 5.0  # seconds in which a client must send its request and read the answer
_LONGEST_REQUEST = 16384  # bytes
_BACKLOG = 128  # clients that the kernel holds until they are accepted
_PAUSE = 1.0  # seconds to wait after a client could not be accepted

_log = logging.getLogger("nfnet")


Reader = Queue | Log | AsyncQueue | AsyncLog | LogCollector | Forwarder
"""An object that has metrics."""


class Collector:
    """A collector of prometheus-client: the counters of queues, logs and collectors, and the kernel's of queues.

    ``nfnet_queue_packets_total{queue, event}``, ``nfnet_queue_pending{queue}``,
    ``nfnet_queue_kernel_dropped_total{queue, reason}``, ``nfnet_log_messages_total{group, event}``. ``event`` has the
    names of `QueueCounters` and `LogCounters`. A queue or log that has never been open has no metrics yet.

    For a `nfnet.collect.Collector`: the metrics of its logs, and ``nfnet_collect_messages_total{group, prefix, verdict,
    interface, protocol}``, with at most a thousand combinations of labels, the rest being "other"; ``verdict`` is the
    collector's label of that name, of the group or of all groups. ``nfnet_collect_suppressed_total``;
    ``nfnet_collect_output_messages_total{output, event}``, where ``event`` is "stored" or "lost";
    ``nfnet_collect_output_waiting{output}`` and ``nfnet_collect_output_failing{output}``, 0 or 1.

    For a `nfnet.collect.Forwarder`, a worker behind NATS: the same of the messages that it stored, besides those of
    logs, ``nfnet_collect_lost_total``, the messages that the kernels of the hosts lost,
    ``nfnet_collect_source_waiting{source}``, the batches that no worker has acknowledged, and
    ``nfnet_collect_source_failing{source}``, 0 or 1.

    readers: the queues, logs, collectors and workers.
    """

    def __init__(self, *readers: Reader) -> None:
        self._readers: list[Queue | Log | AsyncQueue | AsyncLog] = []
        self._collectors: list[LogCollector | Forwarder] = []
        for reader in readers:
            if isinstance(reader, (LogCollector, Forwarder)):
                reader.count_messages()
                self._collectors.append(reader)
                if isinstance(reader, LogCollector):
                    self._readers += reader.logs
            else:
                self._readers.append(reader)

    def collect(self) -> Iterator[Any]:
        """Yield the metrics as objects of prometheus-client."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        packets = CounterMetricFamily("nfnet_queue_packets", "Packets of a queue", labels=["queue", "event"])
        pending = GaugeMetricFamily("nfnet_queue_pending", "Packets without a verdict", labels=["queue"])
        dropped = CounterMetricFamily(
            "nfnet_queue_kernel_dropped",
            "Packets that the kernel could not queue or deliver",
            labels=["queue", "reason"],
        )
        messages = CounterMetricFamily("nfnet_log_messages", "Messages of a log group", labels=["group", "event"])
        for reader in self._readers:
            with suppress(ClosedError):  # the reader was never open
                self._add(reader, packets, pending, dropped, messages)
        yield from (packets, pending, dropped, messages)
        for collector in self._collectors:
            yield from self._collected(collector)

    @staticmethod
    def _collected(collector: LogCollector | Forwarder) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        messages = CounterMetricFamily("nfnet_collect_messages", "Logged messages", labels=Series._fields)
        for series, count in (collector.counts.all() if collector.counts is not None else {}).items():
            messages.add_metric(series, count)
        state = collector.state()
        suppressed = CounterMetricFamily("nfnet_collect_suppressed", "Messages that a limit left out")
        suppressed.add_metric([], state.suppressed)
        handled = CounterMetricFamily(
            "nfnet_collect_output_messages",
            "Messages that an output stored, or lost",
            labels=["output", "event"],
        )
        waiting = GaugeMetricFamily(
            "nfnet_collect_output_waiting", "Messages that wait for an output", labels=["output"]
        )
        failing = GaugeMetricFamily("nfnet_collect_output_failing", "1 if an output fails", labels=["output"])
        for output in state.outputs:
            name = printable(output.name)
            handled.add_metric([name, "stored"], output.stored)
            handled.add_metric([name, "lost"], output.missed)
            waiting.add_metric([name], output.waiting)
            failing.add_metric([name], int(output.error is not None or output.broken))
        yield from (messages, suppressed, handled, waiting, failing)
        if state.source is not None:
            yield from Collector._of_source(state.source, state.lost)

    @staticmethod
    def _of_source(source: SourceState, lost_by_hosts: int) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        lost = CounterMetricFamily("nfnet_collect_lost", "Messages that the kernels of the hosts lost")
        lost.add_metric([], lost_by_hosts)
        waiting = GaugeMetricFamily(
            "nfnet_collect_source_waiting", "Batches that no worker has acknowledged", labels=["source"]
        )
        if source.waiting is not None:
            waiting.add_metric([printable(source.name)], source.waiting)
        failing = GaugeMetricFamily("nfnet_collect_source_failing", "1 if the source fails", labels=["source"])
        failing.add_metric([printable(source.name)], int(source.error is not None))
        yield from (lost, waiting, failing)

    @staticmethod
    def _add(reader: Any, packets: Any, pending: Any, dropped: Any, messages: Any) -> None:
        if isinstance(reader, (Queue, AsyncQueue)):
            counters, status, socket = reader.stats()
            num = str(reader.num)
            for name in _QUEUE:
                packets.add_metric([num, name], getattr(counters, name))
            pending.add_metric([num], counters.pending)
            if status is not None:
                dropped.add_metric([num, "queue full"], status.queue_dropped)
                dropped.add_metric([num, "receive buffer full"], status.user_dropped)
            elif socket is not None:  # its drops can be read without privileges
                dropped.add_metric([num, "receive buffer full"], socket.dropped)
        else:
            for name in _LOG:
                if (value := getattr(reader.counters, name)) is not None:
                    messages.add_metric([str(reader.group), name], value)


def check_installed() -> None:
    """Raise NfnetError if prometheus-client cannot be imported."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise NfnetError(f"metrics need prometheus-client: pip install 'nfnet[prometheus]' ({error})") from error


def serve(port: int, *readers: Reader, address: str = "127.0.0.1") -> Callable[[], None]:
    """Serve the metrics over HTTP, from a thread; return a function that stops the server.

    Anyone who can reach the address can read the metrics: there is no password. The server answers a GET of any path in
    Prometheus' text format. At most 64 clients are connected at a time: when another one connects, the server
    disconnects the oldest. A client has five seconds to send its request and to read the answer. Raises NfnetError,
    OSError.
    """
    check_installed()
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(Collector(*readers))
    server = _Server(address, port, lambda: generate_latest(registry))
    return server.stop


class _Server:
    """An HTTP server that answers each client once; it runs in one thread, on an event loop of its own.

    The server of prometheus-client starts a thread for each client, without a limit and without a time-out, and prints
    a traceback when it cannot read an Accept header. Here a client costs a descriptor and a task. A complete
    request is answered as soon as it is read, so that only slow clients are disconnected in favour of others.
    """

    def __init__(self, address: str, port: int, content: Callable[[], bytes]) -> None:
        self._content = content
        self._clients: dict[asyncio.Task[None], None] = {}  # oldest first
        try:
            family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
            self._listener = socket.create_server((address, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            text = f"metrics cannot be served at {address} port {port}: {error.strerror or error}"
            raise type(error)(error.errno, text) from None
        self._listener.setblocking(False)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="nfnet-metrics", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._loop.close()
            self._listener.close()
            raise

    def stop(self) -> None:
        if self._thread.is_alive():
            with suppress(RuntimeError):  # another thread has just stopped and closed the loop
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        self._listen()
        try:
            self._loop.run_forever()
        finally:
            self._loop.remove_reader(self._listener)
            self._loop.run_until_complete(self._disconnect_all())
            self._loop.close()
            self._listener.close()

    def _listen(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        """Accept one client. The event loop looks for requests before it accepts the next one."""
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # the client has disconnected
            return
        except OSError as error:  # no file descriptors are left, for instance; the client still waits
            _log.warning("metrics: a client cannot be accepted: %s", error)
            self._disconnect_oldest()
            self._loop.remove_reader(self._listener)
            self._loop.call_later(_PAUSE, self._listen)
            return
        if len(self._clients) >= _MOST_CLIENTS:
            self._disconnect_oldest()
        self._begin(client)

    def _begin(self, client: socket.socket) -> None:
        def done(task: asyncio.Task[None]) -> None:
            timer.cancel()
            client.close()
            self._clients.pop(task, None)

        task = self._loop.create_task(self._serve(client))
        timer = self._loop.call_later(_PATIENCE, task.cancel)
        self._clients[task] = None
        task.add_done_callback(done)

    def _disconnect_oldest(self) -> None:
        if self._clients:
            task = next(iter(self._clients))
            del self._clients[task]
            task.cancel()

    async def _disconnect_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):  # the client has disconnected
            client.setblocking(False)
            request = b""
            while b"\r\n\r\n" not in request:
                data = await self._loop.sock_recv(client, _LONGEST_REQUEST)
                request += data
                if not data or len(request) > _LONGEST_REQUEST:
                    return
            await self._loop.sock_sendall(client, self._answer(request))

    def _answer(self, request: bytes) -> bytes:
        """Return the answer to a request. The request's headers are ignored: every Prometheus reads this format."""
        status, headers, body = "200 OK", "Content-Type: text/plain; version=0.0.4; charset=utf-8", b""
        if not request.startswith(b"GET "):
            status, headers = "405 Method Not Allowed", "Allow: GET"
        else:
            try:
                body = self._content()
            except Exception:
                _log.exception("metrics: collecting them failed")
                status, headers = "500 Internal Server Error", "Content-Type: text/plain"
        head = f"HTTP/1.0 {status}\r\n{headers}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return head.encode() + body
