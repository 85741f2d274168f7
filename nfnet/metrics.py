"""Queues and logs for Prometheus; needs prometheus-client (``pip install 'nfnet[prometheus]'``).

from prometheus_client import REGISTRY
REGISTRY.register(nfnet.metrics.Collector(queue, log))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .errors import NfnetError
from .log import Log
from .queue import Queue

_QUEUE = ("received", "accepted", "dropped", "repeated", "requeued", "lost", "overruns", "malformed")
_LOG = ("received", "lost", "overruns", "malformed")


class Collector:
    """What Prometheus asks for metrics: the counters of queues and logs, and the kernel's own of queues.

    ``nfnet_queue_packets_total{queue, event}``, ``nfnet_queue_pending{queue}``,
    ``nfnet_queue_kernel_dropped_total{queue, reason}``, ``nfnet_log_messages_total{group, event}``. ``event`` has the
    names of `QueueCounters` and `LogCounters`.
    """

    def __init__(self, *readers: Queue | Log) -> None:
        self._readers = readers

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


def serve(port: int, *readers: Queue | Log, address: str = "127.0.0.1") -> Callable[[], None]:
    """Serve the metrics over HTTP, from a thread; returns what ends that. Raises NfnetError, OSError."""
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise NfnetError(f"metrics need prometheus-client: pip install 'nfnet[prometheus]' ({error})") from error
    registry = CollectorRegistry()
    registry.register(Collector(*readers))
    server, thread = start_http_server(port, addr=address, registry=registry)

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end
