"""The configuration file of the collector."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .._arguments import check, nearest
from ..errors import ArgumentError
from . import _units
from ._collector import Group
from ._outputs import Described, DescribedSource, describe, describe_source


@dataclass
class Settings:
    """The settings of a collector."""

    groups: list[Group] = field(default_factory=list)
    rules: list[tuple[int, Any]] = field(default_factory=list)
    """Group, and what the reader of rules made of the words."""
    outputs: list[Described] = field(default_factory=list)
    source: DescribedSource | None = None
    """In place of groups."""
    labels: dict[str, str] = field(default_factory=dict)
    spool: str | None = None
    spool_size: int | None = None
    rcvbuf: int | None = None
    limit: _units.Rate | None = None
    process: bool = False
    conntrack: bool = False
    metrics: Any = None
    """The address as the caller's parser returned it."""


_TOP = (
    *("group", "source", "output", "labels", "spool", "spool_size", "rcvbuf", "limit", "process", "conntrack"),
    "metrics",
)
_GROUP = ("number", "rule", "labels", "verdict", "limit")
VERDICTS = ("accept", "drop", "reject")
"""What rules may do with packets that they log."""


def read_settings(
    path: str | os.PathLike[str], rule: Callable[[str], Any] = str, endpoint: Callable[[str], Any] = str
) -> Settings:
    """Return the settings in a TOML file.

    rule, endpoint: functions that parse a rule in words, and an address and port; they raise ValueError or
        ArgumentError.

    Raises ArgumentError for the first error, with its line; OSError if the file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        return _Reader(data.decode("utf-8"), rule, endpoint).settings()
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{os.fspath(path)}:{data[: error.start].count(10) + 1}: this is no UTF-8") from None
    except _WrongError as error:
        line = f":{error.line}" if error.line else ""
        raise ArgumentError(f"{os.fspath(path)}{line}: {error}") from None


class _WrongError(Exception):
    def __init__(self, text: str, line: int | None) -> None:
        super().__init__(text)
        self.line = line


# The probable causes of error messages of the TOML parser.
_HINTS = {
    "Illegal character": "a text without the quote at its end?",
    "Invalid value": "texts stand in quotes, and numbers, true and false do not",
    **dict.fromkeys(
        ("Cannot overwrite a value", "Cannot declare", "Cannot mutate"),
        "it is there twice; or once as [output] or [group], which need two brackets each time",
    ),
}


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
        said = re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", str(error), re.DOTALL)
        line = int(said[2]) if said else len(text.splitlines())
        words: str = said[1] if said else str(error)
        meant = next((f": {hint}" for start, hint in _HINTS.items() if words.startswith(start)), "")
        raise _WrongError(f"{words}{meant}", line) from None
    return found


class _Reader:
    """Reads one file, and finds the lines of its keys for errors."""

    def __init__(self, text: str, rule: Callable[[str], Any], endpoint: Callable[[str], Any]) -> None:
        self._text = text
        self._rule = rule
        self._endpoint = endpoint
        self._table, self._index = "", 0  # that which is being read

    def settings(self) -> Settings:
        found = Settings()
        top = _load(self._text)
        self._check_names(top, _TOP)
        readers: dict[str, Callable[[Any], Any]] = {
            "spool": _text,
            "spool_size": _units.size,
            "rcvbuf": _units.size,
            "limit": _units.rate,
            "process": _units.yes_or_no,
            "conntrack": _units.yes_or_no,
            "metrics": lambda value: self._endpoint(str(value)),
        }
        for name, read in readers.items():
            if name in top:
                setattr(found, name, self._read(name, read, top[name]))
        if "labels" in top:
            found.labels = self._labels(top["labels"], "labels")
        for table in self._tables(top, "group"):
            found.groups.append(self._group(table, found))
        if "source" in top:
            found.source = self._source(top["source"])
        for table in self._tables(top, "output"):
            settings = dict(table)
            to = self._read("to", _text, self._required(settings, "to"))
            self._read("to", describe, to)
            del settings["to"]
            self._check_names(
                settings, (*describe(to).kind.settings, "groups"), f"{describe(to).kind.scheme} has no setting"
            )
            groups = self._read("groups", partial(_some_of, found.groups), settings.pop("groups", None))
            output = self._output(to, settings)._replace(groups=groups)
            if any((each.kind, each.target) == (output.kind, output.target) for each in found.outputs):
                raise self._wrong(f"{to} is there twice", "to")
            found.outputs.append(output)
        return found

    def _source(self, settings: Any) -> DescribedSource:
        if not isinstance(settings, dict):
            raise self._wrong("source is a table: [source]", "source")
        self._table = "source"
        settings = dict(settings)
        url = self._read("from", _text, self._required(settings, "from"))
        del settings["from"]
        self._read("from", describe_source, url)
        for name, value in settings.items():
            try:
                describe_source(url, {name: value})
            except ArgumentError as error:
                raise self._wrong(str(error), name) from None
        found = describe_source(url, settings)
        self._table = ""
        return found

    def _group(self, table: Mapping[str, Any], found: Settings) -> Group:
        self._check_names(table, _GROUP)
        number = self._read("number", _number, self._required(table, "number"))
        if any(group.number == number for group in found.groups):
            raise self._wrong(f"group {number} is there twice", "number")
        words = table.get("rule", [])
        for each in words if isinstance(words, list) else [words]:
            found.rules.append((number, self._read("rule", lambda value: self._rule(_text(value)), each)))
        labels = self._labels(table["labels"], "group.labels") if "labels" in table else {}
        if "verdict" in table:
            labels = {**labels, "verdict": self._read("verdict", _verdict, table["verdict"])}
        limit = self._read("limit", _units.rate, table["limit"]) if "limit" in table else None
        return Group(number, labels, limit)

    def _output(self, to: str, settings: Mapping[str, Any]) -> Described:
        for name, value in settings.items():
            try:
                describe(to, {name: value})
            except ArgumentError as error:
                raise self._wrong(str(error), name) from None
        return describe(to, settings)

    def _labels(self, labels: Any, table: str) -> dict[str, str]:
        if not isinstance(labels, dict):
            raise self._wrong(f'labels are a table: [{table}], or labels = {{ name = "value" }}', "labels")
        for name, value in labels.items():
            if not isinstance(value, str):
                text = f"label {name} is {value!r} and must be a string"
                if table == "labels":
                    self._table = table
                    raise self._wrong(text, name)
                raise _WrongError(text, self._line_of("labels", f"{self._table}.labels"))
        return labels

    def _tables(self, top: Mapping[str, Any], name: str) -> Any:
        tables = top.get(name, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise self._wrong(f"{name} is one or more tables: [[{name}]]", name)
        for index, table in enumerate(tables):
            self._table, self._index = name, index
            yield table
        self._table = ""

    def _check_names(self, table: Mapping[str, Any], known: tuple[str, ...], what: str = "unknown key") -> None:
        for name in table:
            if name not in known:
                raise self._wrong(f"{what} {name!r}{nearest(name, known)}", name)

    def _required(self, table: Mapping[str, Any], name: str) -> Any:
        if name not in table:
            close = difflib.get_close_matches(name, list(table), 1, 0.5)
            hint = f"; is that meant by {close[0]!r}?" if close else ""
            header = f"[{self._table}]" if self._table == "source" else f"[[{self._table}]]"
            raise self._wrong(f"{header} without {name!r}{hint}", close[0] if close else None)
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

    def _line_of(self, name: str | None, inner: str = "") -> int | None:
        """Return the line of a key in the table that is being read, or of the table's header; None if it is not found.

        inner: the header of a table in it that also counts as the key.
        """
        table, seen, header = "", Counter[str](), None
        for number, line in enumerate(self._text.splitlines(), 1):
            if found := re.match(r"\s*\[\[?\s*[\"']?([^\]\"']*?)[\"']?\s*\]", line):
                if inner and found[1] == inner and table == self._table and seen[table] == self._index + 1:
                    return number
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
    """Return whether an error is one of the parser of rules, which is also that of an option."""
    return type(error).__name__ == "ArgumentTypeError"


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no text")
    return value


def _some_of(groups: list[Group], value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise ValueError(f"{value!r} is no list of groups, such as [5, 6]")
    for each in value:
        if isinstance(each, bool) or not any(group.number == each for group in groups):
            raise ValueError(f"{each!r} is none of the groups of this file")
    return tuple(value)


def _verdict(value: Any) -> str:
    if value not in VERDICTS:
        raise ValueError(f"{value!r} is none of {', '.join(VERDICTS)}")
    return str(value)


def _number(value: Any) -> int:
    return check("number of a log group", value, 0, 0xFFFF)
