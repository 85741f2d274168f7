"""Hostile input: names with control characters, links in /tmp, captures that claim to be large or contain code."""

from __future__ import annotations

import ast
import contextlib
import errno
import io
import logging
import os
import shutil
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import cli, collect, doctor, metrics, rules, testing
from nfnet._io import private_files
from nfnet._printable import printable
from nfnet.captures import LinkType, Writer, read
from nfnet.captures import _reader as capture
from nfnet.cli import decode_command, packet_text
from nfnet.log import LogMessage
from nfnet.netns import Netns
from nfnet.protocol import nfqnl
from nfnet.protocol.netlink import PREFIX
from nfnet.stats import LogStatus, QueueStatus

from .conftest import FIXTURES
from .memory import traced
from .test_captures import block, interface, pcap, section

NASTY = "\x1b[2J\x9b31m\n\r\x07\u202e\u2066\udc9b\udcff\0"
NASTY_BYTES = NASTY.encode("utf-8", "surrogateescape")


def is_harmless(text: str) -> bool:
    return all(c == "\n" or c.isprintable() for c in text)


# --- terminals


@pytest.mark.parametrize(
    "character",
    [*sorted({c for c in NASTY if not c.isprintable()}), "\ud800", "\x7f", "\x85", "\u2028", "\u200b", "\U000e0001"],
)
def test_printable(character: str) -> None:
    text = printable(f"a{character}b")
    assert text.isprintable()
    assert text.startswith("a[")
    assert text.endswith("]b")
    text.encode()


def test_what_people_write_is_left_alone() -> None:
    assert printable("eth0: é 漢字 ok") == "eth0: é 漢字 ok"


def hostile_message() -> LogMessage:
    payload = testing.udp(NASTY_BYTES)
    raw = testing.log_message(payload, prefix=NASTY.rstrip("\0"), IFINDEX_INDEV=1, IFINDEX_OUTDEV=2)
    return LogMessage.from_bytes(raw, lambda index: NASTY)


def hostile_packet() -> nfnet.Packet:
    fed = testing.FedQueue()
    fed.kernel.interfaces = {1: NASTY, 2: NASTY}
    fed.feed(testing.tcp(NASTY_BYTES), indev=1, outdev=2, SECCTX=NASTY_BYTES)
    packets: list[nfnet.Packet] = []
    fed.run(packets.append)
    packets[0].indev_name  # noqa: B018 - while it is known
    return packets[0]


def test_lines() -> None:
    for item in (hostile_message(), hostile_packet()):
        for text in (packet_text.line(item, recorded=True), packet_text.ecs(item), repr(item)):
            assert text.isprintable()
            text.encode()


def test_reprs_of_the_other_packages_apis() -> None:
    from nfnet.compat import _nflogdata as nflogdata

    message = hostile_message()
    assert repr(nflogdata.wrap(message)).isprintable()
    for length in range(20, len(message.raw)):
        cut = LogMessage.from_bytes(message.raw[:length])
        assert repr(nflogdata.wrap(cut)).startswith("<NflogData ")


def test_decode_of_all_that_has_text() -> None:
    values: dict[str, Any] = {"SECCTX": NASTY_BYTES, "CT": {5: {1: NASTY_BYTES}, 19: {1: NASTY_BYTES}}, "EXP": []}
    for datagram in (
        testing.packet_message(1, testing.udp(NASTY_BYTES), **values),
        testing.log_message(testing.udp(NASTY_BYTES), prefix=NASTY),
        testing.packet_message(1, EXP=[{"type": 1, "data": NASTY_BYTES}, {"type": 2, "data": b""}]),
    ):
        for line in decode_command.describe(datagram):
            assert line.isprintable(), line


def answer_that_says(text: bytes) -> bytes:
    request = nfqnl.verdict(1, 1, 1)
    message = struct.pack(PREFIX + "HH", 4 + len(text), 1) + text + bytes(-len(text) % 4)
    body = struct.pack(PREFIX + "i", -34) + request[:16] + message
    return struct.pack(PREFIX + "IHHII", 16 + len(body), 2, 0x300, 0, 0) + body


