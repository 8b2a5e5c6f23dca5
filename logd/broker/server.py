"""One broker, from its data directory to its last synced byte.

Start: lock the directory, listen, find the other nodes, open the metadata log, register,
open the partitions.  Clients are answered from the first moment, if only with what is
still missing.

Stop (``stop`` is set): leadership is handed over, logs are synced and closed.  Cancelling
instead of stopping is the clean version of pulling the plug: nothing more is acknowledged
and recovery does the rest.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import structlog
import trio

from logd import __version__
from logd.broker import log_events
from logd.broker.answer_room import SendRoom
from logd.broker.autonomy import Autonomy
from logd.broker.broker import Broker, ProduceBudget
from logd.broker.coordination.service import Coordination
from logd.broker.disk_guard import DiskGuard
from logd.broker.frame_room import FrameRoom
from logd.broker.joining import (
    answer_join,
    ask_until_known,
    ask_when_outdated,
    follow_brokers,
    join_cluster,
    keep_metadata_members,
)
from logd.broker.leader_balancer import balance_leaders, leave_leaders
from logd.broker.metadata_service import MetadataService
from logd.broker.mover import Mover
from logd.broker.partitions import Partitions
from logd.broker.plan_runner import run_plans
from logd.broker.recent_events import RecentEvents
from logd.broker.session import Session
from logd.broker.trash_emptying import TrashEmptying
from logd.errors import LogdError, RefusedError
from logd.limits import (
    CLIENTS_SEND_BYTES_MAX,
    CONNECTIONS_MAX,
    DESCRIPTORS_SPARE,
    FEATURE_LEVEL_MIN,
    LARGE_FRAMES_BYTES_MAX,
    METADATA_VOTERS_MAX,
)
from logd.metadata.commands import FormCluster, RegisterBroker
from logd.metadata.features import LEVEL_MAX, LEVEL_MIN
from logd.raft.messages import TransferLeadership
from logd.replication.membership import Membership
from logd.replication.node import Node
from logd.replication.peer_server import serve_peers
from logd.replication.room_waits import when_there_is_room
from logd.storage.directory import DataDirectory
from logd.types import METADATA_GROUP, DirectoryId, HostPort, NodeId

if TYPE_CHECKING:
    from logd.config import BrokerConfig
    from logd.env import Env, Listener

log = structlog.get_logger(__name__)

HAND_OVER_S: Final = 1.0
"""How long a stopping broker waits for its successors."""

HAND_OVER_POLL_S: Final = 0.02

FAREWELL_S: Final = 0.1
"""How long it goes on telling its clients where to go."""

REGISTER_TIMEOUT_MS: Final = 5_000
REGISTER_RETRY_S: Final = 0.1

FORM_LOOK_S: Final = 0.05
"""Whether it is the controller, a broker that would form the cluster looks this often."""

MISSING_TOLD_EVERY_S: Final = 2.0
"""A broker that waits for others before there is a cluster says so this often."""

ACCEPT_RETRY_S: Final = 0.1


class Companion(Protocol):
    """Started once the broker listens, cancelled with it."""

    async def __call__(self, broker: Broker, *, task_status: trio.TaskStatus[None]) -> None: ...


@dataclass(frozen=True, slots=True)
class BrokerAddresses:
    """Where a started broker really listens."""

    client: HostPort
    peer: HostPort


async def run_broker(
    config: BrokerConfig,
    env: Env,
    *,
    stop: trio.Event,
    events: RecentEvents | None = None,
    companion: Companion | None = None,
    task_status: trio.TaskStatus[BrokerAddresses] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run one broker until ``stop`` is set (clean) or the call is cancelled (abrupt).

    Args:
        events: where the log puts what an operator wants to see.
        companion: runs beside the broker and ends with it, such as the HTTP listener, which
            is of a higher layer.

    Raises:
        StorageError: the data directory is locked, foreign, unwritable or too new.
        OSError: an address cannot be listened on.
    """
    log.info(log_events.BROKER_STARTING, node=config.node_id, version=__version__)
    directory = await env.run_blocking(
        DataDirectory.open,
        env.files,
        config.data_dir,
        config.node_id,
        lambda: f"{env.rng('directory').getrandbits(128):032x}",
    )
    try:
        await _run_with_directory(
            config, env, directory, stop, events or RecentEvents(), companion, task_status
        )
    finally:
        directory.close()
    log.info(log_events.BROKER_STOPPED, node=config.node_id)


