"""Imports `nfnet.compat` in a script as if the script's directory were not in its path.

That directory is the first, and its modules may have any name: `copy`, `logging`, `construct`. Beside the package that
this one stands in for, which needs none of these, such a script works. So while ours are imported, what stands in the
path before this directory does not count; and afterwards, these names mean the script's own modules again.

A directory must not be able to hide what this imports itself.
"""

import sys
from _frozen_importlib_external import PathFinder

_HERE = __file__.rpartition("/")[0]
_OURS = ("__main__", "nfnet", "netfilterqueue", "nflogr")


def install() -> None:
    """Let this package's modules take the place of both packages."""
    path = sys.path
    front = path[: path.index(_HERE)] if _HERE in path else []
    before = set(sys.modules)
    own = _tops(before, front, of_script=True)
    aside = {name: sys.modules.pop(name) for name in before if _top(name) in own}
    sys.path = path[len(front) :]
    try:
        import nfnet.compat

        nfnet.compat.install()
    finally:
        sys.path = path
        new = set(sys.modules) - before
        hidden = _tops(new, front, of_script=False)
        for name in new:
            if _top(name) in hidden:  # of the standard library, say; the script may import its own one later
                del sys.modules[name]
        sys.modules.update(aside)


def _tops(names: set[str], front: list[str], *, of_script: bool) -> set[str]:
    """Which top-level modules the script has too: those that were imported from there, or those that were not."""
    found = set()
    for top in {_top(name) for name in names}.difference(_OURS):
        own = PathFinder.find_spec(top, front)
        if own is not None and own.loader is not None:  # None: a directory without modules
            spec = getattr(sys.modules.get(top), "__spec__", None)
            if (spec is not None and spec.origin == own.origin) == of_script:
                found.add(top)
    return found


def _top(name: str) -> str:
    return name.partition(".")[0]
