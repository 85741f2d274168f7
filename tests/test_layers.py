"""The structure of the package: imports have one direction, and importing it is cheap."""

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
    "_typing",
    "_caching",
    "_printable",
    "errors",
    "_arguments",
    "_io.locks",
    "_construct",
    "protocol.enumerations",
    "protocol.netlink",
    "protocol.layout",
    "protocol.nfnetlink",
    "protocol.conntrack",
    "protocol.ctnetlink",
    "protocol.markbits",
    "protocol.sock_diag",
    "protocol.rtnetlink",
    "protocol.nfqnl",
    "protocol.nfulnl",
    "protocol.byteorder",
    "protocol",
    "inet._headers",
    "inet._usual",
    "inet._rewriting",
    "inet._answers",
    "inet._streams",
    "inet._tls",
    "inet._scapy",
    "inet",
    # the way to the kernel and to the machine
    "_io.moves",
    "_io.system",
    "_io.native",
    "netns",
    "_io.at_fork",
    "_io.private_files",
    "_io.interface_names",
    "_io.poller",
    "_io.transport",
    "_io.raw_socket",
    "_io.netlink_socket",
    "_io",
    "_processes",
    "_annotated",
    "_accounts",
    "stats",
    "_injection",
    "_recording",
    "captures._link_types",
    "captures._format",
    "captures._compression",
    "captures._reader",
    "captures._writer",
    "captures._recorder",
    "captures._link_layer",
    "captures._records",
    "captures._frames",
    "captures._replay",
    "captures",
    "rules._expressions",
    "rules._nftables",
    "rules._values",
    "rules._elements",
    "rules._contents",
    "rules._set_messages",
    "rules._set_lock",
    "rules._copies",
    "rules._sets",
    "rules._cgroups",
    "rules._criterion",
    "rules._compared",
    "rules._in_set",
    "rules._packet_criteria",
    "rules._host_criteria",
    "rules._criteria",
    "rules._match",
    "rules._actions",
    "rules._connections",
    "rules._userdata",
    "rules._installation",
    "rules._listing",
    "rules._finding",
    "rules._statement",
    "rules._plan",
    "rules._description",
    "rules._rule",
    "rules",
    # the parts of queues and logs
    "_core.connections",
    "_core.origin",
    "_core.text",
    "_core.message",
    "_core.batching",
    "_core.ledger",
    "_core.flusher",
    "_core.loss",
    "_core.binding",
    "_core.flags",
    "_core.bind_request",
    "_core.reader",
    "_core.async_reader",
    "_core",
    "packet",
    "_queue_binding",
    "queue",
    "log",
    "aio",
    "_ecs",
    "collect._units",
    "collect._batch",
    "collect._output",
    "collect._json",
    "collect._file",
    "collect._packed",
    "collect._line_file",
    "collect.json_lines",
    "collect.text",
    "collect.sqlite",
    "collect.capture",
    "collect._flat",
    "collect._rfc5424",
    "collect._sending",
    "collect.syslog",
    "collect.journal",
    "collect._copy_rows",
    "collect.postgresql",
    "collect._nats_client",
    "collect.nats",
    "collect._nats_source",
    "collect._outputs",
    "collect._spool",
    "collect._delivery",
    "collect._limits",
    "collect._counts",
    "collect._collector",
    "collect._forwarder",
    "collect._settings",
    "collect._ulogd",
    "collect._queries",
    "collect._follow",
    "collect",
    "doctor",
    "metrics",
    "workers",
    "testing._messages",
    "testing._kernel",
    "testing._fed_queue",
    "testing._files",
    "testing",
    "compat._c_numbers",
    "compat._assigned_numbers",
    "compat._borrowed",
    "compat.netfilterqueue",
    "compat._nflogdata",
    "compat.nflogr",
    "compat._run",
    "compat",
    "compat.__main__",
    "compat._stand_in",
    "compat.drop_in._nfnet_alone",
    "compat.drop_in.netfilterqueue",
    "compat.drop_in.nflogr",
    "",
    "cli.tables",
    "cli.colours",
    "cli.demo_command",
    "cli.packet_text",
    "cli.command_line",
    "cli.signals",
    "cli.service",
    "cli.summaries",
    "cli.handlers",
    "cli.emulation",
    "cli.deciding",
    "cli.queue_command",
    "cli.block_command",
    "cli.log_command",
    "cli.collect_command",
    "cli.query_command",
    "cli.record_command",
    "cli.decode_command",
    "cli.stats_command",
    "cli.doctor_command",
    "cli.rules_command",
    "cli.run_command",
    "cli.stand_in_command",
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
    """The modules of the package that one imports when it is imported, or for types; not those imported later."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    statements = ast.parse(path.read_text()).body
    while statements:
        node = statements.pop()
        if isinstance(node, (ast.If, ast.Try)):
            statements += node.body + node.orelse
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


def foreign(path: Path) -> set[str]:
    """The packages and modules outside of nfnet that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
    return {name.split(".")[0] for name in found}


