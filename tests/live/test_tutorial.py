"""The last step of the tutorial, with its own programs, on the kernel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from nfnet import rules
from tests.test_docs import ROOT, blocks

from .conftest import TIMEOUT, Net, wait_for
from .programs import is_bound, running


def test_the_programs_of_the_tutorial(net: Net, tmp_path: Path) -> None:
    name = ""
    for block in blocks(ROOT / "docs" / "tutorial.md"):
        if block.kind == "file":
            name = block.text
        elif block.kind == "python":
            (tmp_path / name).write_text(block.text + "\n")
    places = [str(ROOT), *(path for path in sys.path if path)]
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONUNBUFFERED": "1"}}

    def listens() -> bool:
        sockets = net.at("client", lambda: Path("/proc/thread-self/net/udp").read_text())
        return ":1E61 " in sockets  # 7777

    def send(*words: str) -> None:
        command = [sys.executable, "send.py", *words]
        assert net.at("client", lambda: subprocess.call(command, **options)) == 0

    with (
        running(net, [sys.executable, "second.py"], "client", **options) as second,
        running(net, [sys.executable, "listen.py"], "client", **options) as listener,
    ):
        assert second.stdout is not None
        assert listener.stdout is not None
        assert wait_for(lambda: (is_bound(net, host="client", queue=1) and listens()) or second.poll() is not None)
        for words in (["a", "secret"], ["the", "cat"]):
            send(*words)
        assert listener.stdout.readline() == "b'the elephant'\n"
        assert second.stdout.readline() == "1 DROP b'a secret'\n"
        assert second.stdout.readline() == "2 ACCEPT b'the cat'\n"
        second.send_signal(signal.SIGINT)
        second.wait(TIMEOUT)
        assert rules.installed(net.hosts["client"]) == []
        send("the", "cat")
        assert listener.stdout.readline() == "b'the cat'\n"
