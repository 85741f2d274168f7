"""rsyslogd and systemd-journald, started by tests on separate sockets, and certificates for them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .conftest import TIMEOUT, UID, cannot_run, wait_for
from .programs import program

NOBODY = 65534
UDP, TCP, TLS = 5514, 5601, 5614  # in a network namespace of the test's own
_MODULES = "/usr/lib/*/rsyslog"


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """Create a directory that the servers' ordinary user can write to, with a short path, as sockets need."""
    path = Path(tempfile.mkdtemp(prefix="nfnet"))
    try:
        if UID == 0:
            os.chown(path, NOBODY, NOBODY)
        yield path
    finally:
        shutil.rmtree(path)


def openssl(*arguments: str | Path) -> None:
    command = [program("openssl"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def make_certificates(where: Path) -> None:
    """An authority, certificates of a server and of a client by it, and another authority."""
    for name in ("ca", "other-ca"):
        openssl(
            *(
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
                "-subj",
                f"/CN={name}",
            ),
            *("-keyout", where / f"{name}.key", "-out", where / f"{name}.pem"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        )
    for name, alternative in (("server", "DNS:localhost"), ("client", "DNS:client.test")):
        request, extensions = where / f"{name}.csr", where / f"{name}.ext"
        openssl(
            *(
                "req",
                "-new",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-subj",
                f"/CN={name}.test",
            ),
            *("-keyout", where / f"{name}.key", "-out", request),
        )
        extensions.write_text(
            f"subjectAltName={alternative}\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature,"
            "keyEncipherment\nextendedKeyUsage=serverAuth,clientAuth\nsubjectKeyIdentifier=hash\n"
            "authorityKeyIdentifier=keyid\n"
        )
        openssl(
            *("x509", "-req", "-in", request, "-CA", where / "ca.pem", "-CAkey", where / "ca.key", "-days", "2"),
            *("-set_serial", "7", "-extfile", extensions, "-out", where / f"{name}.pem"),
        )
    for file in where.iterdir():
        file.chmod(0o644)  # made for the test only, and read by the server's ordinary user


class Rsyslogd:
    """rsyslogd, which writes the parts of each message as JSON."""

    def __init__(self, where: Path, at: Callable[[Callable[[], Any]], Any], *, tls: str = "") -> None:
        self.where, self._at, self._tls = where, at, tls
        self.path = where / "log"  # a socket
        self.local = where / "local"  # a socket for messages in the C library's format
        self.output = where / "messages.json"
        self._program = program("rsyslogd")
        self._process: subprocess.Popen[bytes] | None = None

    def configuration(self) -> str:
        where = self.where
        listening, driver = "", ""
        if self._tls:
            if not list(Path("/").glob(f"{_MODULES[1:]}/lmnsd_gtls.so")):
                cannot_run("rsyslog cannot do TLS (package rsyslog-gnutls)")
            driver = (
                f'global(defaultNetstreamDriverCAFile="{where}/ca.pem"'
                f' defaultNetstreamDriverCertFile="{where}/server.pem"'
                f' defaultNetstreamDriverKeyFile="{where}/server.key")\n'
            )
            peer = ' PermittedPeer=["client.test"]' if self._tls == "x509/name" else ""
            listening = (
                f'input(type="imtcp" address="127.0.0.1" port="{TLS}" ruleset="all" streamDriver.name="gtls"'
                f' streamDriver.mode="1" streamDriver.authMode="{self._tls}"{peer})\n'
            )
        return (
            f'global(workDirectory="{where}")\n{driver}'
            'module(load="imuxsock" SysSock.Use="off")\nmodule(load="imudp")\nmodule(load="imtcp")\n'
            'module(load="mmpstrucdata")\n'
            'template(name="all" type="string" string="%jsonmesg%\\n")\n'
            'ruleset(name="all") {\n'
            '  action(type="mmpstrucdata" sd_name.lowercase="off")\n'
            f'  action(type="omfile" file="{self.output}" template="all" asyncWriting="off")\n}}\n'
            f'input(type="imuxsock" Socket="{self.path}" useSpecialParser="off" parseHostname="on" ruleset="all"'
            ' RateLimit.Interval="0")\n'
            f'input(type="imuxsock" Socket="{self.local}" ruleset="all" RateLimit.Interval="0")\n'
            f'input(type="imudp" address="127.0.0.1" port="{UDP}" ruleset="all")\n'
            f'input(type="imtcp" address="127.0.0.1" port="{TCP}" ruleset="all")\n'
            f"{listening}"
            f'action(type="omfile" file="{where}/own.log")\n'
        )

    def start(self) -> None:
        file = self.where / "rsyslog.conf"
        file.write_text(self.configuration())
        command = [self._program, "-n", "-f", str(file), "-i", str(self.where / "pid")]
        user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if UID == 0 else {}
        self._process = self._at(
            lambda: subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user)
        )
        assert wait_for(self._is_ready), self.complaints()

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.complaints()
        return all(path.exists() for path in (self.path, self.local)) and self._at(self._listens)

    def _listens(self) -> bool:
        wanted = {f":{port:04X}" for port in ((TCP, TLS) if self._tls else (TCP,))}
        lines = [line.split() for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]]
        return wanted <= {line[1][8:] for line in lines if line[3] == "0A"}

    def complaints(self) -> str:
        own = self.where / "own.log"
        return own.read_text() if own.exists() else "it says nothing"

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(TIMEOUT)
            self._process = None
        for path in (self.path, self.local):
            path.unlink(missing_ok=True)

    def messages(self) -> list[dict[str, Any]]:
        """Return the whole lines that it has written so far."""
        if not self.output.exists():
            return []
        return [json.loads(line) for line in self.output.read_bytes().splitlines(True) if line.endswith(b"\n")]

    def data(self) -> list[dict[str, str]]:
        """The structured data of each message."""
        return [message["$!"]["rfc5424-sd"]["nfnet@32473"] for message in self.messages()]

    def numbers(self) -> list[int]:
        return [int(data["event.sequence"]) for data in self.data() if "event.sequence" in data]


_BEGIN_JOURNALD = """\
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/systemd/journald.conf.d /run/log/journal
printf '[Journal]\\nStorage=volatile\\nRuntimeMaxUse=32M\\nReadKMsg=no\\nAudit=no\\nRateLimitIntervalSec=0\\n' \\
    >/run/systemd/journald.conf.d/test.conf
exec "$0"
"""


class Journald:
    """systemd-journald in a new mount namespace, where all its files are in an empty /run."""

    def __init__(self, where: Path) -> None:
        self.path, self.local = where / "socket", where / "local"  # links to its sockets
        daemon = Path("/lib/systemd/systemd-journald")
        if not daemon.exists():
            cannot_run("systemd-journald is not installed (package systemd)")
        self._daemon = daemon
        self._journalctl = program("journalctl")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [program("unshare"), "--mount", "--propagation", "private"]
        command += ["sh", "-ec", _BEGIN_JOURNALD, str(self._daemon)]
        self._process = process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self._root = Path(f"/proc/{process.pid}/root/run")
        for link, name in ((self.path, "socket"), (self.local, "dev-log")):
            link.symlink_to(self._root / "systemd/journal" / name)

        def is_ready() -> bool:
            assert process.poll() is None, process.stderr.read() if process.stderr else b""
            links = os.readlink(f"/proc/{process.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
            return links and self.path.exists() and self.local.exists() and bool(self._files())

        assert wait_for(is_ready)

    def _files(self) -> list[Path]:
        return list((self._root / "log/journal").glob("*/*.journal"))

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.communicate(timeout=TIMEOUT)
            self._process = None
        for link in (self.path, self.local):
            link.unlink(missing_ok=True)

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """Return the entries that journalctl shows."""
        files = [f"--file={path}" for path in self._files()]
        command = [self._journalctl, *files, "--output=json", "--all", "--quiet", "SYSLOG_IDENTIFIER=nfnet", *matches]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        assert done.returncode in (0, 1), done.stderr  # 1: there is none
        return [json.loads(line) for line in done.stdout.splitlines()]
