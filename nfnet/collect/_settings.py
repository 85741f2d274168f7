"""The configuration file of the collector."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .._arguments import check
from ..errors import ArgumentError
from . import _units
from ._nats_source import NatsSource
from ._outputs import Described, describe, nearest, source


@dataclass
class Settings:
    """What a collector is to do."""

    groups: list[int] = field(default_factory=list)
    rules: list[tuple[int, Any]] = field(default_factory=list)
    """Group, and what the reader of rules made of the words."""
    outputs: list[Described] = field(default_factory=list)
    source: NatsSource | None = None
    """In place of groups."""
    labels: dict[str, str] = field(default_factory=dict)
    spool: str | None = None
    spool_size: int | None = None
    rcvbuf: int | None = None


_TOP = ("group", "source", "output", "labels", "spool", "spool_size", "rcvbuf")
_GROUP = ("number", "rule")


def read_settings(path: str | os.PathLike[str], rule: Callable[[str], Any] = str) -> Settings:
    """What a TOML file says; ``rule`` reads a rule in words, and raises ValueError or ArgumentError.

    Raises ArgumentError for the first thing that is wrong, with its line; OSError if the file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        return _Reader(data.decode("utf-8"), rule).settings()
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{os.fspath(path)}:{data[: error.start].count(10) + 1}: this is no UTF-8") from None
    except _WrongError as error:
        line = f":{error.line}" if error.line else ""
        raise ArgumentError(f"{os.fspath(path)}{line}: {error}") from None


class _WrongError(Exception):
    def __init__(self, text: str, line: int | None) -> None:
        super().__init__(text)
        self.line = line


def _load(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        try:
            import tomli as tomllib  # type: ignore[import-not-found, no-redef, unused-ignore]
        except ImportError:
            hint = "pip install 'nfnet[toml]', or use Python 3.11 or newer"
            raise ArgumentError(f"Python 3.10 cannot read TOML by itself: {hint}") from None
    try:
        found: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        said = re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", str(error))
        line = int(said[2]) if said else len(text.splitlines())
        raise _WrongError(said[1] if said else str(error), line) from None
    return found


class _Reader:
    """Reads one file, and knows in which line what is."""

    def __init__(self, text: str, rule: Callable[[str], Any]) -> None:
        self._text = text
        self._rule = rule
        self._table, self._index = "", 0  # that which is being read

    def settings(self) -> Settings:
        found = Settings()
        top = _load(self._text)
        self._check_names(top, _TOP)
        for name in ("spool_size", "rcvbuf"):
            if name in top:
                setattr(found, name, self._read(name, _units.size, top[name]))
        if "spool" in top:
            found.spool = self._read("spool", _text, top["spool"])
        if "labels" in top:
            found.labels = self._labels(top["labels"])
        for table in self._tables(top, "group"):
            self._check_names(table, _GROUP)
            number = self._read("number", _number, self._required(table, "number"))
            if number in found.groups:
                raise self._wrong(f"group {number} is there twice", "number")
            found.groups.append(number)
            words = table.get("rule", [])
            for each in words if isinstance(words, list) else [words]:
                found.rules.append((number, self._read("rule", self._rule, _text(each))))
        if "source" in top:
            found.source = self._source(top["source"])
        for table in self._tables(top, "output"):
            settings = dict(table)
            to = self._read("to", _text, self._required(settings, "to"))
            del settings["to"]
            found.outputs.append(self._output(to, settings))
        return found

    def _source(self, settings: Any) -> NatsSource:
        if not isinstance(settings, dict):
            raise self._wrong("source is a table: [source]", "source")
        self._table = "source"
        settings = dict(settings)
        url = self._read("from", _text, self._required(settings, "from"))
        del settings["from"]
        self._read("from", source, url)
        for name, value in settings.items():
            try:
                source(url, {name: value})
            except (ArgumentError, OSError) as error:
                raise self._wrong(str(error), name) from None
        found = source(url, settings)
        self._table = ""
        return found

    def _output(self, to: str, settings: Mapping[str, Any]) -> Described:
        self._read("to", describe, to)
        for name, value in settings.items():
            try:
                describe(to, {name: value})
            except ArgumentError as error:
                raise self._wrong(str(error), name) from None
        return describe(to, settings)

    def _labels(self, labels: Any) -> dict[str, str]:
        if not isinstance(labels, dict):
            raise self._wrong("labels are a table: [labels]", "labels")
        for name, value in labels.items():
            if not isinstance(value, str):
                self._table = "labels"
                raise self._wrong(f"label {name} is {value!r} and must be a string", name)
        return labels

    def _tables(self, top: Mapping[str, Any], name: str) -> Any:
        tables = top.get(name, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise self._wrong(f"{name} is one or more tables: [[{name}]]", name)
        for index, table in enumerate(tables):
            self._table, self._index = name, index
            yield table
        self._table = ""

    def _check_names(self, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for name in table:
            if name not in known:
                raise self._wrong(f"unknown key {name!r}{nearest(name, known)}", name)

    def _required(self, table: Mapping[str, Any], name: str) -> Any:
        if name not in table:
            raise self._wrong(f"[[{self._table}]] without {name!r}", None)
        return table[name]

    def _read(self, name: str, read: Callable[[Any], Any], value: Any) -> Any:
        try:
            return read(value)
        except Exception as error:
            if not isinstance(error, (ValueError, TypeError, ArgumentError)) and not _is_of_argparse(error):
                raise
            raise self._wrong(f"{name}: {error}", name) from None

    def _wrong(self, text: str, name: str | None) -> _WrongError:
        return _WrongError(text, self._line_of(name))

    def _line_of(self, name: str | None) -> int | None:
        """The line of a key in the table that is being read, or of the table's header; None if it is not found."""
        table, seen, header = "", Counter[str](), None
        for number, line in enumerate(self._text.splitlines(), 1):
            if found := re.match(r"\s*\[\[?\s*[\"']?([^\]\"']*?)[\"']?\s*\]", line):
                table = found[1]
                seen[table] += 1
                if not self._table and table == name:
                    return number
            if table != self._table or (table and seen[table] != self._index + 1):
                continue
            header = header or number
            if name is not None and re.match(rf"\s*[\"']?{re.escape(name)}[\"']?\s*[=.]", line):
                return number
        return header if self._table else None


def _is_of_argparse(error: Exception) -> bool:
    """Whether the reader of rules, which is also that of an option, refuses something."""
    return type(error).__name__ == "ArgumentTypeError"


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no text")
    return value


def _number(value: Any) -> int:
    return check("number of a log group", value, 0, 0xFFFF)
