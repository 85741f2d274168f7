"""``nfnet block`` on the kernel: which packets it blocks, which pass, and its output."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nfnet import cli, rules

from .conftest import ADDRESS, QUIET, TIMEOUT, Net, in_child, kernel_lacks_cgroups, lacking, readable, wait_for
from .programs import running
from .test_actions import SENDER
from .test_commands import finish
from .test_emulation import V4, V6, connect
from .test_process import drop_capabilities

families = pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])


@contextmanager
def block(net: Net, *arguments: str, host: str = "router") -> Iterator[subprocess.Popen[str]]:
    """The command, once its rules are there."""
    with running(net, [sys.executable, "-m", "nfnet", "block", *arguments], host) as process:
        assert wait_for(lambda: rules.installed(net.hosts[host]) or process.poll() is not None)
        yield process


def ends(net: Net, process: subprocess.Popen[str], number: signal.Signals | None = signal.SIGTERM) -> tuple[str, str]:
    output, errors = finish(process, number)
    assert rules.installed(net.hosts["router"]) == []
    first, last = errors.splitlines()
    return first, last + "\n" + output


def passes(net: Net, sender: str, receiver: str, family: int, port: int = 7000, *, timeout: float = TIMEOUT) -> bool:
    """Whether a datagram arrives."""
    with net.receiver(receiver, family, port) as inside, net.open_socket(sender, family) as outside:
        try:
            outside.sendto(b"x", (ADDRESS[receiver, family], port))
        except OSError:  # `send` raises an error for packets dropped at output
            return False
        return readable(inside, timeout)


def is_stopped(net: Net, sender: str, receiver: str, family: int, port: int = 7000) -> bool:
    """Whether a datagram does not arrive."""
    return not passes(net, sender, receiver, family, port, timeout=QUIET)


@families
def test_an_address_is_blocked_in_all_directions(net: Net, family: int) -> None:
    client = ADDRESS["client", family]
    with block(net, client) as process:
        assert is_stopped(net, "client", "router", family)
        assert is_stopped(net, "router", "client", family)
        assert is_stopped(net, "client", "server", family)
        assert is_stopped(net, "server", "client", family)
        assert passes(net, "router", "server", family)
        first, said = ends(net, process)
    assert first == f"dropping packets from and to {client}, until Ctrl-C"
    summary, *rows = said.splitlines()
    size = 29 if family == V4 else 49
    assert summary == f"stopped 4 packets, {4 * size} bytes"
    assert [row.split() for row in rows] == [
        ["1", "packets", str(size), "bytes", "drop", f"hook={hook}", f"{side}={client}"]
        for hook, side in (
            ("input", "source"),
            ("output", "destination"),
            ("forward", "source"),
            ("forward", "destination"),
        )
    ]
    assert passes(net, "client", "server", family)


def test_networks_of_both_families_at_once(net: Net) -> None:
    with block(net, "10.81.2.0/24", "fd81:2::/64") as process:
        for family in (V4, V6):
            assert is_stopped(net, "client", "server", family)
            assert is_stopped(net, "router", "server", family)
            assert passes(net, "client", "router", family)
        assert ends(net, process, signal.SIGINT)[1].startswith("stopped 4 packets, ")


@families
def test_ports(net: Net, family: int) -> None:
    with block(net, "--port", "7001,7100-7110") as process:
        assert is_stopped(net, "client", "server", family, 7001)
        assert is_stopped(net, "router", "server", family, 7001)
        assert is_stopped(net, "client", "router", family, 7105)
        assert passes(net, "client", "server", family, 7000)
        assert ends(net, process)[0] == "dropping packets to port 7001,7100-7110, until Ctrl-C"


def test_a_port_of_one_protocol_and_of_an_address(net: Net) -> None:
    with block(net, "--port", "7100", "--protocol", "tcp", ADDRESS["client", V4], "--reject"):
        assert isinstance(connect(net, V4), ConnectionRefusedError)
        assert connect(net, V4, port=7101) is None
        assert connect(net, V6) is None
        assert passes(net, "client", "server", V4, 7100)


@families
@pytest.mark.parametrize("host", ["client", "router"])
@pytest.mark.parametrize("what", ["its address", "the port"])
def test_the_sender_is_told_of_what_is_rejected(net: Net, family: int, host: str, what: str) -> None:
    """Also where the kernel's answer is for or from the address that is blocked."""
    address = ADDRESS["client" if host == "client" else "server", family]
    with block(net, "--reject", *([address] if what == "its address" else ["--port", "7100"])) as process:
        assert isinstance(connect(net, family, host), ConnectionRefusedError)
        with net.open_socket(host, family) as sock:
            sock.connect((ADDRESS["server", family], 7100))
            try:
                sock.send(b"x")
                with pytest.raises(OSError, match="refused|unreachable"):
                    sock.recv(10)
            except (
                ConnectionRefusedError,
                PermissionError,
            ):  # `send` raises an error: this host's packets are dropped at output
                pass
        first, said = ends(net, process)
    assert first.startswith("rejecting packets ")
    assert said.startswith("stopped 2 packets, ")
    assert "accept" not in said


