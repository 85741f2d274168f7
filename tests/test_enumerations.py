"""Unknown numbers from the kernel become members of enumerations, and are not stored."""

from __future__ import annotations

import copy
import json
import pickle
from enum import IntEnum, IntFlag
from typing import Any

import pytest

import nfnet
from nfnet.protocol import nfqnl, nfulnl
from nfnet.protocol.conntrack import Status

ENUMERATIONS = [
    *(nfnet.ArpHook, nfnet.CopyMode, nfnet.CtInfo, nfnet.Family, nfnet.Hook, nfnet.NetdevHook, nfnet.Verdict),
    *(nfqnl.NFQA, nfulnl.NFULA),
]
FLAGS: list[Any] = [nfnet.SkbInfo, Status]


@pytest.mark.parametrize("kind", ENUMERATIONS)
@pytest.mark.parametrize("value", [200, 255, 0xFFFFFFFF])
def test_an_unknown_number_is_a_member(kind: Any, value: int) -> None:
    member = kind(value)
    assert isinstance(member, kind)
    assert (member.name, member.value, member, f"{member:d}") == (f"UNKNOWN_{value}", value, value, str(value))
    assert repr(member) == f"<{kind.__name__}.UNKNOWN_{value}: {value}>"
    assert json.dumps(member) == str(value)
    assert {member: 1}[kind(value)] == {value: 1}[member] == 1
    for again in (copy.copy(member), copy.deepcopy(member), pickle.loads(pickle.dumps(member))):
        assert (type(again), again, again.name) == (kind, member, member.name)


@pytest.mark.parametrize("kind", ENUMERATIONS)
def test_members_stay_those_of_the_class(kind: type[IntEnum]) -> None:
    before = list(kind)
    size = len(kind._value2member_map_)
    for value in range(100, 1100):
        kind(value)
    assert (list(kind), len(kind._value2member_map_)) == (before, size)
    assert kind(before[0].value) is before[0]
    with pytest.raises(KeyError):
        kind["UNKNOWN_100"]
    with pytest.raises(ValueError, match="'100' is not a valid"):
        kind("100")


@pytest.mark.parametrize("kind", FLAGS)
def test_unknown_flags_are_kept_in_the_value_and_nowhere_else(kind: type[IntFlag]) -> None:
    known = next(iter(kind))
    kind(known | 1 << 31)  # what Python keeps for each bit, it keeps once
    size = len(kind._value2member_map_)
    for number in range(1000):
        flags = kind(number << 16 | known)
        assert (flags.value, known in flags) == (number << 16 | known, True)
    assert len(kind._value2member_map_) <= size + 16  # the single bits
