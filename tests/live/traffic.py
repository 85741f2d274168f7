"""UDP packets through the router, and the rules that queue or log them."""

from __future__ import annotations

import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import nfnet
from nfnet import rules
from nfnet.compat import nflogr
from nfnet.compat.netfilterqueue import NetfilterQueue

from .conftest import ADDRESS, TIMEOUT, Net, readable

V4, V6 = socket.AF_INET, socket.AF_INET6
PORT = 7000

# For each hook: the host that sends the packets, the host of the rule, and the host that receives them.
PATHS = {
    "output": ("client", "client", "server"),
    "forward": ("client", "router", "server"),
    "input": ("client", "router", "router"),
    "prerouting": ("client", "router", "server"),
    "postrouting": ("client", "router", "server"),
}


class Way:
    """UDP from the client to the server, with queue 1 and log group 5 on the router."""

    def __init__(self, net: Net, family: int = V4) -> None:
        self.net, self.here, self.family = net, net.hosts["router"], family
        self.sender = net.open_socket("client", family)
        self.receiver = net.receiver("server", family, PORT)

    def send(self, *data: bytes) -> None:
        for item in data:
            self.sender.sendto(item, (ADDRESS["server", self.family], PORT))

    def received(self, count: int) -> list[bytes]:
        return [self.receiver.recv(70000) for _ in range(count)]

    def bound(self, callback: Any, **options: Any) -> NetfilterQueue:
        def bind() -> NetfilterQueue:
            queue = NetfilterQueue()
            with warnings.catch_warnings():
                # An ordinary user does not get the requested receive buffer.
                warnings.simplefilter("ignore", RuntimeWarning)
                queue.bind(1, callback, **options)
            return queue

        queue: NetfilterQueue = self.net.at("router", bind)
        return queue

    def opened(self, **options: Any) -> nflogr.Nflog:
        log: nflogr.Nflog = self.net.at("router", lambda: nflogr.open(5, **options))
        return log


@contextmanager
def queueing(net: Net, host: str = "router", hook: str = "forward", number: int = 1) -> Iterator[None]:
    with rules.queue(number, hook=hook, protocol="udp", destination_port=PORT, not_mark=99, netns=net.hosts[host]):
        yield


@contextmanager
def logging(net: Net, host: str = "router", hook: str = "forward") -> Iterator[None]:
    with rules.log(5, prefix="said: ", hook=hook, protocol="udp", destination_port=PORT, netns=net.hosts[host]):
        yield


@contextmanager
def handling(queue: nfnet.Queue, handler: Callable[[nfnet.Packet], object]) -> Iterator[None]:
    """Run a handler in another thread while the block is executed; an exception that it raises is raised at the end."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            queue.run(handler)  # type: ignore[arg-type]
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        queue.stop()
        thread.join(TIMEOUT)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


def drained(queue: NetfilterQueue, done: Any) -> None:
    """Run the queue as an event loop would, until done."""
    deadline = time.monotonic() + TIMEOUT
    while not done():
        assert time.monotonic() < deadline
        if readable(queue.get_fd(), 0.1):  # type: ignore[arg-type]
            queue.run(block=False)
