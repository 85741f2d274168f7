"""Names in comments and docstrings exist."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
from pathlib import Path

import pytest

import nfnet

ROOT = Path(nfnet.__file__).parent
MODULES = [*sorted(ROOT.glob("**/*.py")), ROOT.parent / "pytest_nfnet.py"]

# Names of Python's own that are written like ours: `threading.Condition`.
ELSEWHERE = {"asyncio", "copy", "json", "logging", "os", "pickle", "queue", "select", "signal", "socket", "threading"}
ELSEWHERE |= {"typing"}


def names(path: Path) -> set[str]:
    """Return all names in a module: defined, used, assigned, and arguments."""
    found = {path.stem, path.parent.name}
    for node in ast.walk(ast.parse(path.read_text())):
        for field in ("name", "attr", "id", "arg"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                found.update(value.split("."))
    return found


EVERYWHERE = set().union(*map(names, MODULES), dir(builtins))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT.parent)))
def test_names_in_backticks_exist(path: Path) -> None:
    text = path.read_text()
    here = names(path)
    for match in re.finditer(r"(?<!`)`(\w[\w.]*)`(?!`)", text):
        head, *rest = match[1].split(".")
        where = f"line {text[: match.start()].count(chr(10)) + 1}: {match[1]}"
        if head in ELSEWHERE:
            assert not rest or hasattr(importlib.import_module(head), rest[0]), where
        elif head.startswith("_"):  # private names are those of this module, as a rule
            assert {head, *rest} <= here or {head, *rest} <= EVERYWHERE, where
        else:
            assert {head, *rest} <= EVERYWHERE, where
