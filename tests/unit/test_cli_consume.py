"""What ``logd consume`` says before it reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import anyio
import pytest

from logd.cli.consume import Extent, extents_of
from logd.errors import ConnectionFailedError
from logd_client import Client

REFUSED = ConnectionFailedError("node 2 at h:1: Connection refused")


class OneIsAway:
    """A cluster in which nobody leads partition 1."""

    def __init__(self) -> None:
        self.admin = self

    async def offsets(self, topic: str, partition: int) -> SimpleNamespace:
        if partition == 1:
            raise REFUSED
        return SimpleNamespace(log_start=0, commit_offset=9, data_end=8)


def extents(*numbers: int) -> dict[int, Extent]:
    return anyio.run(extents_of, cast(Client, OneIsAway()), "t", numbers, None, backend="trio")


def test_the_partition_that_cannot_be_read_is_named_where_there_are_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for numbers in ((0, 1), (1,)):
        with pytest.raises(ConnectionFailedError):
            extents(*numbers)

    assert extents(0, 2) == {0: Extent(0, 9, 8), 2: Extent(0, 9, 8)}
    told = "logd: t/1 cannot be read; --partition reads another one alone\n"
    assert capsys.readouterr().err == told
