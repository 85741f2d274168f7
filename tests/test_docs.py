"""The code in the documentation works: every block in every Markdown file runs, on packets that are fed to it.

The Python blocks of a page run unchanged, one after the other, in one namespace. An HTML comment, which readers do not
see, prepares or checks a block:

    <!-- test
    feed(udp(b"a secret"), udp(b"hello", mark=7))      # packets for the next queue or log that is opened
    -->

The comment contains Python, executed in the same namespace, before or after a block; `Stage` has the functions that it
can call. Queues and logs get the packets that were fed instead of the kernel's; rules are checked but not installed. At
the end of the page every line of every block must have been executed. Functions named ``test_...`` are called with the
pytest fixtures that they have as parameters.

In shell blocks, the parser of the command must accept each ``nfnet ...``. ``nfnet decode``, ``nfnet replay`` and Python
scripts that the page shows (``<!-- file: NAME -->`` before the block) run. If the block contains output, they must
print it.

A block after ``<!-- not run: REASON -->`` is only compiled or parsed; `NOT_RUN` contains their number by page.
"""

from __future__ import annotations

import argparse
import contextlib
import dis
import doctest
import importlib.util
import inspect
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import pytest

import nfnet
from nfnet import cli, metrics, testing
from nfnet._injection import divert, restore
from nfnet.captures import GivenVerdict
from nfnet.cli.command_line import rule_words
from nfnet.collect._settings import read_settings
from nfnet.protocol import netlink
from nfnet.protocol.markbits import MarkBits
from nfnet.protocol.nfnetlink import Subsystem
from nfnet.protocol.nfqnl import NFQA
from nfnet.testing import FakeKernel
from nfnet.testing._messages import NAMES

ROOT = Path(__file__).parent.parent
PLACES = ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/**/*.md")
PAGES = sorted(path for place in PLACES for path in ROOT.glob(place))

# Blocks that are not run, by page.
NOT_RUN = {"docs/tutorial.md": 1, "docs/pydivert.md": 1}

SHELL = ("console", "sh")
LANGUAGES = ("python", "pycon", *SHELL, "text", "ini", "dockerfile", "json", "toml")
# MyST's directives, which are blocks without code.
DIRECTIVES = (
    "toctree",
    "eval-rst",
    "nfnet-help",
    "nfnet-criteria",
    "nfnet-hooks",
    "include",
    "figure",
    "note",
    "image",
)


class Block(NamedTuple):
    """A piece of a page: a fenced block, or a comment for this test."""

    kind: str  # the language, or "test", "not run", "file"
    line: int  # of its first line of text
    text: str


_FENCE = re.compile(r"( *)(`{3,}|:{3,})\s*(.*?)\s*")


def blocks(page: Path) -> Iterator[Block]:
    """The blocks and comments of a page, in order."""
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if found := _FENCE.fullmatch(line):
            indent, fence, kind = found.groups()
            start = number
            while lines[number].strip() != fence:
                number += 1
            text = "\n".join(item.removeprefix(indent) for item in lines[start:number])
            yield Block(kind, start + 1, text)
            number += 1
        elif line == "<!-- test":
            start = number
            while lines[number] != "-->":
                number += 1
            yield Block("test", start + 1, "\n".join(lines[start:number]))
            number += 1
        elif found := re.fullmatch(r"<!-- (not run|file): (.*) -->", line):
            yield Block(found[1], number, found[2])


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


# --- where they run


