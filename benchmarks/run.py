"""Prepare an environment with the peers that can be built here, and run the benchmarks in it.

Standard library only, so that any interpreter can be measured.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".bench"
PEERS = ["NetfilterQueue==1.1.0", "psycopg[binary]", "nats-py[nkeys]"]
if sys.version_info >= (3, 13):
    PEERS.append("nflogr==0.2.12")  # on 3.10 to 3.12 it crashes
SCRIPTS = {
    "queue": "queue_drain.py",
    "log": "log_drain.py",
    "lone": "lone_packet.py",
    "cliffs": "cliffs.py",
    "growth": "growth.py",
    "flood": "flood.py",
    "workers": "workers.py",
    "connections": "connections.py",
    "process": "process.py",
    "collect": "collect.py",
    "sustained": "sustained.py",
    "servers": "servers.py",
    "emulation": "emulation.py",
}


def pip(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def prepare() -> Path:
    """The interpreter of the environment."""
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / "made-with"
    if stamp.exists() and stamp.read_text() == sys.base_prefix:
        return python
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    done = pip(python, "install", "--editable", str(ROOT))
    if done.returncode:
        sys.exit(done.stderr)
    for peer in PEERS:
        if pip(python, "install", peer).returncode:
            print(f"{peer} cannot be built here; see benchmarks/README.md", file=sys.stderr)
    stamp.write_text(sys.base_prefix)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=SCRIPTS, help="measure this alone")
    parser.add_argument("--prepare", action="store_true", help="make the environment, and measure nothing")
    options, arguments = parser.parse_known_args()
    python = prepare()
    if options.prepare:
        return 0
    failed = []
    for what, script in SCRIPTS.items():
        if options.what in (None, what):
            print(f"--- {what}", flush=True)
            if subprocess.run([str(python), str(ROOT / "benchmarks" / script), *arguments], check=False).returncode:
                failed.append(what)
    if failed:
        print(f"\nworse than stored, or failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
