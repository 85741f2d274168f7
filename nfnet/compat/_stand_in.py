"""Installation of modules with the names of NetfilterQueue and nflogr in an environment, with metadata that pip reads.

This is for environments whose requirements cannot be changed. In other environments install the distributions
nfnet-netfilterqueue and nfnet-nflogr.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import NamedTuple

from ..errors import ArgumentError, NfnetError

_INSTALLER = "nfnet"

_NETFILTERQUEUE = '''\
"""The API of NetfilterQueue, by nfnet."""

from nfnet.compat.netfilterqueue import *
from nfnet.compat.netfilterqueue import __version__ as __version__
'''
_NFLOGR = '''\
"""The API of nflogr, by nfnet."""

from typing import TYPE_CHECKING

from nfnet.compat.nflogr import *
from nfnet.compat.nflogr import __version__ as __version__
from nfnet.compat.nflogr import _from_iter as _from_iter

if TYPE_CHECKING:
    # The constants PROTO_* and HWTYPE_*, which are made from tables.
    def __getattr__(name: str) -> int: ...
'''
_METADATA = """\
Metadata-Version: 2.1
Name: {distribution}
Version: {version}
Summary: Replaces {distribution}. Installed by "nfnet stand-in install", removed by "nfnet stand-in remove".
Requires-Dist: nfnet
"""
_WHEEL = """\
Wheel-Version: 1.0
Generator: nfnet
Root-Is-Purelib: true
Tag: py3-none-any
"""


class StandIn(NamedTuple):
    """The replacement of a package."""

    distribution: str
    module: str
    version: str
    """The version of the package whose API this is."""
    source: str
    """The text of the module."""

    @property
    def info(self) -> str:
        """The name of the directory of its metadata."""
        return f"{self.distribution}-{self.version}.dist-info"


STAND_INS = {
    "netfilterqueue": StandIn("NetfilterQueue", "netfilterqueue", "1.1.0", _NETFILTERQUEUE),
    "nflogr": StandIn("nflogr", "nflogr", "0.2.12", _NFLOGR),
}


def place() -> Path:
    """Return the directory of this environment's packages.

    Raises NfnetError if the system's package manager owns this environment (PEP 668).
    """
    marker = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"
    if sys.prefix == sys.base_prefix and marker.exists():
        raise NfnetError("this Python belongs to the system's package manager: use a virtual environment")
    return Path(sysconfig.get_path("purelib"))


def chosen(names: Iterable[str]) -> list[StandIn]:
    """Return the stand-ins of these names, or all if no name is given. Raises ArgumentError for unknown names."""
    keys = [name.lower() for name in names] or list(STAND_INS)
    unknown = [name for name in keys if name not in STAND_INS]
    if unknown:
        raise ArgumentError(f"nfnet has no stand-in for {unknown[0]!r}, only for {' and '.join(STAND_INS)}")
    return [STAND_INS[name] for name in keys]


def install(stand_ins: Iterable[StandIn], where: Path) -> None:
    """Install the modules and their metadata in a directory of packages.

    Raises NfnetError, before anything is written, if the original package is installed, and OSError.
    """
    stand_ins = list(stand_ins)
    for stand_in in stand_ins:
        _refuse_if_other(stand_in, where)
    for stand_in in stand_ins:
        _remove(stand_in, where)
        try:
            _write(stand_in, where)
        except BaseException:
            _remove(stand_in, where)
            raise


def remove(stand_ins: Iterable[StandIn], where: Path) -> list[StandIn]:
    """Remove the files of `install`, and return the stand-ins that were installed. Raises OSError."""
    found = [stand_in for stand_in in stand_ins if _is_ours(_installed(stand_in, where))]
    for stand_in in found:
        _remove(stand_in, where)
    return found


def _installed(stand_in: StandIn, where: Path) -> Distribution | None:
    name = stand_in.distribution.lower()
    found = distributions(path=[str(where)])
    return next((item for item in found if (item.metadata["Name"] or "").lower() == name), None)


def _is_ours(distribution: Distribution | None) -> bool:
    return distribution is not None and (distribution.read_text("INSTALLER") or "").strip() == _INSTALLER


def _refuse_if_other(stand_in: StandIn, where: Path) -> None:
    # Python could also import the package from another directory in the path.
    for directory in dict.fromkeys([str(where), *sys.path]):
        found = _installed(stand_in, Path(directory))
        if found is not None and not _is_ours(found):
            text = f"{stand_in.distribution} {found.version} is installed in {directory}"
            raise NfnetError(f"{text}: remove it first (pip uninstall {stand_in.distribution})")
    spec = PathFinder.find_spec(stand_in.module, [str(where)])
    if spec is not None and not _is_ours(_installed(stand_in, where)):
        raise NfnetError(f"a module {stand_in.module} is there already: {spec.origin}")


def _write(stand_in: StandIn, where: Path) -> None:
    package, info = where / stand_in.module, where / stand_in.info
    package.mkdir()
    info.mkdir()
    files = {
        package / "__init__.py": stand_in.source,
        package / "py.typed": "",
        info / "METADATA": _METADATA.format_map(stand_in._asdict()),
        info / "WHEEL": _WHEEL,
        info / "top_level.txt": f"{stand_in.module}\n",
        info / "INSTALLER": f"{_INSTALLER}\n",
    }
    lines = []
    for path, text in files.items():
        path.write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path.relative_to(where).as_posix()},sha256={digest},{len(text.encode())}\n")
    lines.append(f"{stand_in.info}/RECORD,,\n")
    (info / "RECORD").write_text("".join(lines))


def _remove(stand_in: StandIn, where: Path) -> None:
    # The metadata is removed last: while it exists, the remaining files are known to be ours.
    for path in (where / stand_in.module, where / stand_in.info):
        if os.path.lexists(path):
            shutil.rmtree(path)
