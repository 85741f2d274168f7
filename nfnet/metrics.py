"""Queues and logs for Prometheus; needs prometheus-client (the extra ``prometheus``).

from prometheus_client import REGISTRY
REGISTRY.register(nfnet.metrics.Collector(queue, log))
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from .aio import AsyncLog, AsyncQueue
from .errors import NfnetError
from .log import Log
from .queue import Queue

_QUEUE = ("received", "accepted", "dropped", "repeated", "requeued", "lost", "overruns", "malformed")
_MOST_CLIENTS = 8
_PATIENCE = 5.0
_LOG = ("received", "lost", "overruns", "malformed")


class Collector:
    """What Prometheus asks for metrics: the counters of queues and logs, and the kernel's own of queues.

    ``nfnet_queue_packets_total{queue, event}``, ``nfnet_queue_pending{queue}``,
    ``nfnet_queue_kernel_dropped_total{queue, reason}``, ``nfnet_log_messages_total{group, event}``. ``event`` has the
    names of `QueueCounters` and `LogCounters`. A queue or log that has never been open has no metrics yet.
    """

    def __init__(self, *readers: Queue | Log | AsyncQueue | AsyncLog) -> None:
        self._readers: list[Queue | Log] = [
            reader._reader if isinstance(reader, (AsyncQueue, AsyncLog)) else reader for reader in readers
        ]

    def collect(self) -> Iterator[Any]:
        """The metrics, as prometheus-client wants them."""
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
            if reader._last_binding is None:  # never open
                continue
            if isinstance(reader, Queue):
                counters, row = reader.stats()
                number = str(reader.num)
                for name in _QUEUE:
                    packets.add_metric([number, name], getattr(counters, name))
                pending.add_metric([number], counters.pending)
                if row is not None:
                    dropped.add_metric([number, "queue full"], row.queue_dropped)
                    dropped.add_metric([number, "receive buffer full"], row.user_dropped)
            else:
                for name in _LOG:
                    if (value := getattr(reader.counters, name)) is not None:
                        messages.add_metric([str(reader.group), name], value)
        yield from (packets, pending, dropped, messages)


def serve(port: int, *readers: Queue | Log | AsyncQueue | AsyncLog, address: str = "127.0.0.1") -> Callable[[], None]:
    """Serve the metrics over HTTP, from threads; returns what ends that. Raises NfnetError, OSError.

    Who may reach the address may read them: there is no password. Clients that are slow keep nobody else from it for
    long: there are eight at a time, and each has five seconds for a request.
    """
    try:
        from prometheus_client import CollectorRegistry, make_wsgi_app
    except ImportError as error:
        raise NfnetError(f"metrics need prometheus-client: pip install 'nfnet[prometheus]' ({error})") from error
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    class Handler(WSGIRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(WSGIServer):
        address_family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
        slots = threading.BoundedSemaphore(_MOST_CLIENTS)

        def process_request(self, request: Any, client_address: Any) -> None:
            if not self.slots.acquire(blocking=False):
                self.shutdown_request(request)
                return
            try:
                threading.Thread(target=self.answer, args=(request, client_address), daemon=True).start()
            except BaseException:  # no thread to be had: the caller says so, and hangs up
                self.slots.release()
                raise

        def answer(self, request: Any, client_address: Any) -> None:
            # Not the socket's timeout: a client that sends a byte now and then would never reach it.
            impatience = threading.Timer(_PATIENCE, _hang_up, (request,))
            impatience.daemon = True
            try:
                impatience.start()
                with suppress(OSError):  # the client is gone
                    self.finish_request(request, client_address)
            finally:
                impatience.cancel()
                self.shutdown_request(request)
                self.slots.release()

    registry = CollectorRegistry()
    registry.register(Collector(*readers))
    server = Server((address, port), Handler)
    server.set_app(make_wsgi_app(registry))
    thread = threading.Thread(target=server.serve_forever, name="nfnet-metrics", daemon=True)
    thread.start()

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end


def _hang_up(request: socket.socket) -> None:
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)
