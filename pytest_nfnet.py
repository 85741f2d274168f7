"""Fixtures of nfnet for pytest; they load it when a test asks for one. See `nfnet.testing`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from nfnet import Log, Queue
    from nfnet.testing import FedQueue, OpenReplay


@pytest.fixture
def nfnet_queue() -> Iterator[FedQueue]:
    """A queue that the test feeds: ``feed(payload, mark=...)``, ``run(handler)``, ``verdicts``."""
    from nfnet.testing import FedQueue

    queue = FedQueue()
    yield queue
    queue.close()


@pytest.fixture
def nfnet_replay() -> Iterator[OpenReplay]:
    """Opens a recording: ``nfnet_replay(path)`` is the first queue or log in it, ``num=`` or ``group=`` another."""
    from nfnet.testing import open_replay

    opened: list[Queue | Log] = []

    def open_one(*arguments: Any, **options: Any) -> Any:
        reader = open_replay(*arguments, **options)
        opened.append(reader)
        return reader

    yield open_one
    for reader in opened:
        reader.close()
