"""Measure how long `packet.process` takes to find the process behind a packet, among many processes.

A program sends packets from several UDP sockets. The times are wall times in microseconds: of the first look-up, when
nothing is known; for a new connection of a program that was found before; and for a known connection. The other
processes are idle, with only the standard files open or with several more. The program was started before all of
them, or after.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from common import PORT, options, write

import nfnet
from nfnet import _processes, rules

GOALS = {"first": 3000.0, "new": 3000.0, "seen": 100.0}  # microseconds, with 500 idle processes

_SEND = f"""
import socket, sys
kept = []
for line in sys.stdin:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", {PORT}))
    sock.send(b"x")
    kept.append(sock)
"""
# Other processes are copies of one, each with the requested number of open files.
_IDLE = """
import os, signal, sys
count, files = int(sys.argv[1]), int(sys.argv[2])
kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(files - 3)]
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(count - 1):
    if not os.fork():
        break
else:
    print("ready", flush=True)
sys.stdin.read()
"""


def spend(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return (time.perf_counter() - began) * 1e6


class _Crowd:
    def __init__(self, stack: ExitStack, count: int, files: int) -> None:
        command = [sys.executable, "-S", "-E", "-c", _IDLE, str(count), str(files)]
        self._process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        stack.callback(self._process.communicate)  # all of them read the end of their input


class _Sender:
    def __init__(self, stack: ExitStack) -> None:
        command = [sys.executable, "-S", "-E", "-c", _SEND]
        self.process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, text=True))
        assert self.process.stdin is not None
        self._commands = self.process.stdin
        stack.callback(self._commands.close)

    def send(self, queue: nfnet.Queue) -> nfnet.Packet:
        self._commands.write("\n")
        self._commands.flush()
        return next(iter(queue))


def measure(count: int, files: int, old: bool, rounds: int) -> dict[str, float]:
    """Medians over the rounds."""
    times: dict[str, list[float]] = {name: [] for name in GOALS}
    with ExitStack() as stack:
        sender = _Sender(stack) if old else None
        _Crowd(stack, count, files)
        sender = sender or _Sender(stack)
        stack.enter_context(rules.queue(1, hook="output", protocol="udp", destination_port=PORT))
        queue = stack.enter_context(nfnet.Queue(1, undecided="drop"))
        for _ in range(rounds):
            _processes._holders = _processes._Holders()
            packet = sender.send(queue)
            times["first"].append(spend(lambda packet=packet: packet.process))
            assert packet.process is not None
            assert packet.process.pid == sender.process.pid
            packet = sender.send(queue)
            times["new"].append(spend(lambda packet=packet: packet.process))
            times["seen"] += [spend(lambda packet=packet: packet.process) for _ in range(100)]
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> int:
    found: argparse.Namespace = options(__doc__, [500])
    print("wall time, microseconds\n")
    figures: list[dict[str, Any]] = []
    for count in found.packets:
        for files in (3, 10):
            for old in (False, True):
                times = measure(count, files, old, found.rounds)
                missed = [name for name, goal in GOALS.items() if files == 3 and times[name] > goal]
                text = f"{count} others with {files:2} files, program started {'before' if old else 'after '} them:"
                text += "".join(f"  {name} {value:7.1f}" for name, value in times.items())
                print(text + (f"   over the goal: {', '.join(missed)}" if missed else ""), flush=True)
                figures.append(
                    {"others": count, "files": files, "old": old, **times, "processes": len(os.listdir("/proc"))}
                )
    write(found.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
