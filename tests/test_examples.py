"""Units and Dockerfiles of the examples. The programs run in live/test_examples.py."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .test_docs import ROOT, blocks

UNIT = ROOT / "examples" / "systemd" / "nfnet-guard.service"
COLLECTOR = UNIT.with_name("nfnet-collect.service")
DOCKERFILE = ROOT / "examples" / "docker" / "Dockerfile"


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return parser


def exec_start() -> list[str]:
    """Return the command that systemd starts: an interpreter, the script, its arguments."""
    return unit()["Service"]["ExecStart"].split()


def entrypoint() -> list[str]:
    """Return the command that a container starts."""
    found = dict(re.findall(r"^(ENTRYPOINT|CMD) (.*)$", DOCKERFILE.read_text(), flags=re.MULTILINE))
    return [*json.loads(found["ENTRYPOINT"]), *json.loads(found["CMD"])]


def copied() -> dict[str, Path]:
    """Return the files of the image, and their sources."""
    found = {}
    for line in re.findall(r"^COPY (.*)$", DOCKERFILE.read_text(), flags=re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            found[target + Path(source).name if target.endswith("/") else target] = ROOT / source
    return found


def directives(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """It knows all names in the unit: systemd ignores unknown ones with a warning."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(exec_start()[0], sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_service_is_there_before_the_network_and_never_given_up() -> None:
    settings = unit()
    for name in ("Wants", "Before"):
        assert settings["Unit"][name] == "network-pre.target"
    assert "After" not in settings["Unit"]
    assert settings["Service"]["Restart"] == "always"
    assert settings["Unit"]["StartLimitIntervalSec"] == "0"


def test_pages_show_what_the_files_say() -> None:
    shown_units = [block.text for block in blocks(ROOT / "docs" / "running.md") if block.kind == "ini"]
    for shown, unit in zip(shown_units, (UNIT, COLLECTOR), strict=True):
        lines = iter(directives(unit.read_text()))
        assert [line for line in directives(shown) if line not in lines] == [], "of the unit, in its order"
    (shown,) = [block.text for block in blocks(ROOT / "docs" / "containers.md") if block.kind == "dockerfile"]
    assert directives(shown) == directives(DOCKERFILE.read_text())


SHOWN = {
    "ask_once": "ask-once",
    "block_server_name": "server-names",
    "sinkhole": "sinkhole",
    "unit_networks": "units",
    "ban": "brute-force",
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_page_shows_the_whole_example(name: str) -> None:
    """So tests of the file, including live tests, also hold for the page, and vice versa."""
    first = next(block for block in blocks(ROOT / "docs" / f"{SHOWN[name]}.md") if block.kind == "python")
    assert first.text + "\n" == (ROOT / "examples" / f"{name}.py").read_text()


def test_both_start_the_same_program() -> None:
    interpreter, script, *arguments = entrypoint()
    assert interpreter == "python"
    assert copied()[script] == ROOT / "examples" / "systemd" / "guard.py"
    assert Path(exec_start()[1]).name == "guard.py"
    assert exec_start()[2:] == arguments
