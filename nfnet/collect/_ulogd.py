"""Converts a configuration of ulogd2 to one of the collector."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import quote

from ..errors import ArgumentError
from ._outputs import known

_Section = dict[str, str]

# Plugins that interpret the kernel's messages for outputs; here each output does that itself.
_BUILT_IN = ("BASE", "IFINDEX", "IP2STR", "IP2BIN", "IP2HBIN", "HWHDR", "PRINTPKT")
_FLOWS = ("NFCT", "NFACCT")
# Keys of an input that need no counterpart, with the reason.
_NO_NEED = {
    "bind": "groups are always bound",
    "unbind": "groups are always bound",
    "netlink_socket_buffer_maxsize": "rcvbuf is granted at once",
    "netlink_qthreshold": "the kernel sends many messages together, after 0.1 s at the latest",
    "netlink_qtimeout": "the kernel sends many messages together, after 0.1 s at the latest",
    "seq_local": "sequence numbers are always asked for",
    "seq_global": "sequence numbers of the group tell what was lost",
}


@dataclass
class _Stack:
    """A line ``stack=``: names and plugins."""

    text: str
    line: int
    parts: list[tuple[str, str]]


@dataclass
class _Output:
    """An output, and the groups whose messages it gets."""

    lines: list[str]
    groups: list[int] = field(default_factory=list)


@dataclass
class _Input:
    """A group of NFLOG."""

    remarks: list[str]
    labels: dict[str, str]
    verdict: str | None
    rcvbuf: int | None


def translate(path: str | os.PathLike[str]) -> str:
    """Return a configuration in TOML that does the same as a file of ulogd2, with comments for what it cannot do.

    Raises OSError if the file cannot be read, ArgumentError with the line if it is not a configuration of ulogd2.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        return translate_text(file.read(), os.fspath(path))


def translate_text(text: str, path: str) -> str:
    """Convert the contents of a file; see `translate`."""
    stacks, sections = _parse(text, path)
    return _Translation(sections).toml(path, stacks)


def _parse(text: str, path: str) -> tuple[list[_Stack], dict[str, _Section]]:
    stacks: list[_Stack] = []
    sections: dict[str, _Section] = {}
    section: _Section | None = None
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        if found := re.fullmatch(r"\[([^\]]+)\]\s*([#;].*)?", line):
            section = sections.setdefault(found[1].strip(), {})
            continue
        found = re.fullmatch(r"(\w+)\s*=\s*(?:\"([^\"]*)\"|([^\s#]*)).*", line)
        if found is None or section is None:
            what = "is no [section] and no name=value" if found is None else "is before the first [section]"
            raise ArgumentError(f"{path}:{number}: {line!r} {what}; is it a configuration of ulogd2?")
        name, value = found[1], found[3] if found[2] is None else found[2]
        if name != "stack":
            section[name] = value
            continue
        parts = [part.strip().partition(":") for part in value.split(",")]
        if not all(instance and colon and plugin for instance, colon, plugin in parts):
            raise ArgumentError(f"{path}:{number}: {value!r} is no stack, such as log1:NFLOG,base1:BASE,emu1:LOGEMU")
        stacks.append(_Stack(value, number, [(instance, plugin) for instance, _, plugin in parts]))
    if "global" not in sections:
        raise ArgumentError(f"{path}: there is no section [global]; is it a configuration of ulogd2?")
    return stacks, sections


