"""The ``nfnet`` command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="nfnet", description="Decide and log packets from Python.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo.add_to(commands)
    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status
