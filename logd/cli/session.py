"""One command's connection to the cluster.

A person who cannot reach the cluster wants to know within seconds which address said what,
and a cluster without a majority should be told apart from a slow one: so a command waits a
bounded time for a broker and for a controller, and otherwise says who is missing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from logd.cli.exits import expected_error
from logd.cli.options import BOOTSTRAP_DEFAULT
from logd.cli.overview import DOUBTED_TIMEOUT_S, answering, missing_brokers
from logd.errors import (
    ConnectionFailedError,
    InvalidPartitionError,
    LogdError,
    NotLeaderError,
    UnavailableError,
    UnknownBrokerError,
)
from logd.metadata.rebalance.cluster import is_majority_alive
from logd.types import METADATA_GROUP, HostPort
from logd.wording import are, named, them
from logd_client import connect
from logd_client.routing import partitions_text

if TYPE_CHECKING:
    from logd.wire.messages import DescribeBrokerResponse, MetadataResponse, PartitionInfo
    from logd_client import Client

T = TypeVar("T")

CONTROLLER_TIMEOUT_S: Final = 4.0
"""How long an election may leave the cluster without a controller before we say so."""

CONTROLLER_POLL_S: Final = 0.1
CONNECT_TIMEOUT_MS: Final = 4_000
"""With the start of the program, a cluster that cannot be reached is reported within 5 s."""

REQUEST_TIMEOUT_MS: Final = 10_000
"""A person waits no longer for one answer; long work is many requests."""


def run_async(function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Run a command's async part."""
    return anyio.run(function, *arguments, backend="trio")


@asynccontextmanager
async def connected(
    bootstrap: str, *, needs_controller: bool = True, **options: Any
) -> AsyncIterator[Client]:
    """A client for the length of one command; ``options`` are further ones of ``connect``.

    Raises:
        ConnectionFailedError: no address answered; names each with its reason.
        UnavailableError: brokers answer, but no majority of them; names the missing ones.  Also
            of what the command says by itself: that a partition has no leader.
    """
    async with _connect(bootstrap, options) as client:
        if needs_controller:
            await wait_for_controller(client)
        try:
            yield client
        except Exception as raised:
            error = expected_error(raised)
            if not isinstance(error, NotLeaderError):
                raise
            raise await _with_missing(client, error) from raised


async def _with_missing(client: Client, error: NotLeaderError) -> LogdError:
    """``error``, and who is missing in the cluster, which may be why."""
    with suppress(LogdError), anyio.move_on_after(DOUBTED_TIMEOUT_S):
        metadata = await client.admin.describe_cluster()
        if not all(broker.alive for broker in metadata.brokers):
            named_error = UnavailableError(f"{error}; {missing_brokers(metadata)}")
            named_error.may_have_applied = error.may_have_applied
            return named_error
    return error


@asynccontextmanager
async def _connect(bootstrap: str, options: dict[str, Any]) -> AsyncIterator[Client]:
    is_met = False
    try:
        async with connect(
            bootstrap,
            **{
                "client_id": "logd",
                "connect_timeout_ms": CONNECT_TIMEOUT_MS,
                "request_timeout_ms": REQUEST_TIMEOUT_MS,
                **options,
            },
        ) as client:
            is_met = True
            yield client
    except ConnectionFailedError as error:
        if is_met or bootstrap != BOOTSTRAP_DEFAULT:
            raise
        raise ConnectionFailedError(
            f"{error} (the default; name other brokers with --bootstrap or LOGD_BOOTSTRAP)"
        ) from error


async def wait_for_controller(client: Client) -> MetadataResponse:
    """Wait until the cluster can decide things; return its metadata.

    Raises:
        UnavailableError: it cannot; names the brokers that are missing.
    """
    metadata = await look_for_controller(client)
    if metadata.controller is None:
        raise UnavailableError(f"the cluster has no controller: {missing_brokers(metadata)}")
    return metadata


async def look_for_controller(
    client: Client, *, waits_for_brokers: bool = True
) -> MetadataResponse:
    """The cluster's metadata, as soon as there is a controller, and after a while without one.

    Each time somebody else is asked: a broker may be cut off from the others, or removed.

    Args:
        waits_for_brokers: also while too few of them answer to elect one; some may be starting.
    """
    deadline = anyio.current_time() + CONTROLLER_TIMEOUT_S
    while True:
        metadata = await client.admin.describe_cluster()
        if metadata.controller is not None or anyio.current_time() >= deadline:
            return metadata
        if not waits_for_brokers:
            answers = await answering(client, metadata)
            if not _may_elect(answers, metadata):
                if len(answers) > 1:  # Another one may hear of a broker that we do not.
                    with anyio.move_on_after(DOUBTED_TIMEOUT_S):
                        return await client.admin.describe_cluster()
                return metadata
        await anyio.sleep(CONTROLLER_POLL_S)


def _may_elect(answers: Sequence[DescribeBrokerResponse], metadata: MetadataResponse) -> bool:
    """Whether enough brokers have answered that vote in the metadata log."""
    from logd.broker.metadata_voters import voters_wanted

    voters = sum(
        any(
            replica.group == METADATA_GROUP and replica.role not in ("learner", "stopped")
            for replica in broker.replicas
        )
        for broker in answers
    )
    return voters > voters_wanted(len(metadata.brokers)) // 2


async def require_partition(client: Client, topic: str, partition: int) -> PartitionInfo:
    """What the metadata knows of one partition.

    Raises:
        UnknownTopicError: there is no such topic.
        InvalidPartitionError: the topic has no such partition.
    """
    info = await client.admin.describe_topic(topic)
    if partition >= len(info.partitions):
        raise InvalidPartitionError(
            f"topic {topic!r} has no partition {partition}, "
            f"expected {partitions_text(len(info.partitions))}"
        )
    return info.partitions[partition]


async def require_alive(client: Client, node: int) -> None:
    """Refuse to wait for a broker that the others have lost.

    Raises:
        UnknownBrokerError: there is no such broker.
        UnavailableError: the cluster cannot see it.
    """
    for broker in (await client.admin.describe_cluster()).brokers:
        if broker.node_id == node:
            if not broker.alive:
                address = HostPort(broker.host, broker.port)
                raise UnavailableError(f"broker {node} at {address} is not alive")
            return
    raise UnknownBrokerError(f"no broker {node} in the cluster")


async def require_majority_alive(client: Client, nodes: Sequence[int], partition: str) -> None:
    """Refuse to have a partition where too few brokers are alive to lead it.

    Raises:
        UnavailableError: names those that are not.
    """
    brokers = (await client.admin.describe_cluster()).brokers
    down = [broker.node_id for broker in brokers if broker.node_id in nodes and not broker.alive]
    if not is_majority_alive(nodes, down):
        names = f"{named('broker', down)} {are(len(down))}"
        raise UnavailableError(
            f"{names} not alive: without {them(len(down))} nobody could lead {partition} "
            f"on {', '.join(map(str, nodes))}"
        )
