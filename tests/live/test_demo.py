"""``nfnet demo``, and the script that it prints."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

from nfnet.cli.demo_command import script

from .conftest import ADDRESS, QUIET, TIMEOUT, Net, readable, wait_for

PORT = 7777


def test_demo(net: Net) -> None:
    done = subprocess.run([sys.executable, "-m", "nfnet", "demo"], capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    out = done.stdout
    assert "WRONG" not in out
    for words in (
        "TCP",
        "UDP",
        "ICMP ",
        "ICMPv6",
        "10.77.0.2",
        "fd77::2",
        "accept, rewritten",
        "mark 1, repeat",
        "drop",
    ):
        assert words in out
    assert out.count("the receiver got 'the elephant'") == 2
    counts = re.search(r"received (\d+) = (\d+) accepted \+ (\d+) dropped \+ (\d+) repeated", out)
    assert counts is not None
    received, accepted, dropped, repeated = map(int, counts.groups())
    assert received == accepted + dropped + repeated
    assert (dropped, repeated) == (2, 2)
    assert max(map(len, out.splitlines())) <= 110
    # What was collected agrees with what the demo itself says of it: the two connections, and all else that arrived.
    answers = out[out.index("$ nfnet collect") :]
    counted = dict(re.findall(r"^ +(\w+) +(?:7777|-) +(\d+)", answers, re.MULTILINE))
    assert counted == {"tcp": "8", "udp": "6", "icmp": "1", "icmpv6": "1"}
    assert re.findall(r"arrived: +right +(\S+)", answers) == ["10.77.0.1", "fd77::1"]


def test_the_script_that_is_given_away(net: Net) -> None:
    """As its reader would run it: in a file of its own, ended with Ctrl-C."""
    code = f"from nfnet import netns\nnetns.enter('/proc/self/fd/0')\n{script()}"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=net.hosts["client"], stderr=subprocess.PIPE, text=True
    )
    try:
        receiver = net.receiver("server", port=PORT)
        sender = net.open_socket("client")
        assert wait_for(lambda: ping(sender, receiver))
        for data in (b"hello", b"a secret", b"the cat"):
            sender.sendto(data, (ADDRESS["server", socket.AF_INET], PORT))
        assert [receiver.recv(100), receiver.recv(100)] == [b"hello", b"the elephant"]
        assert not readable(receiver, QUIET)
        process.send_signal(2)
        assert process.wait(TIMEOUT) != 0
        assert "KeyboardInterrupt" in process.stderr.read()  # type: ignore[union-attr]
        sender.sendto(b"the cat", (ADDRESS["server", socket.AF_INET], PORT))
        assert receiver.recv(100) == b"the cat"  # the rule is gone
    finally:
        process.kill()
        process.wait()
        process.stderr.close()  # type: ignore[union-attr]


def ping(sender: socket.socket, receiver: socket.socket) -> bool:
    """Whether the script is at work already: with its rule in place, cats become elephants."""
    sender.sendto(b"cat", (ADDRESS["server", socket.AF_INET], PORT))
    return receiver.recv(100) == b"elephant"
