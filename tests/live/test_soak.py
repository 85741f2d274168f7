"""A short run of `make soak`."""

from __future__ import annotations

import pytest

import nfnet
from nfnet.stats import queues

from .. import soak
from .conftest import cannot_run


def test_the_books_balance(privileges: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        queues()
    except nfnet.NotPermittedError as error:
        cannot_run(privileges or f"only root of the machine may read the kernel's counters: {error}")
    soak.soak(5)
    assert capsys.readouterr().out.count("\n") == 2 * len(soak.PHASES) + 2