def test_protocol_needs_construct_and_the_standard_library_alone() -> None:
    for path in (ROOT / "protocol").glob("*.py"):
        assert foreign(path) <= sys.stdlib_module_names, path.name  # construct by way of `_construct`


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter loads because of this code."""
    ask = "import sys; before = set(sys.modules)\n" + code + "\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_but_itself() -> None:
    assert loaded_by("import nfnet") == {"nfnet"}


# Parts of nfnet and modules of the standard library that take long to load: only code that needs them imports them.
DEAR_PARTS = ("_ecs", "aio", "cli", "collect", "compat", "doctor", "metrics", "rules", "workers")
DEAR_MODULES = (
    *("argparse", "asyncio", "concurrent.futures", "email", "http", "json", "multiprocessing", "shlex", "shutil"),
    *("sqlite3", "ssl", "subprocess", "tempfile", "tomllib", "unittest", "urllib.request", "uuid", "xml"),
)


@pytest.mark.parametrize(
    "code",
    [
        "from nfnet import Queue, Log, inet, record, replay, NfnetError",
        "from nfnet.testing import FedQueue, udp; fed = FedQueue(); fed.feed(udp(b'x'))"
        "; fed.run(lambda packet: packet.accept(mark=packet.mark + (packet.udp is not None))); fed.close()",
    ],
    ids=["import", "decide"],
)
def test_a_queue_loads_nothing_that_few_programs_need(code: str) -> None:
    loaded = loaded_by(code)
    assert {"asyncio", "ssl", "bdb"} & loaded == set()
    extra = loaded - loaded_by("import nfnet._construct")  # some versions of construct import more than others
    assert any(name.startswith("nfnet.queue") for name in extra)
    assert {name for name in extra if name in DEAR_MODULES or name.startswith("pyroute2")} == set()
    assert {name for name in extra if name.removeprefix("nfnet.") in DEAR_PARTS} == set()


@pytest.mark.parametrize(
    "use",
    [
        "import pdb; assert issubclass(pdb.Pdb, pdb.bdb.Bdb)",
        "from pdb import Pdb; Pdb(nosigint=True)",
        "import pdb; assert 'set_trace' in dir(pdb); import inspect; assert inspect.getsource(pdb)",
    ],
)
def test_the_debugger_that_construct_imports_is_executed_when_it_is_used(use: str) -> None:
    assert "bdb" not in loaded_by("from nfnet import Queue; import pdb")
    assert "bdb" in loaded_by(f"from nfnet import Queue; {use}")


def test_threads_that_use_the_debugger_at_once_get_all_of_it() -> None:
    code = """
import sys, threading
from nfnet import Queue
sys.setswitchinterval(1e-6)
found = []
def use():
    import pdb
    found.append((pdb.help, pdb.Pdb, pdb.set_trace))  # the first is defined at the end
threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(found) == 8 and len(set(found)) == 1, found
"""
    assert "bdb" in loaded_by(code)


def test_one_module_imports_construct() -> None:
    """The one that imports pdb lazily before."""
    assert [name for name, path in modules().items() if "construct" in foreign(path)] == ["_construct"]


def test_exported_names_exist_and_are_documented() -> None:
    for name in nfnet.__all__:
        assert getattr(nfnet, name).__doc__, name


# Classes that lock an internal lock in Python code: see the beginning of nfnet/_io/locks.py.
WITH_LOCKS = {"Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "Queue", "RLock", "Semaphore", "Timer"}
THEIR_MODULES = {"multiprocessing", "queue", "threading"}


@pytest.mark.parametrize("name", sorted(modules().keys() - {"_io.locks"}))
def test_what_an_interrupt_could_leave_locked_is_not_used(name: str) -> None:
    used: set[str] = set()
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module in THEIR_MODULES:
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in THEIR_MODULES:
            used.add(node.attr)
    assert not used & WITH_LOCKS


def private_names_of_others(tree: ast.AST) -> int:
    """How often code uses a private attribute of an object that is not its own."""
    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if node.attr in ("_asdict", "_exit", "_fields"):  # of named tuples and os: public in spite of their names
                continue
            owner = node.value
            if isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name):
                owner = owner.func
            count += not (isinstance(owner, ast.Name) and owner.id in ("self", "cls", "super"))
    return count


def test_private_names_stay_private() -> None:
    """Outside of the core, whose modules share the state of packets: at most two uses in a thousand lines."""
    uses = {name: private_names_of_others(ast.parse(path.read_text())) for name, path in modules().items()}
    outside = {name: count for name, count in uses.items() if not name.startswith("_core") and count}
    lines = sum(len(path.read_text().splitlines()) for path in modules().values())
    assert sum(outside.values()) <= lines * 2 / 1000, sorted(outside.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("name", sorted(modules()))
def test_what_a_subclass_must_define_is_abstract(name: str) -> None:
    """So Python and type checkers report a missing method when an object is created, not when the method is called."""
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.Raise) and node.exc is not None:
            assert "NotImplementedError" not in ast.unparse(node.exc), f"line {node.lineno}"


def test_transports_are_not_probed() -> None:
    """`Transport` has every member, with a default for the optional ones: no code tests for one."""
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("getattr", "hasattr")
            ):
                probed = ast.unparse(node.args[0])
                assert "transport" not in probed.lower(), f"nfnet.{name}: {ast.unparse(node)}"
