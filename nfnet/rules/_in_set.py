"""A row of `_criteria.CRITERIA` whose values are in a set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import ArgumentError
from ._criterion import Compared, Criterion
from ._expressions import Step, lookup
from ._set_messages import KernelSet
from ._sets import Set
from ._values import NoWordsError


class InSet(Criterion):
    """What another row asks of packets, for a `Set` in place of values. Raises ArgumentError."""

    def __init__(self, name: str, row: Criterion, values: Set, negated: bool) -> None:
        kinds = row.set_kinds if isinstance(row, Compared) else ()
        if values.kind not in kinds:
            wanted = " or ".join(f'Set("{kind}")' for kind in kinds)
            what = f"takes a {wanted}, not a" if wanted else "takes no sets, and this is a"
            raise ArgumentError(f'{name} {what} Set("{values.kind}")')
        assert isinstance(row, Compared)
        self.about, self.takes = row.about, row.takes
        self.hooks, self.families, self.lacks = row.hooks, row.families, row.lacks
        self.protocols, self.is_tracked = row.protocols, row.is_tracked
        self._row, self._negated = row, negated

    def read(self, name: str, value: Any, negated: bool) -> Set:
        raise NotImplementedError

    def tells_versions_apart(self, asked: Set) -> bool:
        return len(asked.kernel_sets) > 1

    @staticmethod
    def _of_version(asked: Set, version: int | None) -> KernelSet:
        """The set in the kernel that has what packets of the version can have."""
        return next(one for one in asked.kernel_sets if one.part.version in (None, version))

    def steps(self, asked: Set, version: int | None) -> Iterator[Step]:
        found = self._of_version(asked, version)
        yield self._row.load(version)
        yield lookup(found.name.encode(), found.number, self._negated)

    def nft(self, asked: Set, version: int | None, protocol: str) -> str:
        unequal = "!= " if self._negated else ""
        return f"{self._row.key(version, protocol)} {unequal}@{self._of_version(asked, version).name}"

    def iptables(self, asked: Set, version: int, protocol: str) -> list[str]:
        raise NoWordsError("sets")

    def text(self, asked: Set) -> list[str]:
        return [f"@{asked.title}"]