async def _run_with_directory(
    config: BrokerConfig,
    env: Env,
    directory: DataDirectory,
    stop: trio.Event,
    events: RecentEvents,
    companion: Companion | None,
    task_status: trio.TaskStatus[BrokerAddresses],
) -> None:
    membership = Membership(config.node_id, directory, config.cluster, env, config.join)
    node = Node(config, env, membership)
    client_listener = await env.network.listen(config.listen, spare_descriptors=DESCRIPTORS_SPARE)
    try:
        peer_listener = await env.network.listen(config.peer_listen)
    except OSError:
        client_listener.close()
        raise
    sessions: dict[Session, None] = {}
    broker = Broker(
        config=config,
        env=env,
        node=node,
        membership=membership,
        metadata=MetadataService(node),
        disk=DiskGuard(env, config.data_dir, config.disk_free_bytes_min, node),
        budget=ProduceBudget(config.produce_bytes_in_flight),
        frames=FrameRoom(LARGE_FRAMES_BYTES_MAX),
        sends=SendRoom(CLIENTS_SEND_BYTES_MAX, sessions),
        sessions=sessions,
        coordination=Coordination(node, directory.trash_path),
        address=config.advertise or client_listener.address,
        peer_address=config.peer_address if config.peer_address.port else peer_listener.address,
        started_ms=node.now_ms(),
        events=events,
    )
    node.on_join = functools.partial(answer_join, broker)
    try:
        async with trio.open_nursery() as nursery:
            await broker.disk.look()  # Before others hear this node, and send it records.
            await nursery.start(node.run)
            nursery.start_soon(serve_peers, peer_listener, node)
            nursery.start_soon(_serve_clients, client_listener, broker)
            nursery.start_soon(broker.disk.run)
            if companion is not None:
                await nursery.start(companion, broker)
            nursery.start_soon(_join, broker)
            addresses = BrokerAddresses(client_listener.address, peer_listener.address)
            log.info(
                log_events.BROKER_STARTED,
                node=config.node_id,
                address=str(addresses.client),
                peer_address=str(addresses.peer),
                data_dir=config.data_dir,
            )
            task_status.started(addresses)
            await stop.wait()
            log.info(log_events.BROKER_STOPPING, node=config.node_id)
            broker.is_stopping = True
            client_listener.close()
            await _hand_over(broker)
            nursery.cancel_scope.cancel()
        await node.close()
    finally:
        client_listener.close()
        peer_listener.close()


async def _join(broker: Broker) -> None:
    """Become part of the cluster, and then of its work."""
    config, node, membership = broker.config, broker.node, broker.membership
    if config.join is not None and membership.directory.members is None:
        await join_cluster(broker, _registration(broker))
    async with trio.open_nursery() as waiting:
        waiting.start_soon(_report_missing, membership)
        members = await membership.formed()
        waiting.cancel_scope.cancel()
    listed = tuple(NodeId(n) for n in sorted(members))
    partitions = Partitions(
        config, broker.env, node, membership, broker.metadata, broker.coordination
    )
    group = await partitions.open_metadata(
        listed[:METADATA_VOTERS_MAX], listed[METADATA_VOTERS_MAX:]
    )
    broker.metadata.attach(group)
    trash = TrashEmptying(broker.env, membership.directory.trash, config.retention_interval_ms)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(broker.metadata.run)
        nursery.start_soon(follow_brokers, broker)
        nursery.start_soon(ask_when_outdated, broker, _registration(broker))
        if config.join is not None:
            nursery.start_soon(ask_until_known, broker, _registration(broker))
        await _form(broker, members)
        nursery.start_soon(partitions.run)
        nursery.start_soon(partitions.retention.run)
        nursery.start_soon(trash.run)
        nursery.start_soon(partitions.compaction.run)
        await _register(broker)
        partitions.metadata_is_up_to_date()
        nursery.start_soon(balance_leaders, broker)
        nursery.start_soon(leave_leaders, broker)
        nursery.start_soon(keep_metadata_members, broker)
        nursery.start_soon(Mover(broker).run)
        nursery.start_soon(run_plans, broker)
        nursery.start_soon(Autonomy(broker).run)


async def _report_missing(membership: Membership) -> None:
    while True:
        await trio.sleep(MISSING_TOLD_EVERY_S)
        if missing := membership.missing():  # Else it waits for room.
            log.warning(log_events.WAITING_FOR_NODES, missing=missing)