class Stage:
    """The namespace of a page's blocks, with the functions for its comments."""

    def __init__(self, page: Path, request: pytest.FixtureRequest, patches: pytest.MonkeyPatch) -> None:
        self.page = page
        self.request = request
        self.patches = patches
        self.waiting: list[tuple[bytes, dict[str, Any]]] = []
        self.kernel: Kernel | None = None
        self.double = FakeKernel()
        """Gets what is injected, by queues and without one."""
        self.called: set[str] = set()
        self.output = io.StringIO()
        self.executed: set[int] = set()
        self.expected: set[int] = set()
        self.namespace: dict[str, Any] = {
            "__name__": "__main__",
            "feed": self.feed,
            "verdicts": self.verdicts,
            "judged": self.judged,
            "printed": self.printed,
            "udp": given(testing.udp),
            "tcp": given(testing.tcp),
            "injected": self.sent,
            "replay": testing.open_replay,
            "patch": lambda owner, name, value: self.patches.setattr(owner, name, value),
            "nfnet": nfnet,
        }

    def feed(self, *packets: bytes | tuple[bytes, dict[str, Any]]) -> None:
        """Packets for the queue or log that is opened next: ``udp(b"...", mark=7)``, or any bytes."""
        self.waiting += [(item, {}) if isinstance(item, bytes) else item for item in packets]

    def verdicts(self) -> list[str]:
        """The verdicts that the last queue got, in the order of the packets: "accept", "drop connection", ..."""
        found = {item: GivenVerdict.from_word(word, changes, MarkBits()) for item, word, changes in self._judged()}
        return [given.verdict.name.lower() + " connection" * given.connection for _, given in sorted(found.items())]

    def judged(self) -> list[dict[str, Any]]:
        """The changes of the verdicts, in the order of the packets: "MARK", "PAYLOAD" and so on."""
        changes = {item: changed for item, _, changed in self._judged()}
        return [{key.name: value for key, value in as_named(changes[item]).items()} for item in sorted(changes)]

    def _judged(self) -> list[tuple[int, int, dict[int, Any]]]:
        assert self.kernel is not None, "no queue was opened"
        return self.kernel.judged

    def sent(self) -> list[bytes]:
        """Return the packets injected since the last call."""
        packets = self.double.injected.copy()
        self.double.injected.clear()
        return packets

    def printed(self) -> str:
        """Return the output since the last call."""
        text = self.output.getvalue()
        self.output.seek(0)
        self.output.truncate()
        return text

    def connect(self, **_: Any) -> Kernel:
        """Replace NetlinkSocket."""
        self.kernel = Kernel(self)
        return self.kernel

    def run(self, block: Block, *, count: bool) -> None:
        """Run Python; its lines are those of the page, in tracebacks too."""
        code = compile("\n" * (block.line - 1) + block.text, str(self.page), "exec", dont_inherit=True)
        if count:
            self.expected |= set(lines_of(code))
        with contextlib.redirect_stdout(self.output), self.tracing():
            exec(code, self.namespace)
            for name, value in list(self.namespace.items()):
                if name.startswith("test_") and name not in self.called:
                    self.called.add(name)
                    value(**{need: self.request.getfixturevalue(need) for need in inspect.signature(value).parameters})

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """Notes which lines of the page are executed."""

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            if frame.f_code.co_filename != str(self.page):
                return None
            if event == "line":
                self.executed.add(frame.f_lineno)
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        threading.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(before)
            threading.settrace(before)  # type: ignore[arg-type]


def lines_of(code: CodeType) -> Iterator[int]:
    """The lines of a block that can be executed."""
    yield from (line for _, line in dis.findlinestarts(code) if line)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            # The first line of a function is that of its definition, which is executed outside of it.
            yield from set(lines_of(constant)) - {constant.co_firstlineno}


def as_named(changes: dict[int, Any]) -> dict[Any, Any]:
    return {NFQA(number): value for number, value in changes.items()}


def given(build: Callable[..., bytes]) -> Callable[..., tuple[bytes, dict[str, Any]]]:
    """`testing.udp` or `tcp`, with attributes of the message beside the arguments for the packet."""
    own = inspect.signature(build).parameters

    def make(data: bytes = b"", **arguments: Any) -> tuple[bytes, dict[str, Any]]:
        packet = build(data, **{name: value for name, value in arguments.items() if name in own})
        return packet, {name: value for name, value in arguments.items() if name not in own}

    return make


