"""Programs on gevent or eventlet, which replace blocking functions of the standard library."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .conftest import TIMEOUT, Net, readable
from .programs import is_bound, running
from .traffic import Way, logging, queueing

GEVENT = """\
from gevent import monkey
monkey.patch_all()
from gevent import sleep, spawn
"""
EVENTLET = """\
import warnings
warnings.simplefilter("ignore")  # says that it is deprecated
import eventlet
eventlet.monkey_patch()
from eventlet import sleep, spawn
"""

OTHERS = """\
import os, sys

def others():
    for _ in range(3):
        sleep(0.001)
    print("others run", flush=True)

def done(data):
    print(data, flush=True)

where = os.readlink("/proc/thread-self/ns/net")
"""

QUEUE = """\
import nfnet
with nfnet.Queue(1, rcvbuf=100_000) as queue:
    spawn(others)
    def handler(packet):
        packet.accept()
        done(nfnet.inet.get_data(packet.payload))
        queue.stop()
    queue.run(handler)
"""

ITERATION = """\
import nfnet
with nfnet.Queue(1, rcvbuf=100_000) as queue:
    spawn(others)
    for packet in queue:
        packet.accept()
        done(nfnet.inet.get_data(packet.payload))
        break
"""

PROCESS = """\
import select
import nfnet
with nfnet.Queue(1, rcvbuf=100_000) as queue:
    spawn(others)
    def handler(packet):
        packet.accept()
        done(nfnet.inet.get_data(packet.payload))
    while not queue.process(handler):
        select.select([queue], [], [])
"""

STOPPED = """\
import nfnet
with nfnet.Queue(1, rcvbuf=100_000) as queue:
    def stop():
        others()
        while not queue.counters.received:
            sleep(0.001)
        queue.stop()
    spawn(stop)
    queue.run(lambda packet: (packet.accept(), done(nfnet.inet.get_data(packet.payload))))
"""

ELSEWHERE = """\
import nfnet
with nfnet.Queue(1, netns=sys.argv[1], rcvbuf=100_000) as queue:
    assert os.readlink("/proc/thread-self/ns/net") == where, "this thread is still where it was"
    spawn(others)
    for packet in queue:
        packet.accept()
        done(nfnet.inet.get_data(packet.payload))
        break
"""

COMPAT = """\
from nfnet.compat.netfilterqueue import NetfilterQueue
queue = NetfilterQueue()
queue.bind(1, lambda packet: (packet.accept(), done(packet.get_payload()[28:]), queue.unbind()), sock_len=50000)
spawn(others)
queue.run()
"""

RUN_SOCKET = """\
import socket
from nfnet.compat.netfilterqueue import NetfilterQueue
queue = NetfilterQueue()

def callback(packet):
    packet.accept()
    done(packet.get_payload()[28:])
    raise KeyError

queue.bind(1, callback, sock_len=50000)
spawn(others)
with socket.fromfd(queue.get_fd(), socket.AF_NETLINK, socket.SOCK_RAW) as sock:
    try:
        queue.run_socket(sock)
    except KeyError:
        pass
"""

LOG = """\
import nfnet
with nfnet.Log(5, threshold=1, rcvbuf=100_000) as log:
    spawn(others)
    for message in log:
        done(nfnet.inet.get_data(message.payload))
        break
"""

NFLOGR = """\
from nfnet.compat import nflogr
with nflogr.open(5) as log:
    spawn(others)
    done(log.next().payload[28:])
"""

QUEUES = {
    "run": QUEUE,
    "iteration": ITERATION,
    "process": PROCESS,
    "stopped by another": STOPPED,
    "another namespace": ELSEWHERE,
    "NetfilterQueue.run": COMPAT,
    "NetfilterQueue.run_socket": RUN_SOCKET,
}
LOGS = {"iteration": LOG, "nflogr": NFLOGR}


@pytest.fixture(params=["gevent", "eventlet"])
def patched(request: pytest.FixtureRequest) -> str:
    """The beginning of a program in which everything is replaced."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    if request.param == "eventlet" and sys.implementation.name == "pypy":
        pytest.skip("eventlet.monkey_patch() does not return on PyPy")
    return GEVENT if request.param == "gevent" else EVENTLET


@pytest.fixture
def program(net: Net, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    with ExitStack() as stack:

        def start(*parts: str, host: str = "router", arguments: tuple[str, ...] = ()) -> subprocess.Popen[str]:
            script = tmp_path / "script.py"
            script.write_text("".join(parts))
            return stack.enter_context(running(net, [sys.executable, str(script), *arguments], host))

        yield start


def check(way: Way, process: subprocess.Popen[str]) -> None:
    """Other greenlets run while it waits, and then it gets the packet that was sent."""
    assert process.stdout is not None
    assert process.stderr is not None
    assert readable(process.stdout, TIMEOUT), "nothing else runs while it waits"
    assert process.stdout.readline() == "others run\n", process.stderr.read()
    way.send(b"hello")
    output, errors = process.communicate(timeout=TIMEOUT)
    assert (output, errors, process.returncode) == ("b'hello'\n", "", 0)
    assert way.received(1) == [b"hello"]


@pytest.mark.parametrize("how", QUEUES)
def test_queue(net: Net, program: Callable[..., subprocess.Popen[str]], patched: str, how: str) -> None:
    host, arguments = "router", ()
    if how == "another namespace":
        host, arguments = "client", (f"/proc/{os.getpid()}/fd/{net.hosts['router'].fileno()}",)
    with queueing(net):
        check(Way(net), program(patched, OTHERS, QUEUES[how], host=host, arguments=arguments))
    assert not is_bound(net, queue=1)


@pytest.mark.parametrize("how", LOGS)
def test_log(net: Net, program: Callable[..., subprocess.Popen[str]], patched: str, how: str) -> None:
    with logging(net):
        check(Way(net), program(patched, OTHERS, LOGS[how]))