def test_errors_that_a_recording_puts_into_the_kernels_mouth() -> None:
    fed = testing.FedQueue()
    fed.kernel.deliver(answer_that_says(NASTY_BYTES))
    with pytest.raises(nfnet.KernelError, match="the kernel says") as caught:
        fed.run(print)
    assert str(caught.value).isprintable()
    text = "\n".join(decode_command.describe(answer_that_says(NASTY_BYTES)))
    assert "the kernel says" in text
    assert is_harmless(text)


def test_interfaces_in_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.if_nameindex", lambda: [(1, NASTY)])
    with pytest.raises(nfnet.ArgumentError, match="there is no interface") as caught:
        rules.queue(1, hook="input", in_interface="no-such")._connect()
    assert str(caught.value).isprintable()


@pytest.fixture
def hostile_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A process with an unpleasant name: the kernel keeps 15 bytes."""
    name = b"\x1b[2J\x9b\n\xe2\x80\xae\xff" + b"x"
    code = f"import sys; open('/proc/self/comm', 'wb', 0).write({name!r}); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        assert Path(f"/proc/{process.pid}/comm").read_bytes().rstrip(b"\n") == name
        yield process.pid
        process.stdin.close()


def screen(*arguments: str) -> tuple[int, str]:
    """Return a command's output to either."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            status = cli.main(arguments)
        except SystemExit as end:
            status = int(end.code or 0)
    return status, text.getvalue()


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_stats_and_doctor(hostile_process: int, monkeypatch: pytest.MonkeyPatch, more: list[str]) -> None:
    def queues(_: Netns | None) -> list[QueueStatus]:
        return [QueueStatus(1, hostile_process, 0, nfnet.CopyMode.PACKET, 65535, 5, 0, 9)]

    def logs(_: Netns | None) -> list[LogStatus]:
        return [LogStatus(1, hostile_process, 0, nfnet.CopyMode.PACKET, 65535, 1.0)]

    monkeypatch.setattr("nfnet.stats.queues", queues)
    monkeypatch.setattr("nfnet.stats.logs", logs)
    status, text = screen("stats", *more)
    assert (status, is_harmless(text)) == (0, True)
    assert str(hostile_process) in text

    monkeypatch.setattr(doctor, "_fed_queues", dict)
    monkeypatch.setattr(doctor, "examine", doctor._queues)
    status, text = screen("doctor", *more)
    assert is_harmless(text)
    assert str(hostile_process) in text


def test_names_of_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    row = rules.InstalledRule("inet", f"nfnet-1-{NASTY}", 1, False)
    monkeypatch.setattr("nfnet.rules.installed", lambda _: [row])
    assert is_harmless(screen("rules", "list")[1])


@pytest.mark.parametrize("command", ["replay", "decode", "record", "queue", "log"])
def test_names_of_files_and_namespaces(command: str, tmp_path: Path) -> None:
    name = tmp_path / NASTY.replace("\0", "")
    arguments = {
        "record": [str(name / "none"), "--queue", "1"],
        "queue": ["1", "--netns", str(name)],
        "log": ["1", "-w", str(name / "none")],
    }
    status, text = screen(command, *arguments.get(command, [str(name)]))
    assert status == 1
    assert text.count("\n") == 1
    assert is_harmless(text)
    status, text = screen(command, "1", NASTY, f"--{NASTY}")
    assert status == 2
    assert is_harmless(text)