class Kernel(FakeKernel):
    """Delivers the packets that were fed to the queue or log that is opened on it, and ends."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(ends=True)
        self.tap: Callable[[bool, bytes], None] | None = None
        self._stage = stage
        self.injected = stage.double.injected
        self._is_log = False

    def request(self, build: Callable[[int], bytes], operation: str) -> None:
        message = build(1)
        self._is_log = netlink.read_length_and_type(message)[1] >> 8 == Subsystem.LOG
        self._num = int.from_bytes(message[18:20], "big")
        assert self._stage.waiting, "nothing was fed to this queue or log: say what, in a comment before the block"
        for seq, (payload, attributes) in enumerate(self._stage.waiting):
            values = {NAMES.get(name, name): self._index(name, value) for name, value in attributes.items()}
            if self._is_log:
                values.setdefault("SEQ", seq)
                self.deliver(testing.log_message(payload, group=self._num, **{"prefix": "test", **values}))
            else:
                self.feed(payload=payload, **values)
        self._stage.waiting = []

    def _index(self, name: str, value: Any) -> Any:
        if name not in ("indev", "outdev") or not isinstance(value, str):
            return value
        index = len(self.interfaces) + 1
        self.interfaces[index] = value
        return index

    def receive(self, into: list[bytes], limit: int) -> bool:
        before = len(into)
        more = super().receive(into, limit)
        for datagram in into[before:]:
            self._record(False, datagram)
        return more

    def _record(self, outgoing: bool, datagram: bytes) -> None:
        if self.tap is not None:
            self.tap(outgoing, datagram)

    def send(self, datagram: bytes) -> None:
        self._record(True, datagram)
        if not self._is_log:
            super().send(datagram)


@pytest.fixture
def stage(
    page: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Stage]:
    it = Stage(page, request, monkeypatch)
    divert(it.double)

    def run_workers(handler: Any, queues: Any = range(4), processes: int | None = None, **options: Any) -> None:
        fed = it.waiting
        for number in queues:
            it.waiting = list(fed)
            with nfnet.Queue(number, **options) as queue:
                queue.run(handler)

    def serve(port: int, *readers: Any, address: str = "127.0.0.1") -> Callable[[], None]:
        assert list(metrics.Collector(*readers).collect())
        return lambda: None

    monkeypatch.setattr("nfnet._core.reader.NetlinkSocket", it.connect)
    monkeypatch.setattr("nfnet._core.reader.call_in", lambda netns, function: function())
    monkeypatch.setattr("nfnet.rules.RuleSet._install", lambda rules, block: rules.describe())
    monkeypatch.setattr("nfnet.rules.RuleSet.remove", lambda rules: None)
    assert set(inspect.signature(run_workers).parameters) == set(inspect.signature(nfnet.run_workers).parameters)
    monkeypatch.setattr("nfnet.run_workers", run_workers)
    assert set(inspect.signature(serve).parameters) == set(inspect.signature(metrics.serve).parameters)
    monkeypatch.setattr("nfnet.metrics.serve", serve)
    (tmp_path / "nfnet").symlink_to(Path(nfnet.__file__).parent)  # as in a checkout
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield it
    restore(it.double)
    it.double.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@every_page
def test_a_page_runs(page: Path, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    built_for = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
    if not built_for and name_of(page) == "docs/event-loops.md":
        pytest.importorskip("gevent", reason="gevent has no wheel for PyPy and for free-threaded builds")
    excused = 0
    reason = file = ""
    for block in blocks(page):
        if block.kind == "not run":
            reason = block.text
            excused += 1
            continue
        if block.kind == "file":
            file = block.text
            continue
        if block.kind in ("python", "test"):
            if file:
                Path(file).write_text(block.text + "\n")
            if reason:
                compile(block.text, str(page), "exec")
            else:
                stage.run(block, count=block.kind == "python")
        elif block.kind == "pycon":
            session(block, stage)
        elif block.kind == "toml":
            Path("page.toml").write_text(block.text)
            read_settings("page.toml", lambda words: rule_words(words, nfnet.rules.log))
        elif block.kind in SHELL:
            for command, says in commands(block):
                shell(command, says, capsys, may_run=not reason)
        reason = file = ""
    assert not stage.waiting, "packets were fed that no queue and no log took"
    never = sorted(stage.expected - stage.executed)
    assert not never, f"{name_of(page)}: lines {never} were not executed"
    assert excused == NOT_RUN.get(name_of(page), 0), "NOT_RUN says how many blocks of the page are not run"


def session(block: Block, stage: Stage) -> None:
    """Run a session at Python's prompt, and compare its output; ``...`` matches anything."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    parsed = doctest.DocTestParser().get_doctest(block.text, stage.namespace, name_of(stage.page), None, block.line)
    told: list[str] = []
    result = doctest.DocTestRunner(optionflags=flags).run(parsed, out=told.append, clear_globs=False)
    assert not result.failed, "".join(told)
    stage.namespace.update(parsed.globs)


# --- shell


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Yield the commands of a block, each with its output, if the block contains that."""
    text = re.sub(r"\\\n\s*", "", block.text)
    if block.kind == "sh":
        yield from ((line.strip(), "") for line in text.splitlines())
        return
    assert text.startswith("$ "), f"line {block.line}: a console begins with a prompt, '$ '"
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, says = part.partition("\n")
        yield command, says


def shell(command: str, says: str, capsys: pytest.CaptureFixture[str], *, may_run: bool = True) -> None:
    """Check one command, and run it if it needs no privileges."""
    words = shlex.split(command, comments=True)
    if len(words) > 1 and words[0] == "sudo":
        words, may_run = words[1:], False
        assert not {"nfnet", "python"} & set(words), f"sudo does not find this in a virtual environment: {command}"
    if not words:
        return
    program = os.path.basename(words[0])
    if program == "python" and words[1:3] == ["-m", "nfnet"]:
        program, words = "nfnet", words[2:]
    if program == "nfnet":
        parse(words[1:], command)
        if may_run and words[1] in ("decode", "replay") and "|" not in words:
            capsys.readouterr()
            assert cli.main(words[1:]) == 0, command
            compare(says, capsys.readouterr().out, command)
    elif program == "python" and words[1].startswith("examples/"):
        assert (ROOT / words[1]).exists(), command
    elif program == "python" and may_run and Path(words[1]).exists():
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=60, env=environment)
        assert done.returncode == 0, done.stderr
        compare(says, done.stdout, command)


def parse(arguments: list[str], command: str) -> None:
    """Have the real parser accept it; options must be written out."""
    parser = cli.build()
    for each in (parser, *commands_of(parser).values()):
        each.allow_abbrev = False
    told = io.StringIO()
    status: Any = 0
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            parser.parse_args(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 0, f"{command}\n{told.getvalue()}"


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands, by name."""
    action = next(item for item in parser._actions if isinstance(item, argparse._SubParsersAction))
    return dict(action.choices)


