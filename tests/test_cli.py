"""The command ``nfnet`` does what its documentation says."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import doctor
from nfnet.cli import build, demo_command, main

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "nfnet", *arguments], capture_output=True, text=True, timeout=60)


def test_help_names_the_commands() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "demo" in done.stdout
    assert "exit status" in run("demo", "--help").stdout


def test_without_a_command_it_says_what_to_do_first() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    examples = [line.strip().removeprefix("sudo ") for line in done.stderr.splitlines() if line.startswith("    ")]
    commands = [shlex.split(line.partition("  ")[0])[1:] for line in examples if line.startswith("nfnet ")]
    assert [words[0] for words in commands] == ["demo", "doctor", "queue", "log"]
    for words in commands:
        build().parse_args(words)


@pytest.mark.parametrize(
    ("levels", "status", "last"),
    [
        (["ok", "failure", "warning", "failure"], 1, "2 failures. Do what stands behind the first"),
        (["ok", "warning"], 0, "nfnet works here; each warning names what it affects. Next:"),
        (["ok"], 0, "nfnet works here. Next:"),
    ],
)
def test_doctor_ends_with_what_to_do_next(
    levels: list[Any],
    status: int,
    last: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda _: [doctor.Finding(level, "this") for level in levels])
    assert main(["doctor"]) == status
    assert capsys.readouterr().out.split("\n\n")[1].startswith(last)


def test_unknown_command() -> None:
    done = run("frobnicate")
    assert done.returncode == 2
    assert "invalid choice: 'frobnicate'" in done.stderr


def test_demo_says_what_is_missing_and_replays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise nfnet.NotPermittedError("making a namespace of our own", 1)

    monkeypatch.setattr("nfnet.netns.create", refuse)
    monkeypatch.setattr("nfnet.netns.become_root", refuse)
    assert main(["demo"]) == 0
    captured = capsys.readouterr()
    assert "this machine refuses" in captured.err
    assert "making a namespace of our own: operation not permitted [EPERM]" in captured.err
    assert "This is a recording" in captured.out
    for words in ("accept, rewritten", "mark 1, repeat", "drop", "TCP", "ICMPv6", "log: arrived: UDP"):
        assert words in captured.out
    assert "the verdicts are those of the recording" in captured.out


def test_the_script_of_the_demo_is_in_the_documentation() -> None:
    blocks = (ROOT / "docs" / "packets.md").read_text().split("```python\n")
    assert blocks[1].split("```")[0] == demo_command.script()
    assert len([line for line in demo_command.script().splitlines() if line]) <= 15