def test_a_terminal_that_cannot_show_it(tmp_path: Path) -> None:
    file = tmp_path / "log.pcap"
    with contextlib.closing(Writer(file, LinkType.NFLOG)) as writer:
        writer.write(0, testing.log_message(testing.udp(), prefix="é")[16:])
    command = [sys.executable, "-m", "nfnet", "replay", str(file)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\xe9:" in done.stdout


def test_names_that_are_no_text_in_a_database(tmp_path: Path) -> None:
    output = collect.Sqlite(str(tmp_path / "log.db"))
    output.begin()
    output.write(collect.Batch(collect.Session("host", "boot", 5, 1), [hostile_message()]))
    output.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "log.db")) as database:
        assert database.execute("SELECT indev FROM messages").fetchone()[0].startswith("\x1b[2J")


def test_metrics_have_labels_of_ours_alone() -> None:
    pytest.importorskip("prometheus_client")
    packet = hostile_packet()
    queue = testing.FedQueue()
    found = metrics.Collector(queue.queue).collect()
    labels = {value for family in found for sample in family.samples for value in sample.labels.values()}
    assert labels <= {"1", *metrics._QUEUE, "queue full", "receive buffer full"}
    assert packet.indev_name == NASTY


def test_warnings_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    fed = testing.FedQueue(on_error="accept")
    with caplog.at_level(logging.DEBUG, "nfnet"):
        fed.feed(testing.udp(NASTY_BYTES), SECCTX=NASTY_BYTES)
        fed.kernel.skip(3)
        fed.feed()
        fed.run(nfnet.Packet.accept)
    assert caplog.messages
    assert all(message.isprintable() for message in caplog.messages)


# --- files


def make(path: Path) -> None:
    Writer(path, LinkType.RAW).close()


@pytest.fixture
def everybodys(tmp_path: Path) -> Path:
    """A directory like /tmp."""
    directory = tmp_path / "everybodys"
    directory.mkdir()
    directory.chmod(0o1777)
    return directory


def test_captures_are_for_their_owner_even_over_an_older_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make(tmp_path / "new.pcap")
        old = tmp_path / "old.pcap"
        old.write_bytes(b"x" * 1000)
        old.chmod(0o666)
        make(old)
    finally:
        os.umask(before)
    for path in (tmp_path / "new.pcap", old):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_size == 24


def test_links_of_ours_are_followed(everybodys: Path, tmp_path: Path) -> None:
    (everybodys / "link.pcap").symlink_to(tmp_path / "target.pcap")
    make(everybodys / "link.pcap")
    assert (tmp_path / "target.pcap").stat().st_size == 24
    make(Path("/dev/null"))


def test_links_of_ours_that_others_may_have_renamed_are_refused(everybodys: Path, tmp_path: Path) -> None:
    (everybodys / "link.pcap").symlink_to(tmp_path / "target.pcap")
    everybodys.chmod(0o777)  # without the sticky bit
    with pytest.raises(PermissionError, match="is a link, and others may have given it this name"):
        make(everybodys / "link.pcap")
    assert not (tmp_path / "target.pcap").exists()


