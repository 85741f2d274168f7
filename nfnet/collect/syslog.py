"""Log messages as syslog messages of RFC 5424, to a program on this machine or to a server."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from ..errors import ArgumentError, NfnetError
from . import _rfc5424, _units
from ._batch import Batch
from ._flat import Flat, Record
from ._json import LOST
from ._sending import CONNECT_PATIENCE, Sender, StreamSender, UdpSender, UnixSender, connect_tcp, explain

_DAEMON, _INFO, _WARNING = (
    _rfc5424.FACILITIES["daemon"],
    _rfc5424.SEVERITIES["info"],
    _rfc5424.SEVERITIES["warning"],
)
# The enterprise number that RFC 5612 reserves for documentation; nfnet has none of its own.
_SD_ID = "nfnet@32473"
_MOST = 65507  # bytes of a datagram over IPv4
_LAST_WORD = 1.0  # seconds to wait for a server to end a TLS connection
_SETTLING = 0.5  # seconds


def _size(value: object) -> int:
    found = _units.size(value)
    if not _rfc5424.LEAST_SIZE <= found <= _MOST:
        raise ValueError(f"{value!r} is not within {_rfc5424.LEAST_SIZE} and {_MOST} bytes")
    return found


RFC5424, LOCAL = "rfc5424", "local"


def _format(value: object) -> str:
    if value not in (RFC5424, LOCAL):
        raise ValueError(f"{value!r} is neither {RFC5424} nor {LOCAL}")
    return str(value)


class _Format:
    """Makes syslog messages of batches; `SETTINGS` parses the settings."""

    SETTINGS: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "facility": _rfc5424.facility,
        "severity": _rfc5424.severity,
        "app_name": _rfc5424.app_name,
        "sd_id": _rfc5424.sd_id,
        "max_size": _size,
    }

    def __init__(
        self,
        *,
        facility: int = _DAEMON,
        severity: int = _INFO,
        app_name: str = "nfnet",
        sd_id: str = _SD_ID,
        max_size: int,
        local: bool,
    ) -> None:
        self._facility = facility
        self._severity = severity
        self._app_name = app_name
        self._sd_id = sd_id
        self._max_size = max_size
        self._process = os.getpid()
        self._message = self._local if local else self._rfc5424
        self._records = Flat()

    def __call__(self, batch: Batch) -> list[bytes]:
        host = _rfc5424.header_word(batch.session.host, 255)
        return [self._message(record, host) for record in self._records(batch)]

    def _priority(self, record: Record) -> int:
        severity = min(self._severity, _WARNING) if record.kind == LOST else self._severity
        return self._facility * 8 + severity

    def _rfc5424(self, record: Record, host: str) -> bytes:
        when = record.values.pop("@timestamp", "-")
        header = f"<{self._priority(record)}>1 {when} {host} {self._app_name} {self._process} {record.kind}"
        parameters = [_rfc5424.parameter(name, value) for name, value in record.values.items()]
        return _rfc5424.message(header, self._sd_id, parameters, record.text, self._max_size)

    def _local(self, record: Record, host: str) -> bytes:
        program = f"{self._app_name}[{self._process}]"
        return _rfc5424.local_message(self._priority(record), record.time_ns, program, record.text, self._max_size)


class _SyslogOutput(Sender):
    """The common part of all syslog outputs."""

    settings: ClassVar[Mapping[str, Callable[[Any], Any]]] = _Format.SETTINGS
    usual_size: ClassVar[int] = 8192  # the default limit of rsyslog

    def __init__(self, target: str, **settings: Any) -> None:
        super().__init__(target)
        unknown = sorted(settings.keys() - self.settings.keys())
        if unknown:
            raise TypeError(f"{self.scheme} has no setting {unknown[0]!r}")
        self._options = settings
        own = {name: value for name, value in settings.items() if name in _Format.SETTINGS}
        local = settings.get("format", self.usual_format(target)) == LOCAL
        self._format = _Format(**{"max_size": self.usual_size, **own}, local=local)

    @staticmethod
    def usual_format(target: str) -> str:
        """The format if the user has not chosen any."""
        return RFC5424

    def encode(self, batch: Batch) -> list[bytes]:
        return self._format(batch)


class Syslog(_SyslogOutput, UnixSender):
    """Syslog messages, to the program that listens at a Unix socket.

    target: the path of the socket. Default: /dev/log.
    facility: by name. Default: daemon.
    severity: by name. Default: info.
    app_name: the name of the application in each message. Default: nfnet.
    sd_id: the name of the structured data. Default: ``nfnet@32473``.
    max_size: the maximum length of a message, in bytes. Default: 8192.
    format: "rfc5424", or "local": text alone, as ``syslog()`` of the C library writes it. Default: "local" for
        /dev/log, because the programs that read it expect that; "rfc5424" for other sockets.
    """

    scheme = "syslog"
    usual_target = "/dev/log"
    help = "syslog messages to this machine's syslog; syslog:PATH to another socket"
    settings: ClassVar[Mapping[str, Callable[[Any], Any]]] = {**_Format.SETTINGS, "format": _format}

    def __init__(self, target: str = usual_target, **settings: Any) -> None:
        self.check(target)
        super().__init__(target, **settings)

    @staticmethod
    def usual_format(target: str) -> str:
        """The format if the user has not chosen any."""
        return LOCAL if target == Syslog.usual_target else RFC5424

    @classmethod
    def check(cls, target: str) -> None:
        if not target.startswith("/") or target.startswith("//"):
            raise ArgumentError(
                "syslog: takes the path of a socket; for a server write syslog+udp://HOST, syslog+tcp://HOST or"
                " syslog+tls://HOST"
            )


class _Url(NamedTuple):
    host: str
    port: int
    settings: dict[str, Any]


class _RemoteOutput(_SyslogOutput):
    """To a server, ``SCHEME://HOST:PORT``. The URL can contain settings: ``?facility=local0&ca=FILE``."""

    port: ClassVar[int]
    """The port if the URL has none."""

    def __init__(self, target: str, **settings: Any) -> None:
        url = self._parse(target)
        twice = sorted(url.settings.keys() & settings.keys())
        if twice:
            raise ArgumentError(f"{self.scheme}: {twice[0]} is given twice, in the URL and beside it")
        self._url = url
        super().__init__(target, **url.settings, **settings)

    @property
    def name(self) -> str:
        """Its name in reports."""
        host = f"[{self._url.host}]" if ":" in self._url.host else self._url.host
        return f"{self.scheme}://{host}:{self._url.port}"

    @property
    def endpoint(self) -> tuple[str, int]:
        """Return host and port."""
        return self._url.host, self._url.port

    @classmethod
    def check(cls, target: str) -> None:
        cls._parse(target)

    @classmethod
    def _parse(cls, target: str) -> _Url:
        """Parse the target. Raises ArgumentError, whose text contains no password."""

        def wrong(what: str) -> ArgumentError:
            return ArgumentError(f"{cls.scheme}: {what}; it is written {cls.scheme}://HOST:PORT")

        try:
            parts = urlsplit(f"{cls.scheme}:{target}")
            port = parts.port
        except ValueError as error:
            raise wrong(str(error)) from None
        if parts.username is not None or parts.password is not None:
            raise wrong("syslog has neither user names nor passwords")
        if not target.startswith("//") or not parts.hostname:
            raise wrong("the host is missing")
        if parts.path not in ("", "/") or parts.fragment:
            raise wrong("there is something behind the port")
        if port == 0:
            raise wrong("port 0 is none")
        settings: dict[str, Any] = {}
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name not in cls.settings:
                raise wrong(f"there is no setting {name!r}, but {', '.join(cls.settings)}")
            try:
                settings[name] = cls.settings[name](value)
            except ValueError as error:
                raise wrong(f"{name}: {error}") from None
        return _Url(parts.hostname, cls.port if port is None else port, settings)