def test_programs_of_a_user(net: Net) -> None:
    with block(net, "--user", "0", ADDRESS["server", V4]) as process:
        assert is_stopped(net, "router", "server", V4)
        assert passes(net, "client", "server", V4)
        assert passes(net, "router", "client", V4)
        first, said = ends(net, process)
    assert first == f"dropping packets from and to {ADDRESS['server', V4]} of user 0, until Ctrl-C"
    assert len(said.splitlines()) == 2


def test_a_control_group(net: Net, group: str) -> None:
    """Its programs cannot speak to the address, and others can."""
    (root,) = {
        line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line
    }
    server = ADDRESS["server", V4]
    if error := lacking(rules.drop(hook="output", cgroup=group, netns=net.hosts["router"])):
        kernel_lacks_cgroups(error)
    with block(net, "--unit", group.rpartition("/")[2], server) as process, net.receiver() as receiver:
        command = [sys.executable, "-c", SENDER, f"{root}/{group}", server]
        done = net.at("router", lambda: subprocess.run(command, timeout=TIMEOUT, capture_output=True, text=True))
        assert "Operation not permitted" in done.stderr
        net.open_socket("router").sendto(b"of another", (server, 7000))
        assert receiver.recv(100) == b"of another"
        first, said = ends(net, process)
    assert first == f"dropping packets from and to {server} of unit inner.scope, until Ctrl-C"
    assert said.startswith("stopped 1 packet, ")


def test_it_ends_by_itself(net: Net) -> None:
    with block(net, "--for", "1s", "--port", "7000") as process:
        first, said = ends(net, process, None)
    assert first.endswith(" or Ctrl-C")
    assert said.startswith("stopped 0 packets, 0 bytes\n")


def test_nothing_is_left_of_one_that_is_killed(net: Net) -> None:
    with block(net, "--port", "7000") as process:
        process.kill()
        process.wait(TIMEOUT)
    rules.clean(net.hosts["router"])  # before Linux 5.12
    assert wait_for(lambda: not rules.installed(net.hosts["router"]))
    assert passes(net, "client", "server", V4)


def test_in_another_namespace_two_do_not_mix_up_what_they_stop(net: Net) -> None:
    with block(net, "--port", "7000") as one, block(net, "--port", "7001") as other:
        assert wait_for(lambda: len({row.table for row in rules.installed(net.hosts["router"])}) == 2)
        assert is_stopped(net, "client", "server", V4, 7000)
        _, errors = finish(other)
        assert errors.splitlines()[-1] == "stopped 0 packets, 0 bytes"
        assert ends(net, one)[1].startswith("stopped 1 packet, 29 bytes\n")


def test_json(net: Net) -> None:
    """An object for each rule, with the values of the text output; meanwhile `nfnet rules list` lists the rules."""
    client = ADDRESS["client", V4]
    with block(net, client, "--reject", "--json") as process:
        with net.open_socket("client", V4) as outside:
            outside.sendto(b"x", (ADDRESS["server", V4], 7000))
        assert wait_for(lambda: any(row.packets for row in rules.installed(net.hosts["router"])))
        command = [sys.executable, "-m", "nfnet", "rules", "list", "--json"]
        listed = net.at("router", lambda: subprocess.run(command, capture_output=True, text=True, check=True)).stdout
        output, errors = finish(process, signal.SIGTERM)
    during = [json.loads(line) for line in listed.splitlines()]
    stopped = [row for row in during if not row["words"].startswith("accept ")]
    assert stopped[2] == {
        "family": "inet",
        "table": stopped[0]["table"],
        "process": process.pid,
        "orphaned": False,
        "words": f"reject hook=forward source={client}",
        "packets": 1,
        "bytes": 29,
    }
    assert [row["packets"] for row in stopped] == [0, 0, 1, 0]
    assert [json.loads(line) for line in output.splitlines()] == stopped
    assert errors.splitlines()[-1] == "stopped 1 packet, 29 bytes"


def test_without_privilege(net: Net) -> None:
    def child() -> None:
        drop_capabilities()
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            assert cli.main(["block", "192.0.2.1"]) == 1
        assert said.getvalue().startswith("nfnet block: ")
        assert "CAP_NET_ADMIN" in said.getvalue()
        assert len(said.getvalue().splitlines()) == 1

    assert net.at("router", lambda: in_child(child)) == 0