def test_files_of_ours_under_another_name_are_refused(everybodys: Path, tmp_path: Path) -> None:
    """Other users can make one if fs.protected_hardlinks is 0."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    os.link(precious, everybodys / "x.pcap")
    with pytest.raises(PermissionError, match="one of several names of a file"):
        make(everybodys / "x.pcap")
    assert precious.read_bytes() == b"precious"


OTHER = 12345
# Determined now: later the process can be root of a user namespace without other users.
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else, too")


def by_another_user(work: Callable[[], object]) -> None:
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(OTHER)
            os.setuid(OTHER)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


# Mode, owner and group of directories that other users can write to.
PLACES = {
    "everybody's": (0o777, 0, 0),
    "like /tmp": (0o1777, 0, 0),
    "a group's": (0o775, 0, OTHER),
    "somebody else's": (0o755, OTHER, OTHER),
}


@pytest.fixture
def trap() -> Iterator[Path]:
    """A place that another user can reach, as they cannot reach ``tmp_path``."""
    place = Path(tempfile.mkdtemp(prefix="nfnet-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@as_root
@pytest.mark.parametrize("place", PLACES)
def test_what_others_put_there_is_refused(trap: Path, place: str) -> None:
    precious = trap / "precious"
    precious.write_bytes(b"precious")
    mode, owner, group = PLACES[place]
    here = trap / "here"
    here.mkdir()
    os.chown(here, owner, group)
    here.chmod(mode)

    def plant() -> None:
        (here / "link.pcap").symlink_to(precious)
        (here / "dangling.pcap").symlink_to(trap / "nologin")
        (here / "directory").symlink_to(trap)
        (here / "file.pcap").write_bytes(b"theirs")
        (here / "their").mkdir()
        os.mkfifo(here / "fifo.pcap")

    by_another_user(plant)
    kinds = {"link.pcap": "link", "dangling.pcap": "link", "directory/new.pcap": "link", "directory/precious": "link"}
    for name, kind in (kinds | {"file.pcap": "file", "fifo.pcap": "FIFO"}).items():
        with pytest.raises(PermissionError, match=f"another user's {kind}, in a directory that others") as caught:
            make(here / name)
        assert caught.value.filename == str(here / name)
    assert precious.read_bytes() == b"precious"
    assert (here / "file.pcap").read_bytes() == b"theirs"
    assert sorted(path.name for path in trap.iterdir()) == ["here", "precious"]
    for name in ("new.pcap", "their/new.pcap"):  # which no other user can have prepared
        make(here / name)
        status = (here / name).stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode), status.st_size) == (0, 0o600, 24)
        make(here / name)
    for step in ("with nfnet.record(name): pass", "nfnet.Queue(1, record=name).open()", "nfnet.Recorder(name)"):
        with pytest.raises(PermissionError, match="another user's"):
            exec(step, {"nfnet": nfnet, "name": here / "fifo.pcap"})
    for command in (["log", "1", "-w"], ["queue", "1", "-w"], ["record", "--queue", "1"]):
        status, text = screen(*command, str(here / "fifo.pcap"), "--netns", "/nowhere")  # type: ignore[assignment]
        assert status == 1
        assert "another user's FIFO" in text


@as_root
def test_what_root_lets_others_have_is_followed(trap: Path) -> None:
    """Where they can have done nothing themselves."""
    (trap / "target.pcap").write_bytes(b"x")
    (trap / "link.pcap").symlink_to("target.pcap")
    os.lchown(trap / "link.pcap", OTHER, OTHER)
    os.chown(trap / "target.pcap", OTHER, OTHER)
    make(trap / "link.pcap")
    assert (trap / "target.pcap").stat().st_size == 24


@as_root
@pytest.mark.parametrize("what", ["link", "file"])
def test_what_is_there_only_when_it_is_opened_is_refused_too(
    trap: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    precious = trap / "precious"
    precious.write_bytes(b"precious")
    trap.chmod(0o777)
    target = trap / "x.pcap"
    target.write_bytes(b"ours")
    real = os.open

    def swap() -> None:
        target.unlink()
        if what == "link":
            target.symlink_to(precious)
        else:
            target.write_bytes(b"theirs")

    def late(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if path == "x.pcap" and flags & os.O_WRONLY:
            by_another_user(swap)
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr("os.open", late)
    with pytest.raises(OSError, match="Too many levels" if what == "link" else "another user's file"):
        make(target)
    assert precious.read_bytes() == b"precious"


def test_paths_are_what_they_are_to_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here/../here")
    (tmp_path / "absolute").symlink_to(tmp_path / "link" / "b.pcap")
    (tmp_path / "round").symlink_to("round")
    for path in ("a.pcap", "./link//a.pcap", "link/../c.pcap", "absolute", os.fsencode(tmp_path / "d.pcap")):
        os.close(private_files.create(path))  # type: ignore[arg-type]
    made = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.pcap")]
    assert sorted(made) == ["a.pcap", "c.pcap", "d.pcap", "here/a.pcap", "here/b.pcap"]
    wrong = {"": errno.ENOENT, ".": errno.EISDIR, "/": errno.EISDIR, "here": errno.EISDIR, "new/": errno.EISDIR}
    wrong |= {"a.pcap/": errno.EISDIR, "a.pcap/x": errno.ENOTDIR, "no/x": errno.ENOENT, "round": errno.ELOOP}
    for path, number in wrong.items():
        with pytest.raises(OSError, match=".") as caught:
            private_files.create(path)
        assert (caught.value.errno, caught.value.filename) == (number, path)
        with pytest.raises(OSError, match=".") as expected:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
        assert expected.value.errno == number


def test_descriptors_by_name_are_written_to(tmp_path: Path) -> None:
    for name in ("/dev/stdout", "/proc/self/fd/1", "/dev/fd/1"):
        code = f"from nfnet.captures import *; Writer({name!r}, LinkType.RAW).close()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
        assert len(done.stdout) == 24 or done.stdout.startswith(b"\n\r\r\n")
    before = len(os.listdir("/proc/self/fd"))
    os.close(private_files.create("/dev/null"))
    assert len(os.listdir("/proc/self/fd")) <= before  # objects left by other tests can be closed meanwhile


@as_root
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("planted", ["", "-journal", "-wal", "-shm", None])
def test_a_database_beside_which_others_may_put_files_is_refused(trap: Path, place: str, planted: str | None) -> None:
    mode, owner, group = PLACES[place]
    here = trap / "here"
    here.mkdir()
    os.chown(here, owner, group)
    here.chmod(mode)
    if planted is not None:
        by_another_user((here / f"log.db{planted}").touch)
    status, text = screen("log", "1", "--sqlite", str(here / "log.db"), "--netns", "/nowhere")
    assert status == 1
    assert "others may write to the directory" in text
    assert sorted(os.listdir(here)) == ([] if planted is None else [f"log.db{planted}"])
    (here / "ours").mkdir()
    (here / "ours").chmod(0o755)
    if place == "like /tmp":  # there they cannot put another directory in its place
        assert private_files.create_database(here / "ours" / "log.db") == str(here / "ours" / "log.db")
    else:
        with pytest.raises(PermissionError, match="may replace the directory in"):
            private_files.create_database(here / "ours" / "log.db")


def test_where_a_database_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "link.db").symlink_to("here/log.db")
    monkeypatch.chdir(tmp_path)
    real = os.path.realpath(tmp_path)
    assert private_files.create_database("link.db") == f"{real}/here/log.db"
    assert private_files.create_database(":memory:") == f"{real}/:memory:"
    if os.geteuid() == os.getegid():  # a group of the user's own, to which new files belong
        (tmp_path / "here").chmod(0o775)
        private_files.create_database("here/log.db")


def test_a_database_keeps_what_is_in_it(tmp_path: Path) -> None:
    file = tmp_path / "log.db"
    file.write_bytes(b"x")
    private_files.create_database(file)
    assert file.read_bytes() == b"x"
    private_files.create_database(tmp_path / "new.db")
    assert stat.S_IMODE((tmp_path / "new.db").stat().st_mode) == 0o600


# --- captures are data

ROOT = Path(nfnet.__file__).parent
CODE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml", "jsonpickle", "code", "runpy", "imp"}
CALLS = {"eval", "exec", "compile", "__import__"}
# A handler that the user names, our own modules that are imported late, and a table of those that decompress.
IMPORTERS = {"__init__.py", "captures/_compression.py", "cli/handlers.py", "compat/__init__.py", "protocol/__init__.py"}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_data_become_code(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        assert not CODE & {name.split(".")[0] for name in names}
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if ast.unparse(node.func) in ("re.compile", "json.loads", "tomllib.loads"):
                continue
            assert called not in CALLS, f"line {node.lineno}"
            assert (
                called not in ("import_module", "loads", "system", "popen") or str(path.relative_to(ROOT)) in IMPORTERS
            )


# --- captures are small in memory, and quick


def peak(data: bytes) -> int:
    with traced() as memory:
        with contextlib.suppress(nfnet.CaptureError):
            for _ in read(io.BytesIO(data)):
                pass
        return memory()[1]


def lies() -> dict[str, bytes]:
    head = section("<") + interface("<", 101)
    huge = [0xFFFFFFF0, 0x7FFFFFFC, 1 << 30]
    found = {f"block of {n}": head + struct.pack("<II", 6, n) + bytes(100) for n in huge}
    found |= {f"section of {n}": struct.pack("<III", 0x0A0D0D0A, n, 0x1A2B3C4D) + bytes(100) for n in huge}
    found |= {f"packet of {n}": head + block("<", 6, struct.pack("<IIIII", 0, 0, 0, n, n)) for n in huge}
    found |= {f"record of {n}": pcap()[:24] + struct.pack("<IIII", 0, 0, n, n) for n in huge}
    found["largest block there may be"] = head + struct.pack("<II", 6, capture.MAX_RECORD + 4096) + bytes(100)
    found["interfaces"] = section("<") + interface("<", 101) * (capture.MAX_INTERFACES + 1)
    found["names"] = head + block("<", 4, bytes(60_000)) * 200
    return found


@pytest.mark.parametrize("name", lies())
def test_lengths_that_lie_take_no_memory(name: str) -> None:
    assert peak(lies()[name]) < 20_000_000


def test_interfaces_are_bounded() -> None:
    with pytest.raises(nfnet.CaptureError, match="interfaces"):
        list(read(io.BytesIO(lies()["interfaces"])))


def test_many_options_take_time_in_proportion() -> None:
    options = struct.pack("<HH", 0x7000, 0) * 260_000
    data = section("<") + interface("<", 101) + block("<", 6, struct.pack("<IIIII", 0, 0, 0, 0, 0) + options)
    start = time.process_time()
    assert len(list(read(io.BytesIO(data)))) == 1
    assert time.process_time() - start < 30  # it was minutes


def test_batches_of_a_recording_look_at_what_they_cover() -> None:
    """Not at everything that waits, for each verdict: on everything up to an id that is older than all of it."""

    class Counted(dict[int, None]):
        looked_at = 0

        def __iter__(self) -> Iterator[int]:
            for number in super().__iter__():
                self.looked_at += 1
                yield number

    replay = nfnet.replay(FIXTURES / "queue-late.pcapng")
    waiting, decided = Counted.fromkeys(range(10, 1010)), {}  # type: ignore[var-annotated]
    replay._note_verdicts(nfqnl.verdict(1, 5, 1, batch=True) * 100, decided, waiting)
    assert (decided, waiting.looked_at) == ({}, 100)
    replay._note_verdicts(nfqnl.verdict(1, 12, 1, batch=True), decided, waiting)
    assert (list(decided), waiting.looked_at) == ([10, 11, 12], 104)
    replay.close()


def test_decode_of_endless_files() -> None:
    status, text = screen("decode", "/dev/zero")
    assert status == 1
    assert "too long" in text


def test_times_far_apart_in_real_time(tmp_path: Path) -> None:
    """No thread for each look at the clock, and none that fails."""
    data = section("<") + interface("<", 101, (9, b"\0"))
    for high in (0, 0xFFFFFFFF):
        data += block("<", 6, struct.pack("<IIIII", 0, high, 0, 28, 28) + testing.udp())
    (tmp_path / "x.pcapng").write_bytes(data)
    replay = nfnet.replay(tmp_path / "x.pcapng", realtime=True)
    with nfnet.Queue(1, transport=replay) as queue:
        before = threading.active_count()
        assert sum(queue.process(nfnet.Packet.accept) for _ in range(50)) == 1
        deadline = time.monotonic() + 60
        while threading.active_count() > before + 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