class _Translation:
    def __init__(self, sections: dict[str, _Section]) -> None:
        self._sections = sections
        self._known = known()
        self._inputs: dict[int, _Input] = {}
        self._outputs: dict[str, _Output] = {}  # by name of the section
        self._left: list[str] = []

    def toml(self, path: str, stacks: list[_Stack]) -> str:
        for stack in stacks:
            self._stack(stack)
        lines = [*_comment(f"What ulogd2 does with {path}, made by nfnet collect --import-ulogd."), ""]
        if not self._outputs:
            self._left.append("no stack of this file leads from NFLOG to an output that there is here")
        for text in self._left:
            lines += _comment(text)
        lines += [""] if self._left else []
        sizes = [source.rcvbuf for source in self._inputs.values() if source.rcvbuf]
        if sizes:
            # ulogd2 doubles its buffer after it lost messages; the collector's buffer has its full size from the start.
            lines += [
                f"# netlink_socket_buffer_size is {max(sizes)}; 128 MiB, the default, are taken up only if needed"
            ]
            lines += [f"# rcvbuf = {max(sizes)}", ""]
        for number, source in self._inputs.items():
            lines += [line for text in source.remarks for line in _comment(text)]
            lines += ["[[group]]", f"number = {number}"]
            if source.verdict is not None:
                source.labels.pop("numeric_label", None)  # a label that only stood for the verdict
                lines.append(f"verdict = {_string(source.verdict)}")
            if source.labels:
                pairs = ", ".join(f"{name} = {_string(value)}" for name, value in source.labels.items())
                lines.append(f"labels = {{ {pairs} }}")
            lines.append("")
        for output in self._outputs.values():
            lines += output.lines
            if len(self._inputs) > 1 and set(output.groups) != set(self._inputs):
                lines.append(f"groups = [{', '.join(map(str, output.groups))}]")
            lines.append("")
        return "\n".join(lines).rstrip("\n") + "\n"

    def _stack(self, stack: _Stack) -> None:
        where = f"line {stack.line}, stack={stack.text}:"
        (source, kind), *filters, (sink, output) = stack.parts if len(stack.parts) > 1 else (*stack.parts, ("", ""))
        if kind in _FLOWS:
            self._left.append(f"{where} connections and counters ({kind}) are not collected, only logged packets")
            return
        if kind == "ULOG":
            self._left.append(f"{where} the kernel has no ULOG any more: let the rule log with NFLOG")
            return
        if kind != "NFLOG":
            self._left.append(f"{where} {kind or 'nothing'} is no source of logged packets here")
            return
        for instance, plugin in filters:
            if plugin == "MARK":
                mark = self._sections.get(instance, {}).get("mark", "")
                self._left.append(f"{where} MARK lets only mark {mark} pass: ask for the mark in the rule that logs")
            elif plugin not in _BUILT_IN:
                self._left.append(f"{where} there is no {plugin}; it is left out")
        make: Callable[[_Section, str], Iterator[str]] | None = _OUTPUTS.get(output)
        if make is None:
            reason = f"there is no output for {output}" if output else "the stack has no output"
            self._left.append(f"{where} {reason}")
            return
        settings = self._sections.get(sink, {})
        lines = list(make(settings, sink))
        scheme = next((_scheme_of(line) for line in lines if line.startswith("to = ")), None)
        if scheme is None or scheme not in self._known:
            self._left.append(f"{where} there is no output {scheme or output} here")
            self._left += [line.removeprefix("# ") for line in lines if line.startswith("# ")]
            return
        number = self._input(source, settings, where)
        if number is not None:
            found = self._outputs.setdefault(sink, _Output(lines))
            if number not in found.groups:
                found.groups.append(number)

    def _input(self, name: str, output: _Section, where: str) -> int | None:
        settings = self._sections.get(name, {})
        group = settings.get("group", "0")
        if not group.isdecimal() or int(group) > 0xFFFF:
            self._left.append(f"{where} group {group!r} of [{name}] is no log group")
            return None
        number = int(group)
        labels, verdict = {}, None
        label = settings.get("numeric_label", "0")
        if output.get("boolean_label", "0") != "0":
            verdict = "drop" if label == "0" else "accept"
        elif label != "0":
            labels["numeric_label"] = label
        if device := output.get("device"):
            labels["device"] = device
        if (found := self._inputs.get(number)) is not None:
            found.labels.update(labels)
            found.verdict = found.verdict or verdict
            return number
        size = settings.get("netlink_socket_buffer_size", "")
        remarks = [f"{key}: {why}" for key, why in _NO_NEED.items() if key in settings]
        if number == 0:
            remarks.append("the kernel also logs packets that connection tracking finds invalid to group 0")
        self._inputs[number] = _Input(remarks, labels, verdict, int(size) if size.isdecimal() else None)
        return number


# --- outputs: what stands in the table of each


