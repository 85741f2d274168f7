"""Which outputs there are, and how they are named."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, NamedTuple

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
"""Those of this package."""

_GROUP = "nfnet.outputs"


def known() -> dict[str, type[Output]]:
    """All outputs by scheme: `OUTPUTS`, and those of installed packages (entry points of ``nfnet.outputs``).

    Raises ArgumentError if one of these cannot be imported, or is no output.
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
    """An output that could be made."""

    kind: type[Output]
    target: str
    settings: dict[str, Any]
    groups: tuple[int, ...] | None = None
    """Whose messages it gets; None: those of all."""

    @property
    def name(self) -> str:
        """What it is called, without a password."""
        return without_password(f"{self.kind.scheme}:{self.target}")

    def make(self) -> Output:
        """Make it. Raises what it raises if the target cannot be right."""
        return self.kind(self.target, **self.settings)


def describe(to: str, settings: Mapping[str, Any] | None = None) -> Described:
    """What `output` would make of these. Raises ArgumentError."""
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
    """The output that ``sqlite:firewall.db`` means, or ``log.jsonl``, whose name says what it is.

    settings: by name, as in a configuration file: ``{"rotate_size": "100M"}``.

    Raises ArgumentError, and what the output raises if the target cannot be right.
    """
    return describe(to, settings).make()


def source(url: str, settings: Mapping[str, Any] | None = None) -> NatsSource:
    """The source that ``nats://HOST:4222`` means; settings are by name, as for `output`.

    Raises ArgumentError, and OSError for a file that a setting names and that cannot be read.
    """
    return describe_source(url, settings).make()


class DescribedSource(NamedTuple):
    """A source that could be made."""

    target: str
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """What it is called, without a password."""
        return without_password(f"{NatsSource.scheme}:{self.target}")

    def make(self) -> NatsSource:
        """Make it. Raises ArgumentError or OSError if what settings name cannot be right."""
        return NatsSource(self.target, **self.settings)


def describe_source(url: str, settings: Mapping[str, Any] | None = None) -> DescribedSource:
    """What `source` would make of these. Raises ArgumentError."""
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


def nearest(name: str, names: Any) -> str:
    """What is appended to an error about a wrong name: the nearest right one, or all there are."""
    close = difflib.get_close_matches(name, list(names), 1, 0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(names)}" if names else "; it has none"