class SyslogUdp(_RemoteOutput, UdpSender):
    """Syslog messages over UDP (RFC 5426), which does not report lost datagrams.

    The settings are those of `Syslog`. The default of ``max_size`` is 2048, which every receiver should accept.
    """

    scheme = "syslog+udp"
    help = "the same to a server, syslog+udp://HOST:514"
    port = 514
    usual_size = 2048


class SyslogTcp(_RemoteOutput, StreamSender):
    """Syslog messages over TCP with octet counting (RFC 6587). The settings are those of `Syslog`."""

    scheme = "syslog+tcp"
    help = "the same, over TCP, syslog+tcp://HOST:601"
    port = 601

    def encode(self, batch: Batch) -> list[bytes]:
        return [b"%d %s" % (len(each), each) for each in super().encode(batch)]

    def connect(self) -> socket.socket:
        return connect_tcp(*self.endpoint)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no text")
    return value


class SyslogTls(SyslogTcp):
    """Syslog messages over TLS (RFC 5425), version 1.2 or newer.

    ca: a file of certificates (PEM), one of which must have signed the server's. Default: those that the system trusts.
    cert: the file of this client's certificate, which can be followed by other certificates, and by the key.
    key: the file of the key of ``cert``, without a password.
    server_name: the name in the server's certificate. Default: the host.
    verify: "no" accepts any certificate. Default: "yes".

    The other settings are those of `Syslog`.

    Raises NfnetError if a file cannot be used. The files are read again for each connection.
    """

    scheme = "syslog+tls"
    help = "the same, over TLS, syslog+tls://HOST:6514?ca=FILE"
    port = 6514
    settings: ClassVar[Mapping[str, Callable[[Any], Any]]] = {
        **_Format.SETTINGS,
        "ca": _text,
        "cert": _text,
        "key": _text,
        "server_name": _text,
        "verify": _units.yes_or_no,
    }

    def __init__(self, target: str, **settings: Any) -> None:
        super().__init__(target, **settings)
        if "key" in self._options and "cert" not in self._options:
            raise ArgumentError(f"{self.scheme}: key without cert")
        if "ca" in self._options and not self._options.get("verify", True):
            raise ArgumentError(f"{self.scheme}: ca is for verifying, which verify=no turns off")
        try:
            self._context()
        except NfnetError as error:
            raise NfnetError(f"{self.name}: {error}") from error

    def connect(self) -> socket.socket:
        context = self._context()
        host, port = self.endpoint
        plain = connect_tcp(host, port)
        try:
            plain.settimeout(CONNECT_PATIENCE)
            sock = context.wrap_socket(plain, server_hostname=self._options.get("server_name", host))
        except BaseException:
            plain.close()
            raise
        try:
            self._settle(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        if isinstance(self._socket, ssl.SSLSocket):
            with contextlib.suppress(OSError, ValueError):  # the connection can be broken already
                self._socket.settimeout(_LAST_WORD)
                self._socket.unwrap()
        super().close()

    def _settle(self, sock: ssl.SSLSocket) -> None:
        """Wait a moment for the server to refuse this client. In TLS 1.3 it does so after the handshake.

        Data sent before the refusal would be acknowledged, and lost.
        """
        timeout = sock.gettimeout()
        deadline = time.monotonic() + _SETTLING
        while (left := deadline - time.monotonic()) > 0:
            if select.select([sock], [], [], left)[0]:
                self.check_alive(sock)
        sock.settimeout(timeout)

    def _context(self) -> ssl.SSLContext:
        """Raises NfnetError."""
        options = self._options
        ca, cert, key = options.get("ca"), options.get("cert"), options.get("key")
        try:
            context = ssl.create_default_context(cafile=ca)
        except OSError as error:
            raise NfnetError(f"ca {ca}: {explain(error)}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not options.get("verify", True):
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if cert is not None:
            try:
                context.load_cert_chain(cert, key, _refuse_password)
            except OSError as error:
                raise NfnetError(f"cert {cert}{f' with key {key}' if key else ''}: {explain(error)}") from error
        return context


def _refuse_password() -> str:
    """Raise an error instead of the prompt for a password, which OpenSSL would show at the terminal."""
    raise NfnetError("the key has a password, which is not supported")