def compare(says: str, got: str, command: str) -> None:
    if says.strip():
        checker, flags = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        assert checker.check_output(says + "\n", got, flags), f"{command} printed\n{got}"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`nfnet replay` prints local times."""
    with monkeypatch.context() as patches:
        patches.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@every_page
def test_commands_in_the_text_are_accepted(page: Path) -> None:
    text = re.sub(r"^( *)(`{3,}).*?^\1\2$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"`sudo (?:nfnet|python)\b[^`]*`", text), "sudo does not find these in a virtual environment"
    for command in re.findall(r"`(?:sudo )?(?:/?[.\w/]+/bin/)?(nfnet [a-z][^`]*)`", text):
        if "..." not in command and " " in command.removeprefix("nfnet "):
            parse(shlex.split(command)[1:], command)


# --- the pages themselves


@every_page
def test_every_block_has_a_language(page: Path) -> None:
    for block in blocks(page):
        if block.kind not in ("test", "not run", "file"):
            directive = block.kind[1:].partition("}")[0] if block.kind.startswith("{") else None
            assert block.kind in LANGUAGES or directive in DIRECTIVES, f"line {block.line}: ```{block.kind}"


@every_page
def test_code_is_fenced(page: Path) -> None:
    """Indented blocks have no language, so no test would run them."""
    fenced = re.sub(r"^( *)(`{3,}).*?^\1\2$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    fenced = re.sub(r"<!--.*?-->", "", fenced, flags=re.DOTALL)
    assert not re.findall(r"(?<=\n\n)    \S.*", fenced)


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "docs"], ids=name_of)
def test_code_fits_on_the_page(page: Path) -> None:
    code = [block for block in blocks(page) if block.kind in LANGUAGES]
    assert not [line for block in code for line in block.text.splitlines() if len(line) > 98]


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        if anchor and other.suffix == ".md":
            assert anchor in anchors(other), target


def anchors(page: Path) -> set[str]:
    """As GitHub and MyST make them of headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower().replace("`", "")).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_table_of_contents() -> None:
    docs = ROOT / "docs"
    trees = [block.text for block in blocks(docs / "index.md") if block.kind == "{toctree}"]
    listed = Counter(line for text in trees for line in text.splitlines() if line and not line.startswith(":"))
    pages = {str(page.relative_to(docs).with_suffix("")) for page in docs.rglob("*.md")} - {"index"}
    pages = {page for page in pages if not page.startswith("figures/")}  # parts of pages
    assert listed == dict.fromkeys(pages, 1)


def load(name: str) -> Any:
    """A module in docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_wire_format_is_that_of_the_tables() -> None:
    wire = load("wire")
    assert wire.PAGE.read_text() == wire.page(), "run: python docs/wire.py"


def test_the_link_types_are_those_of_the_code() -> None:
    link_types = load("link_types")
    assert link_types.PAGE.read_text() == link_types.page(), "run: python docs/link_types.py"
    assert link_types.table() in link_types.page()


def test_every_command_has_its_help_on_the_page() -> None:
    shown = re.findall(r"^```\{nfnet-help\} ?(.*)$", (ROOT / "docs" / "command.md").read_text(), flags=re.MULTILINE)
    assert sorted(shown) == ["", *sorted(commands_of(cli.build()))]


def test_public_names_are_in_the_reference() -> None:
    documented = set()
    for path in (ROOT / "docs" / "reference").glob("*.md"):
        module = ""
        for kind, name in re.findall(r"^\.\. (\w+):: (\S+)", path.read_text(), flags=re.MULTILINE):
            if kind == "currentmodule":
                module = name
            documented.add(name if name.startswith("nfnet.") else f"{module}.{name}")
    modules = {"inet", "rules", "stats"}
    assert {f"nfnet.{name}" for name in set(nfnet.__all__) - modules} <= documented
