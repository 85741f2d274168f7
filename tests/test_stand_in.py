"""Distributions and stand-ins with the names of NetfilterQueue and nflogr, in environments that the tests make."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet.compat import _stand_in
from nfnet.compat._stand_in import STAND_INS, StandIn
from nfnet.errors import ArgumentError, NfnetError

ROOT = Path(nfnet.__file__).parents[1]
DISTRIBUTIONS = Path(__file__).parents[1] / "distributions"

each = pytest.mark.parametrize("stand_in", STAND_INS.values(), ids=STAND_INS)


def contents(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def install_other(stand_in: StandIn, place: Path) -> None:
    """As pip would install the package itself."""
    info = place / f"{stand_in.distribution}-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {stand_in.distribution}\nVersion: 9.9\n")
    (info / "INSTALLER").write_text("pip\n")
    (place / f"{stand_in.module}.py").write_text("")


@each
def test_install_and_remove_without_a_trace(stand_in: StandIn, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("")
    before = contents(tmp_path)
    for _ in range(2):  # the second time it is renewed
        _stand_in.install([stand_in], tmp_path)
    assert _stand_in.remove(STAND_INS.values(), tmp_path) == [stand_in]
    assert contents(tmp_path) == before
    assert list(tmp_path.iterdir()) == [tmp_path / "other.py"]
    assert _stand_in.remove(STAND_INS.values(), tmp_path) == []


@each
def test_refused_where_the_package_itself_is_installed(stand_in: StandIn, tmp_path: Path) -> None:
    install_other(stand_in, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(NfnetError, match=rf"{stand_in.distribution} 9.9 is installed .*pip uninstall"):
        _stand_in.install(STAND_INS.values(), tmp_path)
    assert _stand_in.remove(STAND_INS.values(), tmp_path) == []
    assert contents(tmp_path) == before


def test_refused_where_the_package_is_installed_elsewhere_in_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user").mkdir()
    (tmp_path / "site").mkdir()
    install_other(STAND_INS["nflogr"], tmp_path / "user")
    monkeypatch.syspath_prepend(tmp_path / "user")
    with pytest.raises(NfnetError, match="is installed in .*user"):
        _stand_in.install([STAND_INS["nflogr"]], tmp_path / "site")
    assert not contents(tmp_path / "site")


def test_refused_where_there_is_a_module_of_nobody(tmp_path: Path) -> None:
    (tmp_path / "nflogr.py").write_text("mine = True")
    with pytest.raises(NfnetError, match=r"a module nflogr is there already: .*nflogr\.py"):
        _stand_in.install([STAND_INS["nflogr"]], tmp_path)
    assert list(contents(tmp_path)) == ["nflogr.py"]


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_text

    def write_text(path: Path, *arguments: Any, **named: Any) -> int:
        if path.name == "RECORD":
            raise OSError(28, "No space left on device")
        return real(path, *arguments, **named)

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(OSError, match="No space"):
        _stand_in.install([STAND_INS["nflogr"]], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names() -> None:
    assert _stand_in.chosen([]) == list(STAND_INS.values())
    assert _stand_in.chosen(["NetfilterQueue"]) == [STAND_INS["netfilterqueue"]]
    with pytest.raises(ArgumentError, match="no stand-in for 'scapy', only for netfilterqueue and nflogr"):
        _stand_in.chosen(["scapy"])


def test_refused_in_a_python_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    paths = {"stdlib": str(tmp_path), "purelib": str(tmp_path)}
    monkeypatch.setattr(sysconfig, "get_path", paths.__getitem__)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    with pytest.raises(NfnetError, match="use a virtual environment"):
        _stand_in.place()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert _stand_in.place() == tmp_path


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that has nfnet and its dependencies, by a .pth file."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, symlinks=True)
    packages = next(place.glob("lib/*/site-packages"))
    paths = [str(ROOT), *(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))]
    (packages / "nfnet-of-the-tests.pth").write_text("\n".join(paths))
    return place


def run(environment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [environment / "bin" / "python", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=environment, env=variables)


SCRIPT = """
import multiprocessing, sys
from importlib.metadata import files, version
import netfilterqueue, nflogr
from netfilterqueue import NetfilterQueue

def child():
    sys.exit(9 if netfilterqueue.NetfilterQueue is NetfilterQueue else 1)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
    print(process.exitcode, NetfilterQueue.__module__, netfilterqueue.__version__, nflogr.PROTO_IP)
    print(version("NetfilterQueue"), version("nflogr"), all(item.locate().exists() for item in files("nflogr")))
"""


def test_programs_find_it_as_if_it_were_installed(environment: Path) -> None:
    (environment / "script.py").write_text(SCRIPT)
    done = run(environment, "-m", "nfnet", "stand-in", "install")
    assert (done.returncode, done.stdout) == (0, "")
    assert "installed a stand-in for NetfilterQueue 1.1.0 in " in done.stderr
    done = run(environment, "script.py")
    assert (done.stdout, done.stderr) == (
        "9 nfnet.compat.netfilterqueue 1.1.0 2048\n1.1.0 0.2.12 True\n",
        "",
    )
    done = run(environment, "-m", "nfnet", "stand-in", "remove")
    assert (done.returncode, done.stderr.count("removed the stand-in")) == (0, 2)
    assert run(environment, "-m", "nfnet", "stand-in", "remove").returncode == 1
    assert "No module named 'netfilterqueue'" in run(environment, "script.py").stderr


@each
def test_distributions_have_the_same_modules(stand_in: StandIn) -> None:
    place = DISTRIBUTIONS / f"nfnet-{stand_in.module}"
    assert (place / stand_in.module / "__init__.py").read_text() == stand_in.source
    assert (place / stand_in.module / "py.typed").exists()
    assert f'version = "{nfnet.__version__}"' in (place / "pyproject.toml").read_text()


TYPED = """
import nflogr
from netfilterqueue import COPY_PACKET, NetfilterQueue, Packet


def handle(packet: Packet) -> None:
    data: bytes = packet.get_payload()
    packet.set_payload(data)
    packet.set_mark(packet.get_mark() or 1)
    packet.accept()


queue = NetfilterQueue()
queue.bind(1, handle, 1024, COPY_PACKET, 0xFFFF)
queue.run(block=False)
fd: int = queue.get_fd()
queue.unbind()
with nflogr.open(5, timeout=0.5) as log:
    for message in log:
        print(message.prefix, message.proto == nflogr.PROTO_IP)
"""


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="mypy does not run on PyPy")
def test_typed_programs_have_no_errors(tmp_path: Path) -> None:
    for stand_in in STAND_INS.values():
        _stand_in.install([stand_in], tmp_path)
    (tmp_path / "typed.py").write_text(TYPED)
    (tmp_path / "wrong.py").write_text("from netfilterqueue import NetfilterQueue\nNetfilterQueue().bind('1', print)\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    variables = {**os.environ, "MYPYPATH": str(tmp_path)}
    done = subprocess.run([*command, "typed.py"], capture_output=True, text=True, cwd=tmp_path, env=variables)
    assert done.stdout.startswith("Success"), done.stdout + done.stderr
    done = subprocess.run([*command, "wrong.py"], capture_output=True, text=True, cwd=tmp_path, env=variables)
    assert 'Argument 1 to "bind" of "NetfilterQueue" has incompatible type "str"' in done.stdout
