"""PostgreSQL and NATS servers that tests start on loopback ports, as an ordinary user, and stop."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .conftest import TIMEOUT, cannot_run, wait_for
from .programs import program

NOBODY = 65534
PASSWORD = "se:c/r@t"
QUOTED = "se%3Ac%2Fr%40t"


def as_somebody(command: list[str]) -> list[str]:
    """The command as an ordinary user: postgres refuses to run as root."""
    if os.geteuid():
        return command
    if Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]:
        return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]
    # Root of a user namespace, which has no other users: create another one, in which this process is nobody.
    return ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}", *command]


def _free_port() -> int:
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Server:
    """A process that listens on a port, and can be stopped and started again."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="nfnet-test-", dir="/var/tmp"))
        self.directory.chmod(0o755)
        self.process: subprocess.Popen[Any] | None = None
        self.port = 0

    def own(self, path: Path) -> Path:
        """A directory of the user that the server runs as."""
        path.mkdir(mode=0o700)
        if not os.geteuid():
            shutil.chown(path, *([NOBODY, NOBODY] if "setpriv" in as_somebody([]) else [0, 0]))
        return path

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        """Start it if it does not run, and wait until it answers."""
        if self.process is not None and self.process.poll() is None:
            return
        for _ in range(10):
            # Not an ephemeral port: a connection could have it when the server is started again.
            self.port = self.port or _free_port()
            with (self.directory / "output").open("ab") as output:
                self.process = subprocess.Popen(self.command(), stdout=output, stderr=output, cwd=self.directory)
            process = self.process
            assert wait_for(lambda process=process: process.poll() is not None or self.answers())  # type: ignore[misc]
            if self.process.poll() is None:
                return
            self.port = 0  # another program has it
        raise AssertionError((self.directory / "output").read_text())

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(TIMEOUT)

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.directory)

    @contextmanager
    def stopped(self, how: signal.Signals = signal.SIGINT) -> Iterator[None]:
        self.stop(how)
        yield
        self.start()


class Postgres(Server):
    """A cluster with the user ``nfnet``; `database` makes databases in it.

    small: the size in bytes of a separate file system, in which `small_database` makes one.
    """

    def __init__(self, small: int = 0) -> None:
        if small and os.geteuid():
            cannot_run("only root may mount a file system")
        self._binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        self._postgres = program("postgres", *self._binaries)
        initdb = program("initdb", *self._binaries)
        super().__init__()
        self._data = self.own(self.directory / "data")
        self._small = self.own(self.directory / "small")
        self._size = small
        secret = self.directory / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        options = ["--username=nfnet", f"--pwfile={secret}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
        command = as_somebody([initdb, f"--pgdata={self._data}", "--no-sync", *options])
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=self.directory)
        assert done.returncode == 0, done.stdout + done.stderr
        self._count = 0

    def command(self) -> list[str]:
        options = [f"-p{self.port}", "-clisten_addresses=127.0.0.1", "-cunix_socket_directories=", "-cfsync=off"]
        command = as_somebody([self._postgres, f"-D{self._data}", *options])
        if not self._size:
            return command
        owner = NOBODY if command[0] == "setpriv" else 0
        mount = f"mount -t tmpfs -o size={self._size},mode=700,uid={owner},gid={owner} tmpfs {self._small}"
        return ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$0" "$@"', *command]

    def small_database(self) -> str:
        """The URL of a new database in the small file system."""
        self.execute(self.url("postgres"), f"CREATE TABLESPACE small LOCATION '{self._small}'")
        self.execute(self.url("postgres"), "CREATE DATABASE small TABLESPACE small")
        return self.url("small")

    @property
    def inside(self) -> Path:
        """The small file system, as this process sees it."""
        assert self.process is not None
        return Path(f"/proc/{self.process.pid}/root/{self._small}")

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def url(self, database: str, password: str = QUOTED) -> str:
        return f"postgresql://nfnet:{password}@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """The URL of a new database."""
        self._count += 1
        self.execute(self.url("postgres"), f"CREATE DATABASE test{self._count}")
        return self.url(f"test{self._count}")

    @staticmethod
    def execute(url: str, sql: str) -> list[Any]:
        """The rows of a statement; of one column its values."""
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(sql)
            return [row[0] if len(row) == 1 else row for row in cursor] if cursor.description else []


class NatsServer(Server):
    """A server with JetStream; ``more`` is a part of its configuration."""

    def __init__(self, more: str = "", jetstream: bool = True) -> None:
        self._binary = program("nats-server")
        super().__init__()
        store = self.own(self.directory / "store")
        own = f'jetstream {{ store_dir: "{store}", max_file_store: 2GB, max_memory_store: 16MB }}' if jetstream else ""
        self._config = f"host: 127.0.0.1\n{own}\n{more}\n"

    def configure(self, more: str) -> None:
        """Add to its configuration, before it starts."""
        self._config += f"{more}\n"

    def command(self) -> list[str]:
        path = self.directory / "nats.conf"
        path.write_text(f"port: {self.port}\n{self._config}")
        return as_somebody([self._binary, "--config", str(path)])

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), TIMEOUT) as connection:
                return connection.recv(5) == b"INFO "
        except OSError:
            return False

    def url(self, login: str = "") -> str:
        return f"nats://{login}{'@' if login else ''}127.0.0.1:{self.port}"
