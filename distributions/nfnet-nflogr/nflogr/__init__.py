"""The API of nflogr, by nfnet."""

from typing import TYPE_CHECKING

from nfnet.compat.nflogr import *
from nfnet.compat.nflogr import __version__ as __version__
from nfnet.compat.nflogr import _from_iter as _from_iter

if TYPE_CHECKING:
    # The constants PROTO_* and HWTYPE_*, which are made from tables.
    def __getattr__(name: str) -> int: ...
