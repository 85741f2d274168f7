"""A criterion whose argument is a `Set`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import ArgumentError
from ._compared import Compared
from ._criterion import Criterion
from ._expressions import Step, lookup
from ._set_messages import KernelSet
from ._sets import Set
from ._values import NoWordsError


class InSet(Criterion):
    """The criterion of another row, with the elements of a set as values. The condition is the set."""

    def __init__(self, row: Criterion, negated: bool) -> None:
        self.description, self.syntax = row.description, row.syntax
        self.hooks, self.families, self.protocols = row.hooks, row.families, row.protocols
        self.is_tracked, self.names_version = row.is_tracked, row.names_version
        self._row, self._negated = row, negated

    def read(self, name: str, value: Any, negated: bool) -> Set:
        assert isinstance(value, Set)
        kinds = self._row.set_kinds if isinstance(self._row, Compared) else ()
        if value.kind not in kinds:
            wanted = " or ".join(f'Set("{kind}")' for kind in kinds)
            what = f"takes a {wanted}, not a" if wanted else "takes no sets, and this is a"
            raise ArgumentError(f'{name} {what} Set("{value.kind}")')
        return value

    def differs_by_version(self, condition: Set) -> bool:
        return len(condition.kernel_sets) > 1

    @property
    def _compared(self) -> Compared:
        assert isinstance(self._row, Compared)  # `read` accepts sets only for such rows
        return self._row

    @staticmethod
    def _kernel_set(condition: Set, version: int | None) -> KernelSet:
        """Return the kernel's set with the elements for packets of an IP version."""
        return next(one for one in condition.kernel_sets if one.part.version in (None, version))

    def steps(self, condition: Set, version: int | None) -> Iterator[Step]:
        found = self._kernel_set(condition, version)
        yield self._compared.field(version).load
        yield lookup(found.name.encode(), found.number, self._negated)

    def nft(self, condition: Set, version: int | None, protocol: str) -> str:
        unequal = "!= " if self._negated else ""
        name = self._compared.nft_name(version, protocol)
        return f"{name} {unequal}@{self._kernel_set(condition, version).name}"

    def iptables(self, condition: Set, version: int, protocol: str) -> list[str]:
        raise NoWordsError("sets")

    def command_values(self, condition: Set) -> list[str]:
        return [f"@{condition.title}"]
