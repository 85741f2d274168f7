"""macOS and Windows, simulated by ``tests/other_systems.py``, which lists what is not simulated.

These tests have not run on a Mac or on Windows. ``tests/desk_script.py`` uses all that docs/laptop.md promises there.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nfnet
from nfnet._io import private_files, system
from nfnet._io.system import Event, Select

from . import other_systems
from .other_systems import SYSTEMS, lacking, missing_module

ROOT = Path(__file__).parent.parent
RECORDING = Path(nfnet.__file__).parent / "cli" / "demo.pcapng"

# The tests of these files, except those of pipes, which are read differently, of forks, and of /proc.
UNIT_TESTS = ["test_testing.py", "test_packet.py", "test_inet.py", "test_log.py", "test_replay.py", "test_system.py"]
NOT_THERE = "not pipe and not fifo and not byte_by_byte and not fork and not signal"

pytest.importorskip("mypy", reason="the stubs that come with it say what other systems lack")


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_works_on_a_laptop(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.other_systems", name, "tests/desk_script.py"]
    done = subprocess.run([*command, str(RECORDING), str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "what_takes_linux"


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_unit_tests_pass_there(name: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "tests.other_systems", "-q", "-p", "no:cacheprovider"]
    files = [f"tests/{file}" for file in UNIT_TESTS]
    done = subprocess.run(
        [*command, *files, "-k", NOT_THERE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NFNET_SYSTEM": name},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert " passed" in done.stdout


def test_the_simulation_knows_what_they_lack() -> None:
    """Compare with the availability of some names in Python's documentation."""
    both = {"os": {"eventfd", "O_PATH", "memfd_create"}, "select": {"epoll"}, "socket": {"AF_NETLINK", "SO_MARK"}}
    for module, names in both.items():
        for name in SYSTEMS:
            assert names <= lacking(module, name)
    windows = {
        "os": {"fork", "uname", "geteuid", "register_at_fork", "O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY"},
        "signal": {"pthread_sigmask", "SIGHUP"},
        "socket": {"AF_UNIX", "MSG_DONTWAIT"},
        "select": {"poll"},
        "time": {"CLOCK_MONOTONIC", "clock_gettime"},
    }
    if sys.version_info < (3, 13):  # Windows has it since
        windows["os"].add("fchmod")
    for module, names in windows.items():
        assert names <= lacking(module, "win32")
        assert not names & lacking(module, "darwin")
    for module in ("fcntl", "pwd", "grp", "termios", "resource", "pty"):
        assert missing_module(module, "win32")
        assert not missing_module(module, "darwin")
    for module in ("os", "socket", "asyncio", "select", "ctypes", "struct"):
        assert not any(missing_module(module, name) for name in SYSTEMS)


def test_one_place_knows_what_the_system_has() -> None:
    """No other module tests which system this is, or imports modules that Windows lacks; `os.name` is not simulated."""
    for path in (ROOT / "nfnet").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) != "os.name", path
                assert ast.unparse(node) != "sys.platform" or path.name == "system.py", path
            elif isinstance(node, ast.Import) and path.name != "system.py":
                for alias in node.names:
                    assert not missing_module(alias.name, "win32"), (path, alias.name)


def test_the_error_in_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    error = str(system.linux_only("queueing packets to queue 1")).replace("[ENOTSUP]", "[EOPNOTSUPP]")
    page = " ".join((ROOT / "docs" / "laptop.md").read_text().split())
    assert f"nfnet.errors.NotSupportedError: {error} ```" in page


# --- what stands in for epoll


@pytest.fixture
def no_epoll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "LINUX", False)


def readable(select: Select) -> bool:
    import select as standard_select

    return bool(standard_select.select([select], [], [], 0)[0])


def test_a_descriptor_of_several_events(no_epoll: None) -> None:
    select, one, other = Select(), Event(), Event()
    one.set()
    select.register(one)
    select.register(other.fileno())
    assert readable(select)
    assert select.poll(0) == [(one.fileno(), 0)]
    other.set()
    one.clear()
    assert readable(select)
    other.clear()
    assert not readable(select)
    assert select.poll(0) == []
    with pytest.raises(FileExistsError):
        select.register(one)
    select.unregister(one.fileno())
    with pytest.raises(FileNotFoundError):
        select.unregister(one.fileno())
    one.set()
    assert not readable(select)


def test_what_watches_may_be_watched(no_epoll: None) -> None:
    above, below, event = Select(), Select(), Event()
    above.register(below.fileno())
    below.register(event)
    event.set()
    assert readable(above)
    event.close()
    assert not readable(below)
    assert not readable(above)


def test_a_descriptor_that_is_no_event_cannot_be_watched(no_epoll: None) -> None:
    with open(os.devnull) as file, pytest.raises(nfnet.NotSupportedError, match="Linux only"):
        Select().register(file.fileno())


# --- files, where no path can be followed without opening what it names


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_files, "LINUX", False)


def test_a_new_file_is_for_its_owner_alone(elsewhere: None, tmp_path: Path) -> None:
    path = tmp_path / "new"
    for _ in range(2):
        os.close(private_files.create(path))
        assert path.stat().st_mode & 0o777 == 0o600


def test_links_and_other_things_are_not_written_to(elsewhere: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nothing")
    os.mkfifo(tmp_path / "fifo")
    for name, why in (("link", "is a link"), ("dangling", "is a link"), ("fifo", "is a FIFO")):
        with pytest.raises(PermissionError, match=why) as caught:
            private_files.create(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
    (tmp_path / "second").hardlink_to(tmp_path / "file")
    with pytest.raises(PermissionError, match="one of several names"):
        private_files.create(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


def test_a_file_that_is_replaced_meanwhile_is_refused(
    elsewhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_text("")
    other.write_text("secret")
    really_look = os.lstat

    def look(name: str | Path) -> os.stat_result:
        found = really_look(name)
        other.rename(path)
        return found

    monkeypatch.setattr(os, "lstat", look)
    with pytest.raises(PermissionError, match="replaced"):
        private_files.create(path)


def test_an_event_loop_that_watches_no_descriptors_says_so() -> None:
    """As Windows' own."""
    import asyncio

    class Proactor(asyncio.SelectorEventLoop):
        def add_reader(self, *arguments: object) -> None:  # type: ignore[override]
            raise NotImplementedError

    async def main() -> None:
        async with nfnet.AsyncQueue(1, transport=nfnet.replay(RECORDING)) as queue:
            with pytest.raises(nfnet.NotSupportedError, match="SelectorEventLoop"):
                await queue.run(lambda packet: packet.accept())

    loop = Proactor()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_the_simulation_is_of_another_system() -> None:
    """It refuses to start after nfnet was imported."""
    with pytest.raises(AssertionError, match="nfnet was imported already"):
        other_systems.pretend("darwin")
