"""Scripts written for NetfilterQueue and nflogr, as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import nfnet.compat
from nfnet.compat._run import environment

WAYS = {"module": ["-m", "nfnet.compat"], "command": ["-m", "nfnet", "run"]}

SCRIPT = """\
import sys
from netfilterqueue import NetfilterQueue, COPY_PACKET
import nflogr

def main():
    print(__name__, sys.argv[1:], __file__, NetfilterQueue.__module__, nflogr.__name__)
    if "raise" in sys.argv:
        raise ValueError("what went wrong")
    if "exit" in sys.argv:
        sys.exit(7)
    if "spawn" in sys.argv:
        import multiprocessing
        process = multiprocessing.get_context("spawn").Process(target=child)
        process.start()
        process.join()
        sys.exit(process.exitcode)

def child():
    import netfilterqueue
    sys.exit(9 if netfilterqueue.NetfilterQueue is NetfilterQueue else 1)

if __name__ == "__main__":
    main()
"""


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> list[str]:
    return [sys.executable, *WAYS[request.param]]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_script_sees_itself_as_main_with_its_arguments(way: list[str], script: Path) -> None:
    done = run([*way, script, "--flag", "two words"])
    assert done.stderr == ""
    assert done.stdout.split("\n")[0] == (
        f"__main__ ['--flag', 'two words'] {script} nfnet.compat.netfilterqueue nfnet.compat.nflogr"
    )
    assert done.returncode == 0


def test_exit_status_and_traceback_are_the_scripts(way: list[str], script: Path) -> None:
    assert run([*way, script, "exit"]).returncode == 7
    done = run([*way, script, "raise"])
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: what went wrong"
    assert all(str(script) in line for line in lines if line.startswith("  File")), "no frame is ours"


def test_child_processes_find_the_modules_too(way: list[str], script: Path) -> None:
    assert run([*way, script, "spawn"]).returncode == 9


def test_script_in_another_directory_finds_its_neighbours(way: list[str], script: Path, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("value = 5")
    script.write_text("import neighbour, netfilterqueue; print(neighbour.value)")
    assert run([*way, script], cwd="/").stdout == "5\n"


def test_interrupt_ends_the_script_as_python_does(way: list[str], script: Path) -> None:
    # Short waits: a signal that arrives between Python's last check and the system call does not end the sleep.
    script.write_text("import time, sys, nflogr; print('ready', flush=True)\nwhile True:\n    time.sleep(0.1)")
    with subprocess.Popen([*way, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert errors.splitlines()[-1] == "KeyboardInterrupt"


def test_modules_and_code_run_too(tmp_path: Path) -> None:
    compat = [sys.executable, *WAYS["module"]]
    assert run([*compat, "-c", "import nflogr; print(nflogr.PROTO_IP)"]).stdout == "2048\n"
    (tmp_path / "some_module.py").write_text("import netfilterqueue, sys; print(sys.argv[1:])")
    assert run([*compat, "-m", "some_module", "x"], cwd=tmp_path).stdout == "['x']\n"


@pytest.mark.parametrize("how", [["-m", "some_module"], ["some_module"]], ids=" ".join)
def test_the_command_runs_modules_with_options_of_their_own(tmp_path: Path, how: list[str]) -> None:
    (tmp_path / "some_module.py").write_text("import netfilterqueue, sys; print(netfilterqueue.__name__, sys.argv[1:])")
    done = run([sys.executable, "-m", "nfnet", "run", *how, "-m", "--help", "x"], cwd=tmp_path)
    assert done.stdout == "nfnet.compat.netfilterqueue ['-m', '--help', 'x']\n"


def test_the_command_runs_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it():\n    import nflogr\n    assert nflogr.PROTO_IP == 2048\n")
    done = run([sys.executable, "-m", "nfnet", "run", "pytest", "-q", "-p", "no:cacheprovider"], cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_help_of_the_command() -> None:
    done = run([sys.executable, "-m", "nfnet", "run", "--help"])
    assert (done.returncode, done.stdout.split("\n")[0]) == (
        0,
        "usage: nfnet run SCRIPT|-m MODULE|-c CODE [ARGUMENT ...]",
    )


def test_options_of_python_are_kept(script: Path) -> None:
    script.write_text("import sys; print(sys.flags.optimize, sys._xoptions)")
    done = run([sys.executable, "-O", "-X", "utf8", "-m", "nfnet.compat", script])
    assert done.stdout == "1 {'utf8': True}\n"
    script.write_text("import sys; print(sys.flags.dont_write_bytecode, sys.argv[1:])")
    for options in (["-Bm", "nfnet.compat"], ["-Bmnfnet.compat"], ["-B", "-mnfnet.compat"]):
        assert run([sys.executable, *options, script, "x"]).stdout == "1 ['x']\n"


def test_an_installed_package_is_left_alone_otherwise(tmp_path: Path, script: Path) -> None:
    """One that is found on PYTHONPATH is as good as installed."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "netfilterqueue.py").write_text("name = 'the other one'")
    script.write_text("import netfilterqueue; print(getattr(netfilterqueue, 'name', 'ours'))")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    assert run([sys.executable, script], env=env).stdout == "the other one\n"
    assert run([sys.executable, *WAYS["module"], script], env=env).stdout == "ours\n"
    code = "import nfnet.compat; nfnet.compat.install(); import netfilterqueue; print(netfilterqueue.__name__)"
    assert run([sys.executable, "-c", code], env=env).stdout == "nfnet.compat.netfilterqueue\n"


