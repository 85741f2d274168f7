"""`Unpack` for every Python that is supported: ``**options: Unpack[QueueOptions]``.

Type checkers know it from typing_extensions, whether or not that is installed. It must be there at run time, too, for
`typing.get_type_hints`; Python has it since 3.11.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Unpack
elif sys.version_info >= (3, 11):
    from typing import Unpack
else:
    T = TypeVar("T")

    class Unpack(Generic[T]):
        """``Unpack[Options]``: a function's keyword arguments are the keys of the TypedDict."""


__all__ = ["Unpack"]
