"""What is published, on every interpreter at hand: `nox`, or `nox -s package`, `nox -s tests-3.13`.

The wheel is tested, not the checkout: the tests run beside it, in a directory without the package.
"""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
ROOT = Path(__file__).parent
NEEDED = (
    "tests",
    "examples",
    "distributions",
    "benchmarks",
    "docs",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
)


def build(session: nox.Session) -> tuple[Path, Path]:
    """Build the source distribution, and the wheel from that."""
    out = Path(session.create_tmp()) / "dist"
    session.run("rm", "-rf", str(out), external=True)
    session.install("build", "twine")
    session.run("python", "-m", "build", "--outdir", str(out), silent=True)
    session.run("twine", "check", "--strict", *map(str, out.iterdir()))
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def test(session: nox.Session, wheel: Path, *requirements: str, arguments: list[str]) -> None:
    """Run the tests with the wheel."""
    session.install(f"{wheel}[dev]", *requirements)
    beside = Path(session.create_tmp()) / "beside"
    session.run("rm", "-rf", str(beside), external=True)
    beside.mkdir()
    for name in NEEDED:
        session.run("cp", "-r", str(ROOT / name), str(beside), external=True)
    with session.chdir(beside):
        session.run("pytest", "-p", "no:cacheprovider", *arguments)


@nox.session(python=["3.10", "3.11", "3.12", "3.13", "3.14", "3.15"])
def tests(session: nox.Session) -> None:
    """All tests with the wheel; further arguments are pytest's."""
    test(session, build(session)[1], arguments=session.posargs)


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """The tests with the oldest construct and pyroute2 that are allowed."""
    metadata = nox.project.load_toml("pyproject.toml")["project"]
    bounds = [requirement.replace(">=", "==") for requirement in metadata["dependencies"]]
    test(session, build(session)[1], *bounds, arguments=session.posargs)


@nox.session
def package(session: nox.Session) -> None:
    """What is in the distributions; the wheel in a clean environment without a compiler, and an example there."""
    sdist, wheel = build(session)
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.split("/", 1)[1] for name in archive.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "nfnet").rglob("*") if path.suffix in (".py", ".typed")}
    info = {name for name in in_wheel if ".dist-info/" in name}
    expected = sources | {"pytest_nfnet.py", "nfnet/cli/demo.pcapng"}
    if in_wheel - info != expected:
        session.error(f"the wheel has {sorted(in_wheel - info ^ expected)} more or less than it should")
    for name in ("licenses/LICENSE", "entry_points.txt"):
        if not any(entry.endswith(name) for entry in info):
            session.error(f"the wheel has no {name}")
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "tests/conftest.py", "docs/verdicts.md", *sources):
        if name not in in_sdist:
            session.error(f"the source distribution has no {name}")
    if not wheel.name.endswith("-py3-none-any.whl"):
        session.error(f"{wheel.name} is not for every machine")

    clean = Path(session.create_tmp()).resolve() / "clean"
    session.run("python", "-m", "venv", "--clear", str(clean))
    python = str(clean / "bin" / "python")
    no_compiler = {"PATH": str(clean / "bin"), "CC": "/nowhere"}
    session.run(python, "-m", "pip", "install", "--quiet", str(wheel), env=no_compiler, external=True)
    session.run(python, "-m", "pip", "check", env=no_compiler, external=True)
    session.run(str(clean / "bin" / "nfnet"), "demo", env=no_compiler, external=True)
    for name in ("netfilterqueue", "nflogr"):
        place = str(ROOT / "distributions" / f"nfnet-{name}")
        out = Path(session.create_tmp()) / "stand-ins"
        session.run("python", "-m", "build", "--wheel", "--outdir", str(out), place, silent=True)
        (stand_in,) = out.glob(f"nfnet_{name}-*.whl")
        session.run("twine", "check", "--strict", str(stand_in))
        session.run(python, "-m", "pip", "install", "--quiet", str(stand_in), env=no_compiler, external=True)
        session.run(python, "-c", f"import {name}; print({name}.__version__)", env=no_compiler, external=True)
    session.run(python, "-m", "pip", "check", env=no_compiler, external=True)
    session.env["NFNET_PYTHON"] = python
    test(session, wheel, arguments=["tests/live/test_examples.py", "-k", "readme", *session.posargs])