async def _form(broker: Broker, members: dict[int, str]) -> None:
    """Give the cluster its identity, once; every node writes down what was committed."""
    metadata = broker.metadata
    rng = broker.env.rng("cluster")
    while not metadata.is_known:
        if broker.controller == broker.node.node:
            voters = {
                NodeId(n): DirectoryId(members[n]) for n in sorted(members)[:METADATA_VOTERS_MAX]
            }
            command = FormCluster(
                cluster_id=f"{rng.getrandbits(64):016x}",
                voters=voters,
                feature_level=broker.config.feature_level_max,
            )
            try:
                await metadata.execute(
                    command, timeout_ms=REGISTER_TIMEOUT_MS, safe_to_repeat=False
                )
            except LogdError as error:
                log.info(log_events.METADATA_REFUSED, reason=str(error))
        with trio.move_on_after(FORM_LOOK_S):
            await metadata.changed()
    cluster_id = metadata.state.cluster_id
    assert cluster_id is not None
    if broker.membership.cluster_id is None:
        directory = broker.membership.directory

        async def note() -> None:
            await broker.env.run_blocking(directory.set_cluster_id, cluster_id)

        await when_there_is_room(METADATA_GROUP, note)
        log.info(log_events.CLUSTER_FORMED, cluster_id=cluster_id)


async def _register(broker: Broker) -> None:
    """Tell the cluster where this broker is reached, until it has been committed."""
    while True:
        command = broker.metadata.state.in_order(_registration(broker))
        try:
            await broker.metadata.execute(
                command, timeout_ms=REGISTER_TIMEOUT_MS, safe_to_repeat=True
            )
        except RefusedError:
            raise  # For ever so: this broker may not be part of the cluster as it is.
        except LogdError as error:
            if broker.metadata.state.in_order(command) != command:
                continue  # Its knowledge was of the past, as it usually is at a start.
            log.warning(log_events.METADATA_REFUSED, reason=str(error))
            if broker.node.unheard_hosts():
                broker.membership.note_outdated()  # Not here, but there: a member can register it.
            await trio.sleep(REGISTER_RETRY_S)
        else:
            log.info(log_events.BROKER_REGISTERED, node=command.node, address=str(broker.address))
            return


def _registration(broker: Broker) -> RegisterBroker:
    config = broker.config
    return RegisterBroker(
        node=config.node_id,
        directory_id=broker.membership.directory.directory_id,
        incarnation=broker.node.incarnation,
        host=broker.address.host,
        port=broker.address.port,
        peer_host=broker.peer_address.host,
        peer_port=broker.peer_address.port,
        failure_domain=config.failure_domain,
        rack=config.rack,
        version=__version__,
        features={LEVEL_MIN: FEATURE_LEVEL_MIN, LEVEL_MAX: config.feature_level_max},
    )


async def _serve_clients(listener: Listener, broker: Broker) -> None:
    """Accept clients until cancelled."""
    sessions = broker.sessions

    async def serve(session: Session) -> None:
        try:
            await session.run()
        finally:
            del sessions[session]

    async with trio.open_nursery() as nursery:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if broker.is_stopping:
                    return
                # Out of descriptors, usually: those that are connected go on.
                if not broker.node.fitness.is_crowded:  # Said once, and not ten times a second.
                    log.error(log_events.ACCEPT_FAILED, reason=str(error))
                if not broker.newcomers.make_room():
                    broker.node.fitness.note_crowd()
                    await trio.sleep(ACCEPT_RETRY_S)
                continue
            if len(sessions) >= CONNECTIONS_MAX and not broker.newcomers.make_room():
                log.warning(
                    log_events.CLIENT_REFUSED,
                    address=stream.peer_name,
                    reason=f"{CONNECTIONS_MAX} connections, the most there may be",
                )
                stream.abort()
                continue
            broker.connections_accepted += 1
            session = Session(stream, broker)
            sessions[session] = None
            nursery.start_soon(serve, session)


async def _hand_over(broker: Broker) -> None:
    """Give leadership away, as far as there is somebody to take it, within a bounded time.

    Clients are served meanwhile, and a little longer: who asks here learns where to go on, which
    takes less time than to find out after a lost connection.
    """
    node = broker.node
    for group in list(node.groups.values()):
        if group.is_leader:
            group.post(TransferLeadership(None))
    with trio.move_on_after(HAND_OVER_S):
        while any(
            # One that is held has not been told yet.
            (g.is_leader and (g.core.is_transferring or g.is_held)) or g.leadership.awaits_successor
            for g in list(node.groups.values())
        ):
            await node.leadership_news(HAND_OVER_POLL_S)
    if broker.sessions:
        await trio.sleep(FAREWELL_S)
