"""A command that nobody who leads has answered says who is missing, and that it reached nobody."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from logd.cli import session
from logd.cli.exits import ExitCode, exit_code_for, expected_error
from logd.errors import LogdError, NotLeaderError, UnavailableError, UnknownTopicError
from logd.wire.messages import BrokerInfo, MetadataResponse

LEADERLESS = NotLeaderError("node 3 does not lead orders/0: no leader is known")


class Connected:
    """A client of a cluster of two, which has a controller."""

    def __init__(self, *, second_is_alive: bool) -> None:
        self.admin = self
        self._brokers = [
            BrokerInfo(node_id=1, host="h", port=1),
            BrokerInfo(node_id=2, host="h", port=2, alive=second_is_alive),
        ]

    async def __aenter__(self) -> Connected:
        return self

    async def __aexit__(self, *error: object) -> None: ...

    async def describe_cluster(self) -> MetadataResponse:
        return MetadataResponse(cluster_id="c", controller=1, brokers=self._brokers, topics=[])


def what_is_reported(
    monkeypatch: pytest.MonkeyPatch, raised: LogdError, *, second_is_alive: bool
) -> LogdError:
    """Of what a command has raised in one of its tasks."""

    def connect(*_: object, **__: object) -> Any:
        return Connected(second_is_alive=second_is_alive)

    async def fail() -> None:
        raise raised

    async def command() -> None:
        async with session.connected("h:1"), trio.open_nursery() as nursery:
            nursery.start_soon(fail)

    monkeypatch.setattr(session, "connect", connect)
    with pytest.raises((LogdError, ExceptionGroup)) as caught:
        trio.run(command)
    reported = expected_error(caught.value)
    assert isinstance(reported, LogdError)
    return reported


def test_who_is_missing_is_said_of_a_partition_without_a_leader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported = what_is_reported(monkeypatch, LEADERLESS, second_is_alive=False)

    assert isinstance(reported, UnavailableError)
    assert str(reported) == f"{LEADERLESS}; 1 of 2 brokers is alive; missing: 2 (h:2)"


@pytest.mark.parametrize(
    ("raised", "second_is_alive", "code"),
    [
        (LEADERLESS, True, ExitCode.UNREACHABLE),
        (UnknownTopicError("no topic 'orders'"), False, ExitCode.NOT_FOUND),
    ],
)
def test_what_nobody_missing_has_to_do_with_is_reported_as_it_is(
    monkeypatch: pytest.MonkeyPatch, raised: LogdError, second_is_alive: bool, code: ExitCode
) -> None:
    reported = what_is_reported(monkeypatch, raised, second_is_alive=second_is_alive)

    assert reported is raised
    assert exit_code_for(reported) == code
