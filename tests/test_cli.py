"""The command ``nfnet`` does what its documentation says."""

from __future__ import annotations

import re
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
        (
            ["ok", "failure", "warning", "failure"],
            1,
            "2 failures. Do what the first one says, and run nfnet doctor again:\n\nfailure  1\n         -> do 1\n",
        ),
        (["warning", "failure"], 1, "1 failure. Do what it says, and run nfnet doctor again:\n\nfailure  1\n"),
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
    found = [doctor.Finding(level, str(number), f"do {number}") for number, level in enumerate(levels)]
    monkeypatch.setattr(doctor, "examine", lambda _: found)
    assert main(["doctor", "--netns", "blue"]) == status
    shown = capsys.readouterr().out.partition("\n\n")[2]
    assert shown.startswith(last)
    assert ("nfnet queue 1 --netns blue --install-rule" in shown) == (status == 0)
    assert "nfnet demo" in shown


def test_unknown_command() -> None:
    done = run("frobnicate")
    assert done.returncode == 2
    assert done.stderr.startswith("nfnet: no command is called 'frobnicate'; there is queue, block, ")


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


def test_the_demo_has_colours_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise nfnet.NotPermittedError("making a namespace of our own", 1)

    def demo(**environment: str) -> str:
        with monkeypatch.context() as patches:
            for name, value in {"TERM": "xterm", "NO_COLOR": "", **environment}.items():
                patches.setenv(name, value)
            assert main(["demo"]) == 0
        return capsys.readouterr().out

    monkeypatch.setattr("nfnet.netns.create", refuse)
    monkeypatch.setattr("nfnet.netns.become_root", refuse)
    plain = demo()
    assert "\x1b" not in plain
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    coloured = demo()
    for text in ("accept", "drop", "accept, rewritten", "mark 1, repeat", "\nWhat the rule at the other end logged:"):
        assert re.search(rf"\x1b\[[0-9]+m{text}\x1b\[0m", coloured)
    assert re.sub(r"\x1b\[[0-9]+m", "", coloured) == plain
    assert demo(NO_COLOR="1") == demo(TERM="dumb") == plain


def test_the_script_of_the_demo_is_in_the_documentation() -> None:
    blocks = (ROOT / "docs" / "packets.md").read_text().split("```python\n")
    assert blocks[1].split("```")[0] == demo_command.script()
    assert len([line for line in demo_command.script().splitlines() if line]) <= 15