def _to(target: str) -> str:
    return f"to = {_string(target)}"


def _logemu(settings: _Section, name: str) -> Iterator[str]:
    yield from _comment("LOGEMU; the lines have another format, and local times")
    yield "[[output]]"
    yield _to(f"text:{settings.get('file', '/var/log/ulogd.syslogemu')}")


def _fields(default: str) -> Callable[[_Section, str], Iterator[str]]:
    def make(settings: _Section, name: str) -> Iterator[str]:
        yield from _comment(f"[{name}]: all fields; here they are JSON, with other names")
        yield "[[output]]"
        yield _to(f"jsonl:{settings.get('file', default)}")

    return make


def _json(settings: _Section, name: str) -> Iterator[str]:
    mode = settings.get("mode", "file")
    if mode != "file":
        yield from _comment(
            f"[{name}]: mode={mode}, to {settings.get('host') or settings.get('file', '')}: lines of JSON go to files"
            " alone; to other hosts there is syslog, NATS or PostgreSQL"
        )
        return
    yield from _comment("JSON; the names of fields are those of the Elastic Common Schema")
    yield "[[output]]"
    yield _to(f"jsonl:{settings.get('file', '/var/log/ulogd.json')}")


def _sqlite(settings: _Section, name: str) -> Iterator[str]:
    if "table" in settings:
        yield from _comment(f"SQLITE3; rows go to the table messages, and the table {settings['table']} stays as it is")
    yield "[[output]]"
    yield _to(f"sqlite:{settings.get('db', '/var/log/ulogd.sqlite3db')}")


def _pcap(settings: _Section, name: str) -> Iterator[str]:
    file = settings.get("file", "/var/log/ulogd.pcap")
    yield from _comment(f"PCAP; the existing file {file} is not changed")
    yield "[[output]]"
    yield _to(f"pcapng:{file.removesuffix('.pcap').removesuffix('.pcapng')}.pcapng")


def _syslog(settings: _Section, name: str) -> Iterator[str]:
    yield "[[output]]"
    yield _to("syslog:/dev/log")
    settings = {key: value.upper().removeprefix("LOG_").lower() for key, value in settings.items()}
    if "syslog" in known():
        for key, theirs, default in (("facility", "facility", "kern"), ("severity", "level", "notice")):
            if key in known()["syslog"].settings:
                yield f"{key} = {_string(settings.get(theirs, default))}"


def _pgsql(settings: _Section, name: str) -> Iterator[str]:
    if "connstring" in settings:
        words = dict(word.split("=", 1) for word in settings["connstring"].split() if "=" in word)
        settings = {**settings, **words, "db": words.get("dbname", ""), "pass": words.get("password", "")}
    if settings.get("pass"):
        yield from _comment("there is a password in the next table: nobody else should be able to read this file")
    yield from _comment("PGSQL; the tables are different, and nfnet collect --create creates them")
    user = quote(settings.get("user", ""), safe="")
    if settings.get("pass"):
        user += f":{quote(settings['pass'], safe='')}"
    port = f":{settings['port']}" if settings.get("port") else ""
    host = f"{settings.get('host', '')}{port}"
    yield "[[output]]"
    yield _to(f"postgresql://{user + '@' if user else ''}{host}/{quote(settings.get('db', ''), safe='')}")


_OUTPUTS: dict[str, Callable[[_Section, str], Iterator[str]]] = {
    "LOGEMU": _logemu,
    "GPRINT": _fields("/var/log/ulogd_gprint.log"),
    "OPRINT": _fields("/var/log/ulogd_oprint.log"),
    "JSON": _json,
    "SQLITE3": _sqlite,
    "PCAP": _pcap,
    "SYSLOG": _syslog,
    "PGSQL": _pgsql,
}


def _scheme_of(line: str) -> str:
    return str(json.loads(line.removeprefix("to = "))).partition(":")[0]


def _string(text: str) -> str:
    """Return a string of TOML. It has the same syntax as in JSON, except that DEL must be escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _comment(text: str) -> list[str]:
    """Return a comment; line breaks and control characters in it are replaced."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return [f"# {clean}"]
