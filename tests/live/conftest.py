"""Networks for live tests, in network namespaces that each test creates.

client 10.81.1.1 fd81:1::1 -- router 10.81.1.2 fd81:1::2
                              router 10.81.2.1 fd81:2::1 -- server 10.81.2.2 fd81:2::2
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gzip
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import pytest

from nfnet import KernelError, Log, NotSupportedError, Queue, netns, rules
from nfnet.rules._expressions import Expression

from . import matrix

if TYPE_CHECKING:
    from .traffic import Way

REQUIRED = os.environ.get("NFNET_REQUIRE_LIVE") == "1"
UID, GID = os.geteuid(), os.getegid()  # before the process becomes root of a user namespace, if it does
TIMEOUT = 120.0  # an emulated machine is twelve times slower: importing scapy takes half a minute
QUIET = 0.2  # seconds to wait for a packet that must not arrive

LINKS = (("client", "router", 1), ("router", "server", 2))


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "write to a JSON file which features the kernel has, by the tests that are marked with them"
    parser.addoption("--features", metavar="FILE", type=Path, help=text)


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--features", None):
        config.pluginmanager.register(FeatureRecorder(path))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/live/" in str(item.path):
            item.add_marker(pytest.mark.live)
            for name in (name for mark in item.iter_markers("feature") for name in mark.args):
                if name not in matrix.names():
                    raise pytest.UsageError(f"{item.nodeid}: {name!r} is no feature of tests/live/matrix.py")
                item.user_properties.append(("feature", name))


class FeatureRecorder:
    """Writes the results of the tests that are marked with features to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._results: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name in (str(value) for key, value in report.user_properties if key == "feature"):
            if report.failed:
                self._results[name] = f"fails: {report.nodeid}"
            elif report.skipped:
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
                text = reason.removeprefix("Skipped: ").removeprefix(LACKS)
                if LACKS in reason and not self._results.get(name, "").startswith("fails"):
                    self._results[name] = text
            elif report.when == "call":
                self._results.setdefault(name, matrix.WORKS)

    def pytest_sessionfinish(self) -> None:
        debian = re.search(r"Debian (\d+\.\d+\.\d+)", os.uname().version)
        version = f"{debian[1]} (Debian)" if debian else os.uname().release.partition("-")[0]
        matrix.store(self._path, version, self._results)


def cannot_run(reason: str) -> NoReturn:
    """Skip the test, or fail it under NFNET_REQUIRE_LIVE=1."""
    if REQUIRED:
        pytest.fail(f"NFNET_REQUIRE_LIVE=1, and this test cannot run: {reason}")
    pytest.skip(reason)


def featured(feature: str, *values: Any, id: str | None = None) -> Any:
    """Return parameters of a test, and mark the test with these as one of a feature."""
    return pytest.param(*values, marks=pytest.mark.feature(feature), id=id)


LACKS = "this kernel lacks "


def kernel_lacks(what: str, *, option: str | None = None, since: tuple[int, int] | None = None) -> NoReturn:
    """Skip the rest of a test because of the kernel, or fail if this kernel must have the feature.

    option: its option in the kernel's configuration. Fails if /proc/config.gz contains the option.
    since: the first version in which every kernel has it.
    """
    if since and kernel_version() >= since:
        pytest.fail(f"Linux {since[0]}.{since[1]} has {what}, and so should this one")
    if option and any(f"{option}={value}" in kernel_configuration() for value in "ym"):
        pytest.fail(f"this kernel was built with {option}, and {what} is not there all the same")
    details = ([option] if option else []) + ([f"Linux {since[0]}.{since[1]} has it"] if since else [])
    pytest.skip(f"{LACKS}{what}" + (f" ({', '.join(details)})" if details else ""))


@functools.cache
def kernel_configuration() -> set[str]:
    """Return the lines of the kernel's configuration; none if there is no /proc/config.gz."""
    try:
        return set(gzip.decompress(Path("/proc/config.gz").read_bytes()).decode().splitlines())
    except FileNotFoundError:
        return set()


NFT_QUEUE = {"what": "nft's queue expression", "option": "CONFIG_NFT_QUEUE"}
GLUE = {"what": "the glue between queues, logs and connection tracking", "option": "CONFIG_NETFILTER_NETLINK_GLUE_CT"}


def lacking(what: rules.Rule | Queue | Log) -> NotSupportedError | None:
    """Return the error with which the kernel refuses a rule, queue or log; None if it does not."""
    try:
        with what:
            return None
    except NotSupportedError as error:
        return error


def kernel_lacks_cgroups(error: NotSupportedError) -> NoReturn:
    """Skip the rest of a test of the criterion ``cgroup``."""
    assert "cgroup needs CONFIG_NFT_SOCKET, and Linux 5.13" in str(error)
    if kernel_version() < (5, 13):
        kernel_lacks("control groups in nft's socket expression", since=(5, 13))
    kernel_lacks("nft's socket expression", option="CONFIG_NFT_SOCKET")


def only(way: str, rule: rules.Rule) -> rules.Rule:
    """Restrict a rule to nft's own expression, or to the target of iptables."""
    native, target = rule.action.choices(rule.family)
    return doing(rule, native if way == "nft" else target)


def doing(rule: rules.Rule, expressions: list[Expression]) -> rules.Rule:
    """Replace the expressions of a rule's action."""
    kind = type(rule.action)
    action = object.__new__(type(kind.__name__, (kind,), {"choices": lambda self, family: [expressions]}))
    action.__dict__.update(vars(rule.action))
    rule.action = action
    return rule


