"""Which outputs there are, and how they are named."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from ..errors import ArgumentError
from ._output import Output
from .capture import Capture
from .json_lines import JsonLines
from .sqlite import Sqlite
from .text import Text

OUTPUTS: tuple[type[Output], ...] = (JsonLines, Text, Sqlite, Capture)
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

    def make(self) -> Output:
        """Make it. Raises what it raises if the target cannot be right."""
        return self.kind(self.target, **self.settings)


def describe(to: str, settings: Mapping[str, Any] | None = None) -> Described:
    """What `output` would make of these. Raises ArgumentError."""
    kind, target = _kind_of(to)
    values: dict[str, Any] = {}
    for name, value in (settings or {}).items():
        if name not in kind.settings:
            raise ArgumentError(f"{kind.scheme} has no setting {name!r}{nearest(name, kind.settings)}")
        try:
            values[name] = kind.settings[name](value)
        except ValueError as error:
            raise ArgumentError(f"{name}: {error}") from None
    return Described(kind, target, values)


def output(to: str, settings: Mapping[str, Any] | None = None) -> Output:
    """The output that ``sqlite:firewall.db`` means, or ``log.jsonl``, whose name says what it is.

    settings: by name, as in a configuration file: ``{"rotate_size": "100M"}``.

    Raises ArgumentError, and what the output raises if the target cannot be right.
    """
    return describe(to, settings).make()


def _kind_of(to: str) -> tuple[type[Output], str]:
    kinds = known()
    scheme, colon, target = to.partition(":")
    if colon and scheme in kinds:
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
        f"{to!r} names no output: write {', '.join(f'{scheme}:' for scheme in kinds)} before it, or a file that ends in"
        f" {suffixes}{nearest(scheme, kinds) if colon else ''}"
    )


def nearest(name: str, names: Any) -> str:
    """What is appended to an error about a wrong name: the nearest right one, or all there are."""
    close = difflib.get_close_matches(name, list(names), 1, 0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(names)}" if names else "; it has none"
