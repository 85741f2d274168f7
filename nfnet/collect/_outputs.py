"""The outputs and sources by scheme, and how targets and settings select them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from .._arguments import nearest
from ..errors import ArgumentError
from ._nats_source import NatsSource
from ._output import Output, without_password
from .capture import Capture
from .journal import Journal
from .json_lines import JsonLines
from .nats import Nats
from .postgresql import Postgresql
from .sqlite import Sqlite
from .syslog import Syslog, SyslogTcp, SyslogTls, SyslogUdp
from .text import Text

OUTPUTS: tuple[type[Output], ...] = (
    JsonLines,
    Text,
    Sqlite,
    Capture,
    Postgresql,
    Nats,
    Syslog,
    SyslogUdp,
    SyslogTcp,
    SyslogTls,
    Journal,
)
"""The outputs of this package."""

_GROUP = "nfnet.outputs"


def known() -> dict[str, type[Output]]:
    """Return all outputs by scheme: `OUTPUTS`, and those of installed packages (entry points of ``nfnet.outputs``).

    Raises ArgumentError if one of these cannot be imported, or is not an output.
    """
    found: dict[str, type[Output]] = {}
    for entry in entry_points(group=_GROUP):
        try:
            kind = entry.load()
        except ImportError as error:
            raise ArgumentError(f"output {entry.name} of {entry.value} cannot be imported: {error}") from error
        if not (isinstance(kind, type) and issubclass(kind, Output)):
            raise ArgumentError(f"output {entry.name} of {entry.value} is no subclass of nfnet.collect.Output")
        found[entry.name] = kind
    return {**found, **{kind.scheme: kind for kind in OUTPUTS}}


class Described(NamedTuple):
    """An output that has not been made yet."""

    kind: type[Output]
    target: str
    settings: dict[str, Any]
    groups: tuple[int, ...] | None = None
    """The groups whose messages it gets; None: all groups."""

    @property
    def name(self) -> str:
        """What it is called, without a password."""
        return without_password(f"{self.kind.scheme}:{self.target}")

    def make(self) -> Output:
        """Make the output. Raises the errors of its constructor."""
        return self.kind(self.target, **self.settings)


def describe(to: str, settings: Mapping[str, Any] | None = None) -> Described:
    """Return the output that `output` would make, without making it. Raises ArgumentError."""
    kind, target = _kind_of(to)
    kind.check(target)
    return Described(kind, target, _values(kind, settings or {}))


def _values(kind: type[Output] | type[NatsSource], settings: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in kind.settings:
            raise ArgumentError(f"{kind.scheme} has no setting {name!r}{nearest(name, kind.settings)}")
        try:
            values[name] = kind.settings[name](value)
        except ValueError as error:
            raise ArgumentError(f"{name}: {error}") from None
    return values


def output(to: str, settings: Mapping[str, Any] | None = None) -> Output:
    """Make the output for a text like ``sqlite:firewall.db``, or ``log.jsonl``, whose extension selects the kind.

    settings: by name, as in a configuration file: ``{"rotate_size": "100M"}``.

    Raises ArgumentError, and the errors of the output's constructor.
    """
    return describe(to, settings).make()


def source(url: str, settings: Mapping[str, Any] | None = None) -> NatsSource:
    """Make the source for a URL like ``nats://HOST:4222``; settings are by name, as for `output`.

    Raises ArgumentError, and OSError if a file that a setting names cannot be read.
    """
    return describe_source(url, settings).make()


class DescribedSource(NamedTuple):
    """A source that has not been made yet."""

    target: str
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """What it is called, without a password."""
        return without_password(f"{NatsSource.scheme}:{self.target}")

    def make(self) -> NatsSource:
        """Make the source. Raises ArgumentError or OSError for wrong settings."""
        return NatsSource(self.target, **self.settings)


def describe_source(url: str, settings: Mapping[str, Any] | None = None) -> DescribedSource:
    """Return the source that `source` would make, without making it. Raises ArgumentError."""
    scheme, _, target = url.partition(":")
    if scheme != NatsSource.scheme:
        raise ArgumentError(f"{without_password(repr(url))} is no source: write nats://HOST:4222")
    NatsSource.check(target)
    return DescribedSource(target, _values(NatsSource, settings or {}))


def _kind_of(to: str) -> tuple[type[Output], str]:
    kinds = known()
    scheme, colon, target = to.partition(":")
    if colon and scheme in kinds:
        target = target or kinds[scheme].usual_target
        if not target:
            raise ArgumentError(f"{to!r} does not say where to")
        return kinds[scheme], target
    if to == "-":
        return Text, to
    for kind in kinds.values():
        if to.endswith(kind.suffixes):
            return kind, to
    suffixes = ", ".join(suffix for kind in kinds.values() for suffix in kind.suffixes)
    raise ArgumentError(
        f"{without_password(repr(to))} names no output: write {', '.join(f'{scheme}:' for scheme in kinds)} before it,"
        f" or a file that ends in {suffixes}{nearest(scheme, kinds) if colon else ''}"
    )