def test_without_a_script() -> None:
    done = run([sys.executable, "-m", "nfnet.compat"])
    assert done.returncode == 2
    assert "usage: python -m nfnet.compat SCRIPT" in done.stderr
    assert run([sys.executable, "-m", "nfnet.compat", "--help"]).stdout.startswith("usage:")
    done = run([sys.executable, "-m", "nfnet", "run"])
    assert done.returncode == 2
    assert "a script, -m MODULE or -c CODE is missing" in done.stderr


def test_script_that_is_not_there(way: list[str]) -> None:
    done = run([*way, "/nowhere/script.py"])
    assert done.returncode == 2
    name = "'/nowhere/script.py'" if sys.implementation.name == "cpython" else "/nowhere/script.py"
    assert f"can't open file {name}" in done.stderr


def test_python_that_ignores_the_environment(script: Path) -> None:
    done = run([sys.executable, "-E", "-m", "nfnet.compat", script])
    assert done.returncode == 2
    assert "leave the option out" in done.stderr


def test_environment_names_our_root_only_where_it_would_not_be_found() -> None:
    root = str(Path(nfnet.__file__).parents[1])
    drop_in = str(Path(nfnet.compat.__file__).parent / "drop_in")
    assert environment({}, ["", root])["PYTHONPATH"] == drop_in
    assert environment({"PYTHONPATH": ""}, ["", root])["PYTHONPATH"] == drop_in, "no empty item: that is where one is"
    assert environment({"PYTHONPATH": "/x"}, [])["PYTHONPATH"] == os.pathsep.join((drop_in, "/x", root))


# --- modules of the script that have the names of those that ours need

# Not those that are built into Python: there is no other of these.
OURS_NEED = {
    "construct",
    "pyroute2",
    "copy",
    "types",
    "select",
    "struct",
    "logging",
    "enum",
    "typing",
    "weakref",
}.difference(sys.builtin_module_names)


@pytest.mark.parametrize("first", [False, True], ids=["imported later", "imported before"])
@pytest.mark.parametrize("name", sorted(OURS_NEED))
def test_a_scripts_modules_may_have_any_name(way: list[str], tmp_path: Path, name: str, first: bool) -> None:
    """nfnet's modules import what they need, and the script its own modules, also if imported by name."""
    (tmp_path / f"{name}.py").write_text("owner = 'the script'")
    script = tmp_path / "script.py"
    imports = [f"import {name}", "from netfilterqueue import NetfilterQueue; import nflogr"]
    script.write_text(
        "\n".join(imports if first else imports[::-1])
        + f"\nprint({name}.owner, NetfilterQueue.__module__, nflogr.__name__)"
    )
    done = run([*way, script], cwd="/")
    assert (done.stdout, done.stderr) == ("the script nfnet.compat.netfilterqueue nfnet.compat.nflogr\n", "")


@pytest.mark.parametrize("name", ["construct", "pyroute2", "copy", "select", "struct", "logging", "typing"])
def test_the_current_directory_is_not_where_we_look_for_modules(way: list[str], tmp_path: Path, name: str) -> None:
    """As "python -m" has it. (Python itself finds "types" there, and others before 3.12.)"""
    (tmp_path / f"{name}.py").write_text("raise SystemExit('run by whoever wrote this file')")
    (tmp_path / "elsewhere").mkdir()
    script = tmp_path / "elsewhere" / "script.py"
    script.write_text("import netfilterqueue; print(netfilterqueue.__name__)")
    done = run([*way, script], cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("nfnet.compat.netfilterqueue\n", "")


def test_modules_of_the_standard_library_are_there_once(way: list[str], tmp_path: Path) -> None:
    """Modules of which the script's directory has none with the same name."""
    script = tmp_path / "script.py"
    script.write_text("import netfilterqueue, logging, nfnet.queue\nprint(nfnet.queue.logging is logging)")
    assert run([*way, script]).stdout == "True\n"


def test_a_failed_import_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "copy.py").write_text("owner = 'the script'")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "construct.py").write_text("raise ImportError('broken')")
    script = tmp_path / "script.py"
    script.write_text(
        "import copy, sys; path = list(sys.path)\n"
        "try: import netfilterqueue\n"
        "except ImportError as error: print(error, sys.path == path, sys.modules['copy'] is copy, copy.owner)"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    environ = environment(env, [])
    assert run([sys.executable, script], env=environ).stdout == "broken True True the script\n"


def test_a_safe_path_stays_safe(tmp_path: Path, script: Path) -> None:
    (tmp_path / "neighbour.py").write_text("")
    script.write_text("import netfilterqueue, neighbour")
    env = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = run([sys.executable, *WAYS["module"], script], env=env)
    if sys.version_info >= (3, 11):
        assert "No module named 'neighbour'" in done.stderr
