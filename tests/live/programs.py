"""Programs that tests start on a host, and whether they have bound their queue or group."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nfnet
from nfnet import NetlinkSocket
from nfnet.protocol import nfqnl, nfulnl

from .conftest import TIMEOUT, Net, cannot_run


def program(name: str, *directories: Path) -> str:
    """Return the path of a program, from these directories or PATH; skip the test if it is not installed."""
    found = shutil.which(name, path=os.pathsep.join([*map(str, directories), os.environ["PATH"]]))
    if found is None:
        cannot_run(f"{name} is not installed")
    return found


def run(net: Net, host: str, *command: str, text: str | None = None, check: bool = True) -> str:
    """Run a command on a host, with a text as standard input, and return its output.

    check: whether it must succeed. If not, the returned text includes its errors.
    """
    line = [program(command[0]), *command[1:]]
    done: subprocess.CompletedProcess[str] = net.at(
        host, lambda: subprocess.run(line, input=text, capture_output=True, text=True, timeout=TIMEOUT)
    )
    assert done.returncode == 0 or not check, (command, done.stderr)
    return done.stdout if check else done.stdout + done.stderr


@contextmanager
def running(net: Net, command: list[str], host: str = "router", **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process on a host."""
    process: subprocess.Popen[str] = net.at(
        host,
        lambda: subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def is_bound(net: Net, *, queue: int | None = None, group: int | None = None, host: str = "router") -> bool:
    """Whether somebody has a queue or group; asked of the kernel by a request that it refuses in either case."""

    def ask() -> bool:
        sock = NetlinkSocket()
        try:
            if queue is not None:
                sock.request(lambda seq: nfqnl.config(queue, copy_range=1, seq=seq, ack=True), "asking")
            else:
                assert group is not None
                sock.request(lambda seq: nfulnl.config(group, copy_range=1, seq=seq, ack=True), "asking")
        except nfnet.NotPermittedError:
            return True
        except nfnet.KernelError:
            return False
        finally:
            sock.close()
        raise AssertionError("it is ours")

    return bool(net.at(host, ask))
