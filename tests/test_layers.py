"""The shape of the house: imports point down, and importing it is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nfnet

ROOT = Path(nfnet.__file__).parent

# Each module may import those before it.
ORDER = [
    "text",
    "errors",
    "checks",
    "locks",
    "protocol.netlink",
    "protocol.layout",
    "protocol.nfnetlink",
    "protocol.conntrack",
    "protocol.nfqnl",
    "protocol.nfulnl",
    "protocol.byteorder",
    "protocol",
    "inet.headers",
    "inet.rewriting",
    "inet",
    "scapys",
    "files",
    "capture",
    "native",
    "netns",
    "transport",
    "recorder",
    "stats",
    "waiter",
    "loss",
    "reader",
    "verdicts",
    "message",
    "packet",
    "binding",
    "queue",
    "log",
    "aio",
    "records",
    "replay",
    "match",
    "nftables",
    "rules",
    "doctor",
    "metrics",
    "workers",
    "testing",
    "compat.cnumbers",
    "compat.numbers",
    "compat.lent",
    "compat.netfilterqueue",
    "compat.nflogdata",
    "compat.nflogr",
    "compat.run",
    "compat",
    "compat.__main__",
    "compat.drop_in._nfnet_alone",
    "compat.drop_in.netfilterqueue",
    "compat.drop_in.nflogr",
    "",
    "cli.demo",
    "cli.lines",
    "cli.common",
    "cli.queue",
    "cli.log",
    "cli.record",
    "cli.decode",
    "cli.stats",
    "cli.doctor",
    "cli.rules",
    "cli.run",
    "cli",
    "__main__",
]


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(name: str, path: Path) -> set[str]:
    """The modules of the package that one imports when it is imported, not later and not for types alone."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)]
            target = ".".join([*(part for part in base if part), *([node.module] if node.module else [])])
            for alias in node.names:
                deeper = f"{target}.{alias.name}".lstrip(".")
                found.add(deeper if deeper in modules() else target)
    return found


@pytest.mark.parametrize("name", modules())
def test_imports_point_down(name: str) -> None:
    assert name in ORDER, f"say in tests/test_layers.py where nfnet.{name} stands"
    for other in imported(name, modules()[name]):
        assert ORDER.index(other) < ORDER.index(name), f"nfnet.{name} imports nfnet.{other}"


def test_protocol_needs_construct_and_the_standard_library_alone() -> None:
    for path in (ROOT / "protocol").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for module in names:
                top = module.split(".")[0]
                assert top == "construct" or top in sys.stdlib_module_names, f"{path.name} imports {module}"


def test_importing_loads_neither_pyroute2_nor_asyncio() -> None:
    code = "import sys, nfnet; print([m for m in ('pyroute2', 'asyncio', 'ssl') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_exported_names_exist_and_are_documented() -> None:
    for name in nfnet.__all__:
        assert getattr(nfnet, name).__doc__, name


# What has a lock inside that it takes in a function written in Python: see the head of nfnet/locks.py.
WITH_LOCKS = {"Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "Queue", "RLock", "Semaphore", "Timer"}
THEIR_MODULES = {"multiprocessing", "queue", "threading"}


@pytest.mark.parametrize("name", sorted(modules().keys() - {"locks"}))
def test_what_an_interrupt_could_leave_locked_is_not_used(name: str) -> None:
    used: set[str] = set()
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module in THEIR_MODULES:
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in THEIR_MODULES:
            used.add(node.attr)
    assert not used & WITH_LOCKS
