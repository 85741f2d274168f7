"""Log packets at a constant rate to a file with `nfnet collect`: how many are stored, and lost, and in how much memory.

Every packet that was sent is a line, or counted in a line that says how many the kernel lost: otherwise this fails. It
also fails if memory grows. Files are counted and removed when they are rotated, so the disk needs little room.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from collect import GROUP, PATIENCE, processor_time
from common import PORT, SIZE, enter_namespace, write

from nfnet import rules
from nfnet.stats import find_log

# By how much the least memory in the last third of the time may exceed that in the second: less than two bytes for each
# of ten million messages. On a busy machine up to 64 MiB of messages wait in memory, and the heap keeps some of it.
GROWTH = 16 << 20  # bytes

# Prints how many it sent, and in how many seconds; then sends one more for each line that it is given.
_SEND = f"""
import socket, sys, time
rate, seconds = int(sys.argv[1]), float(sys.argv[2])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("127.0.0.1", {PORT}))
data = bytes({SIZE} - 28)
send, count, most = sock.send, 0, int(rate * seconds)
began = time.monotonic()
while count < most:
    due = min(most, int((time.monotonic() - began) * rate))
    for _ in range(due - count):
        send(data)
    count = max(count, due)
    time.sleep(0.001)
print(count, time.monotonic() - began, flush=True)
for line in sys.stdin:
    send(data)
    print(flush=True)
"""


class Stored:
    """Counts the lines of a file that is rotated, and removes what was counted."""

    def __init__(self, file: Path) -> None:
        self.lines = self.lost = 0
        self._file = file

    def look(self, *, end: bool = False) -> None:
        """Count rotated files, and at the end the last one."""
        for file in sorted(self._file.parent.glob(f"{self._file.name}.2*")):
            self._count(file)
            file.unlink()
        if end:
            self._count(self._file)

    def _count(self, file: Path) -> None:
        data = file.read_bytes()
        lines = data.count(b"\n")
        if b"messages-lost" in data:
            losses = [json.loads(line) for line in data.splitlines() if b"messages-lost" in line]
            lines -= len(losses)
            self.lost += sum(line["nfnet"]["lost"] for line in losses)
        self.lines += lines


def memory(process: subprocess.Popen[bytes]) -> int:
    """Bytes of memory in use."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    return 0


def wait_idle(process: subprocess.Popen[bytes], stored: Stored) -> None:
    """Wait until it has had nothing to do for a second and a half."""
    last, quiet = processor_time(process), time.monotonic()
    while time.monotonic() < quiet + 1.5:
        stored.look()
        time.sleep(0.1)
        if processor_time(process) > last + 0.02:
            last, quiet = processor_time(process), time.monotonic()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=100_000, help="packets a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    options = parser.parse_args()
    enter_namespace()
    print(f"{platform.python_implementation()} {platform.python_version()}, Linux {platform.release()}")
    sizes: list[int] = []
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as directory,
        rules.log(GROUP, prefix="bench: ", hook="output", protocol="udp", destination_port=PORT),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("127.0.0.1", PORT))
        file = Path(directory) / "log.jsonl"
        stored = Stored(file)
        to = [f"jsonl:{file}", "rotate_size=32M"]
        command = [sys.executable, "-m", "nfnet", "collect", "--group", str(GROUP), "--to", *to]
        sending = [sys.executable, "-S", "-c", _SEND, str(options.rate), str(options.seconds)]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + PATIENCE
            while find_log(GROUP) is None:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("nfnet collect does not start")
                time.sleep(0.01)
            before = processor_time(process)
            with subprocess.Popen(sending, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sender:
                assert sender.stdin is not None
                assert sender.stdout is not None
                end = time.monotonic() + options.seconds
                while time.monotonic() < end:
                    time.sleep(min(0.5, options.seconds / 40))
                    stored.look()
                    sizes.append(memory(process))
                sent, took = sender.stdout.readline().split()
                wait_idle(process, stored)
                sender.stdin.write("\n")  # what was lost at the end is only known when another one comes
                sender.stdin.flush()
                sender.stdout.readline()
            wait_idle(process, stored)
            cpu = processor_time(process) - before
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=PATIENCE)
        stored.look(end=True)
    count = int(sent) + 1
    missing = count - stored.lines - stored.lost
    third = len(sizes) // 3
    least = [min(sizes[third : 2 * third]), min(sizes[2 * third :])]
    print(f"{count:,} packets in {float(took):.1f} s: {count / float(took):,.0f} a second")
    print(f"{stored.lines:,} stored, {stored.lost:,} lost and counted, {missing:,} not accounted for")
    print(f"{cpu / max(1, stored.lines) * 1e6:.2f} µs of processor time a line; {said.decode().strip()}")
    print("memory: " + ", ".join(f"{size / (1 << 20):.1f}" for size in sizes[:: max(1, len(sizes) // 10)]) + " MiB")
    print(f"the least in the second third {least[0] / (1 << 20):.1f}, in the last {least[1] / (1 << 20):.1f} MiB")
    figures = {"rate": options.rate, "sent": count, "took": float(took), "stored": stored.lines, "lost": stored.lost}
    write(options.json, [{**figures, "cpu": cpu, "memory": sizes}])
    return 1 if missing or least[1] > least[0] + GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
