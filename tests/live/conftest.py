"""Networks for live tests: namespaces that each test makes for itself.

client 10.81.1.1 fd81:1::1 -- router 10.81.1.2 fd81:1::2
                              router 10.81.2.1 fd81:2::1 -- server 10.81.2.2 fd81:2::2
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import pytest

from nfnet import KernelError, Packet, Queue, netns

REQUIRED = os.environ.get("NFNET_REQUIRE_LIVE") == "1"
UID, GID = os.geteuid(), os.getegid()  # before the process may become root of a namespace of its own
TIMEOUT = 30.0
QUIET = 0.2  # how long to wait for what should not come

LINKS = (("client", "router", 1), ("router", "server", 2))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/live/" in str(item.path):
            item.add_marker(pytest.mark.live)


def cannot_run(reason: str) -> None:
    """Skip, or fail where skipping is not allowed."""
    if REQUIRED:
        pytest.fail(f"NFNET_REQUIRE_LIVE=1, and this test cannot run: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def privileges() -> str | None:
    """None if this process may make network namespaces, else why not."""
    try:
        netns.create().close()
    except KernelError:
        try:
            netns.become_root()
            netns.create().close()
        except (KernelError, OSError) as error:
            return str(error)
    return None


def wait_for(condition: Callable[[], Any], timeout: float = TIMEOUT) -> bool:
    """Whether ``condition`` came true in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def mac(side: str, number: int) -> str:
    return f"02:00:00:00:{number:02x}:{1 if side in ('client', 'router-server') else 2:02x}"


class Net:
    """Three hosts in a row."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.hosts: dict[str, BinaryIO] = {}
        for name in ("client", "router", "server"):
            self.hosts[name] = self._stack.enter_context(netns.create())
        for left, right, number in LINKS:
            self.at(left, lambda left=left, right=right, number=number: self._connect(left, right, number))
        self.at("router", self._forward)

    def _connect(self, left: str, right: str, number: int) -> None:
        from pyroute2 import IPRoute

        with IPRoute() as ip:
            peer = {"ifname": f"to-{left}", "net_ns_fd": self.hosts[right].fileno(), "address": self.mac(right, left)}
            ip.link("add", ifname=f"to-{right}", kind="veth", address=self.mac(left, right), peer=peer)
        self._configure(left, right, number, 1)
        self.at(right, lambda: self._configure(right, left, number, 2))

    def _configure(self, host: str, peer: str, number: int, mine: int) -> None:
        from pyroute2 import IPRoute

        name = f"to-{peer}"
        with open(f"/proc/sys/net/ipv6/conf/{name}/router_solicitations", "w") as file:
            file.write("0")
        with IPRoute() as ip:
            ip.link("set", ifname="lo", state="up")
            index = ip.link_lookup(ifname=name)[0]
            ip.link("set", index=index, state="up")
            other = 3 - mine
            for address, gateway, length, extra in (
                (f"10.81.{number}.{mine}", f"10.81.{number}.{other}", 24, {}),
                (f"fd81:{number}::{mine}", f"fd81:{number}::{other}", 64, {"flags": 2}),  # without waiting for DAD
            ):
                ip.addr("add", index=index, address=address, prefixlen=length, **extra)
                ip.neigh("replace", dst=gateway, lladdr=self.mac(peer, host), ifindex=index, state=0x80)
                if host != "router":
                    family = socket.AF_INET if "." in gateway else socket.AF_INET6
                    ip.route("add", dst="default", gateway=gateway, oif=index, family=family)

    def _forward(self) -> None:
        for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            with open(f"/proc/sys/net/{path}", "w") as file:
                file.write("1")

    @staticmethod
    def mac(host: str, peer: str) -> str:
        order = ("client", "router", "server")
        return f"02:00:00:00:{order.index(host):02x}:{order.index(peer):02x}"

    def at(self, host: str, function: Callable[[], Any]) -> Any:
        """Call a function on one of the hosts."""
        return netns.call_in(self.hosts[host], function)

    def open_socket(self, host: str, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        sock: socket.socket = self.at(host, lambda: socket.socket(family, kind))
        sock.settimeout(TIMEOUT)
        return self._stack.enter_context(sock)

    def receiver(self, host: str = "server", family: int = socket.AF_INET, port: int = 7000) -> socket.socket:
        sock = self.open_socket(host, family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        return sock

    def index(self, host: str, name: str) -> int:
        return int(self.at(host, lambda: socket.if_nametoindex(name)))

    def proc(self, host: str, name: str) -> list[list[int]] | None:
        """The rows of a table in /proc/net/netfilter; None where this process may not read it."""

        def read() -> str | None:
            try:
                with open(f"/proc/thread-self/net/netfilter/{name}") as file:
                    return file.read()
            except PermissionError:
                return None

        text = self.at(host, read)
        return None if text is None else [[int(word) for word in line.split()] for line in text.splitlines()]

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def net(privileges: str | None) -> Iterator[Net]:
    """A network of this test's own."""
    if privileges:
        cannot_run(privileges)
    net = Net()
    yield net
    net.close()


ADDRESS = {
    ("client", socket.AF_INET): "10.81.1.1",
    ("router", socket.AF_INET): "10.81.1.2",
    ("server", socket.AF_INET): "10.81.2.2",
    ("client", socket.AF_INET6): "fd81:1::1",
    ("router", socket.AF_INET6): "fd81:1::2",
    ("server", socket.AF_INET6): "fd81:2::2",
}


def collect(queue: Queue, count: int) -> list[Packet]:
    """The next packets of a queue, undecided."""
    packets: list[Packet] = []
    deadline = time.monotonic() + TIMEOUT
    while len(packets) < count:
        left = deadline - time.monotonic()
        assert left > 0, f"{len(packets)} of {count} packets came"
        if not queue.process(packets.append):
            select.select([queue], [], [], left)
    return packets


def readable(sock: socket.socket, timeout: float) -> bool:
    return bool(select.select([sock], [], [], timeout)[0])


def kernel_version() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor)


def make_bridge() -> tuple[int, int, int]:
    """Make a bridge of both interfaces of the router; returns its index and those of its ports."""
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        ip.link("add", ifname="br0", kind="bridge")
        bridge = ip.link_lookup(ifname="br0")[0]
        ports = [ip.link_lookup(ifname=name)[0] for name in ("to-client", "to-server")]
        for port in ports:
            ip.link("set", index=port, master=bridge, state="up")
        ip.link("set", index=bridge, state="up")
        # Where the module br_netfilter is loaded, bridged packets would take the way of routed ones, too.
        for name in ("iptables", "ip6tables", "arptables"):
            with (
                contextlib.suppress(FileNotFoundError),
                open(f"/proc/sys/net/bridge/bridge-nf-call-{name}", "w") as file,
            ):
                file.write("0")
        return bridge, ports[0], ports[1]


# An Ethernet frame with a VLAN tag and an IPv4 packet of a protocol that nobody speaks.
TAGGED_FRAME = (
    bytes.fromhex("02000000aa02 02000000aa01 8100 6005 0800")
    + bytes.fromhex("45000018 00010000 40fd0000 0a000001 0a000002")
    + b"data"
)