@pytest.fixture(scope="session")
def privileges() -> str | None:
    """None if this process can create network namespaces, else the error."""
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
    """Wait until a condition is true, and return whether it became true before the timeout."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


@contextlib.contextmanager
def stopped(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Stop a process while the block is executed, so that it finds everything sent in the block at once."""
    process.send_signal(signal.SIGSTOP)
    assert wait_for(lambda: os.waitpid(process.pid, os.WUNTRACED | os.WNOHANG)[0])
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


class Net:
    """Three hosts in a row: client, router, server."""

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
        self._wait(left, right, number, 1)
        self.at(right, lambda: self._wait(right, left, number, 2))

    def _wait(self, host: str, peer: str, number: int, mine: int) -> None:
        """Wait until no packet is lost: the kernel completes both changes some time after the request."""
        from pyroute2 import IPRoute, NetlinkError

        def knows_its_address() -> bool:
            try:
                (route,) = ip.route("get", dst=f"fd81:{number}::{mine}", family=socket.AF_INET6)
            except NetlinkError:
                return False
            return bool(route["type"] == 2)  # RTN_LOCAL

        with IPRoute() as ip:
            index = ip.link_lookup(ifname=f"to-{peer}")[0]
            assert wait_for(lambda: ip.link("get", index=index)[0].get_attr("IFLA_QDISC") != "noop"), host
            assert wait_for(knows_its_address), host

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
        """Return the rows of a table in /proc/net/netfilter; None if this process is not allowed to read it."""

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
    """A new network for this test."""
    if privileges:
        cannot_run(privileges)
    net = Net()
    yield net
    net.close()


@pytest.fixture
def way(net: Net) -> Way:
    """UDP from the client to the server, with queue 1 and log group 5 on the router."""
    from .traffic import Way  # here: that module imports this one

    return Way(net)


ADDRESS = {
    ("client", socket.AF_INET): "10.81.1.1",
    ("router", socket.AF_INET): "10.81.1.2",
    ("server", socket.AF_INET): "10.81.2.2",
    ("client", socket.AF_INET6): "fd81:1::1",
    ("router", socket.AF_INET6): "fd81:1::2",
    ("server", socket.AF_INET6): "fd81:2::2",
}


def collect(reader: Queue | Log, count: int) -> list[Any]:
    """Return the next packets of a queue, undecided, or the next messages of a log: at least so many."""
    found: list[Any] = []
    deadline = time.monotonic() + TIMEOUT
    while len(found) < count:
        left = deadline - time.monotonic()
        assert left > 0, f"{len(found)} of {count} came"
        if not reader.process(found.append):
            select.select([reader], [], [], left)
    return found


def readable(file: Any, timeout: float) -> bool:
    return bool(select.select([file], [], [], timeout)[0])


def said(errors: str) -> str:
    """Return a program's standard error without the warning about the receive buffer, which ordinary users get."""
    return "".join(line for line in errors.splitlines(True) if not line.startswith("the receive buffer has "))


def in_child(function: Callable[[], object]) -> int:
    """Run a function in a forked child, and return its exit status: 0 if the function returned."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kernel_version() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor)


def make_bridge() -> tuple[int, int, int]:
    """Make a bridge of both interfaces of the router, and return its index and those of its ports."""
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        ip.link("add", ifname="br0", kind="bridge")
        bridge = ip.link_lookup(ifname="br0")[0]
        ports = [ip.link_lookup(ifname=name)[0] for name in ("to-client", "to-server")]
        for port in ports:
            ip.link("set", index=port, master=bridge, state="up")
        ip.link("set", index=bridge, state="up")
        # If the module br_netfilter is loaded, bridged packets also pass the hooks of the IP families.
        for name in ("iptables", "ip6tables", "arptables"):
            with (
                contextlib.suppress(FileNotFoundError),
                open(f"/proc/sys/net/bridge/bridge-nf-call-{name}", "w") as file,
            ):
                file.write("0")
        return bridge, ports[0], ports[1]


def send_through_bridge(net: Net, frame: bytes, came: Callable[[], bool], host: str = "client") -> None:
    """Send a frame repeatedly until it has arrived: it takes some time until the ports of a bridge forward."""
    with net.at(host, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sender:
        sender.bind(("to-router" if host == "client" else "br0", 0))

        def send() -> bool:
            sender.send(frame)
            return came()

        assert wait_for(send)


# An Ethernet frame with a VLAN tag and an IPv4 packet of an unassigned protocol.
TAGGED_FRAME = (
    bytes.fromhex("02000000aa02 02000000aa01 8100 6005 0800")
    + bytes.fromhex("45000018 00010000 40fd0000 0a000001 0a000002")
    + b"data"
)


def cgroup_root() -> str | None:
    """Return the mount point of control groups of version 2."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return next((words[4] for words in mounts if words[words.index("-") + 1] == "cgroup2"), None)


@pytest.fixture
def group(net: Net) -> Iterator[str]:
    """Create a control group, and yield its path below the root of control groups."""
    root = cgroup_root()
    if root is None or not os.access(root, os.W_OK):
        pytest.skip("no control groups of version 2 that this user may make")
    path = Path(root, f"nfnet-test-{os.getpid()}", "inner.scope")
    path.mkdir(parents=True)
    yield str(path.relative_to(root))

    def removed() -> bool:  # the kernel removes an ended process from its group some time later
        try:
            path.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    assert wait_for(removed)
    path.parent.rmdir()
