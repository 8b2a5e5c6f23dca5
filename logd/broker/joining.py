"""How a broker joins a cluster that exists, and how all of them learn of it.

A broker that is started with the peer address of any member asks it to be registered.  The
member has that committed in the metadata log, and answers who votes there and who founded the
cluster; the controller makes the new broker a learner of the metadata log, from which it
learns all the rest.  From then on it is a broker like any other.

What brokers know of one another comes from the metadata: who may connect, with which data
directory, and where to find it.  The list that a cluster was founded with only says where to
begin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import structlog
import trio

from logd.broker import log_events
from logd.broker.metadata_voters import choose_voters
from logd.errors import (
    ForeignDirectoryError,
    FrameTooLargeError,
    LogdError,
    ProtocolError,
    RefusedError,
)
from logd.limits import (
    FRAME_UNAUTHENTICATED_BYTES_MAX,
    HANDSHAKE_TIMEOUT_S,
    RECEIVE_BYTES,
)
from logd.metadata.commands import RegisterBroker, decode_command, encode_command
from logd.replication.inbox import first_frame
from logd.replication.peer_protocol import (
    OUR_VERSIONS,
    PEER_PROTOCOL_VERSION,
    PEER_PROTOCOL_VERSION_MIN,
    JoinRequest,
    JoinResponse,
    KnownPeer,
    PeerKind,
    version_in_common,
    versions_text,
)
from logd.replication.room_waits import when_there_is_room
from logd.types import METADATA_GROUP, DirectoryId, HostPort, NodeId
from logd.wire.frame import FrameDecoder, decode_message, encode_message

if TYPE_CHECKING:
    from logd.broker.broker import Broker
    from logd.replication.group import Group

log = structlog.get_logger(__name__)

RETRY_S: Final = 0.5
ASK_AGAIN_S: Final = 5.0
JOIN_TIMEOUT_MS: Final = 5_000
ADJUST_INTERVAL_S: Final = 1.0
"""How often the controller looks whether other brokers should vote in the metadata log."""

_WHICH_ADDRESS: Final = (
    "it has to be the address where a member listens for brokers, its peer_listen"
)

assert RECEIVE_BYTES > FRAME_UNAUTHENTICATED_BYTES_MAX


# --- asking -----------------------------------------------------------------------------


async def join_cluster(broker: Broker, command: RegisterBroker) -> None:
    """Ask until a member has had this broker registered; remember what cluster that is, once
    there is room for that.

    Raises:
        ForeignDirectoryError: the cluster refuses this broker for good; says why.
    """
    directory = broker.membership.directory
    address = _address_to_join(broker)
    told = None
    while isinstance(response := await _ask(broker, address, command), str):
        if response != told:  # It is asked twice a second, for as long as it takes.
            told = response
            _tell_failure(address, response)
        await trio.sleep(RETRY_S)
    members, cluster_id = response.members, response.cluster_id

    async def note() -> None:
        await broker.env.run_blocking(directory.form, members)
        await broker.env.run_blocking(directory.set_cluster_id, cluster_id)

    await when_there_is_room(METADATA_GROUP, note)
    log.info(log_events.CLUSTER_JOINED, cluster_id=cluster_id)
    # Not before: those that have not heard of us yet go by the cluster that we greet them with.
    _make_all_known(broker, response.peers)


async def ask_until_known(broker: Broker, command: RegisterBroker) -> None:
    """Learn of those who vote in the metadata log, while that log has not told it yet.

    Asked at least once: whoever is told to join a cluster with the directory of another one shall
    hear of it, and not go on as a member of that.
    """
    address = _address_to_join(broker)
    await _ask_and_tell(broker, address, command)
    while not broker.metadata.is_known:
        with trio.move_on_after(ASK_AGAIN_S):
            while not broker.metadata.is_known:
                await broker.metadata.changed()
        if not broker.metadata.is_known:
            await _ask_and_tell(broker, address, command)


async def ask_when_outdated(broker: Broker, command: RegisterBroker) -> None:
    """Learn where those are who vote in the metadata log, from members that are known, whenever
    there is a sign that this is of the past.  Until cancelled.

    Brokers may have joined, or moved, while this one was down or cut off.  If one of them leads
    the metadata log by now, that log cannot tell of it: it would come over a link that is refused,
    or be answered to where nobody listens.  Whoever is asked has this broker registered, too: if it
    is the one that has moved, the others learn where it is.
    """
    while True:
        await broker.membership.outdated()
        for address in broker.node.addresses_by_life():
            try:
                if await _ask_and_tell(broker, address, command):
                    break
            except ForeignDirectoryError as error:
                _tell_failure(address, str(error))
        await trio.sleep(ASK_AGAIN_S)


def _address_to_join(broker: Broker) -> HostPort:
    address = broker.config.join
    assert address is not None
    return address


def _tell_failure(address: HostPort, reason: str) -> None:
    log.warning(log_events.JOIN_FAILED, address=str(address), reason=reason)


async def _ask_and_tell(broker: Broker, address: HostPort, command: RegisterBroker) -> bool:
    """One attempt; whether it came to something, and in the log if it did not."""
    response = await _ask(broker, address, command)
    if isinstance(response, str):
        _tell_failure(address, response)
        return False
    _make_all_known(broker, response.peers)
    return True


async def _ask(broker: Broker, address: HostPort, command: RegisterBroker) -> JoinResponse | str:
    """One attempt; why it came to nothing, for now, if it did."""
    try:
        with trio.fail_after(HANDSHAKE_TIMEOUT_S):
            response = await _exchange(broker, address, command, None)
            if response.registered is not None:
                response = await _exchange(broker, address, command, response.registered)
    except (OSError, LogdError, trio.TooSlowError) as error:
        return str(error) or "no answer"
    if response.refused:
        if response.is_final:
            raise ForeignDirectoryError(f"the cluster at {address} refuses: {response.refused}")
        return response.refused
    return response


async def _exchange(
    broker: Broker, address: HostPort, command: RegisterBroker, instead_of: int | None
) -> JoinResponse:
    stream = await broker.env.network.connect(address)
    try:
        request = JoinRequest(
            protocol=PEER_PROTOCOL_VERSION,
            protocol_min=PEER_PROTOCOL_VERSION_MIN,
            command=encode_command(command),
            cluster_id=broker.membership.cluster_id,
            instead_of=instead_of,
        )
        await stream.send([encode_message(PeerKind.JOIN_REQUEST, request, 0)])
        decoder = FrameDecoder(FRAME_UNAUTHENTICATED_BYTES_MAX, long_messages=True)
        frame = await first_frame(stream, decoder)
    except (ProtocolError, FrameTooLargeError) as error:
        raise ProtocolError(
            f"{address} does not answer brokers ({error}): {_WHICH_ADDRESS}"
        ) from error
    finally:
        stream.abort()
    if frame is None:
        raise ProtocolError(f"{address} closed the connection: {_WHICH_ADDRESS}")
    if frame.kind != PeerKind.JOIN_RESPONSE:
        raise ProtocolError(f"{address} does not answer brokers: {_WHICH_ADDRESS}")
    return decode_message(JoinResponse, frame.header)


# --- answering --------------------------------------------------------------------------


async def answer_join(broker: Broker, request: JoinRequest) -> JoinResponse:
    """Have a broker registered that wants to join, and tell it where to begin."""
    if version_in_common(request.protocol, request.protocol_min) is None:
        return JoinResponse(
            refused=f"peer protocol {versions_text(request.protocol, request.protocol_min)}, "
            f"broker {broker.node.node} speaks {OUR_VERSIONS}",
            is_final=True,
        )
    members = broker.membership.directory.members
    if members is None or not broker.metadata.is_known:
        return JoinResponse(refused=f"broker {broker.node.node} is no member of a cluster yet")
    ours = broker.metadata.state.cluster_id
    if request.cluster_id not in (None, ours):
        return JoinResponse(
            refused=f"the data directory belongs to cluster {request.cluster_id}, this is {ours}: "
            "start it with an empty directory, or without --join if it shall stay where it is",
            is_final=True,
        )
    try:
        command = decode_command(request.command)
        if not isinstance(command, RegisterBroker):
            raise ProtocolError(f"{type(command).__name__} is no registration")
        command = broker.metadata.state.in_order(command)
        if command.instead_of not in (None, 0, command.incarnation, request.instead_of):
            # Whether it was started since this was sent, only it can tell.
            return JoinResponse(
                refused=f"broker {command.node} is registered: the request is to say that it knows",
                registered=command.instead_of,
            )
        await broker.metadata.execute(command, timeout_ms=JOIN_TIMEOUT_MS, safe_to_repeat=True)
    except LogdError as error:
        return JoinResponse(refused=str(error), is_final=isinstance(error, RefusedError))
    cluster_id = broker.metadata.state.cluster_id
    assert cluster_id is not None
    return JoinResponse(cluster_id=cluster_id, members=members, peers=_where_to_begin(broker))


def _where_to_begin(broker: Broker) -> dict[int, KnownPeer]:
    """Those who vote in the metadata log: one of them will lead the new broker's replica."""
    state = broker.metadata.state
    group = broker.node.groups[METADATA_GROUP]
    configuration = group.configuration
    found: dict[int, KnownPeer] = {}
    for node in dict.fromkeys(configuration.voters + configuration.voters_outgoing):
        known = state.broker(node)
        if known is not None:
            found[node] = KnownPeer(
                host=known.peer_address.host,
                port=known.peer_address.port,
                directory_id=known.directory_id,
            )
    return found


# --- what all of them learn -------------------------------------------------------------


async def follow_brokers(broker: Broker) -> None:
    """Keep the links to the other brokers equal to the metadata, until cancelled."""
    node, membership = broker.node, broker.membership
    while True:
        state = broker.metadata.state
        for other in state.brokers:
            if other.node != node.node:
                _make_known(broker, other.node, other.directory_id, other.peer_address)
        for removed in state.removed_brokers.values():
            membership.remove(removed.node)
            node.shut_out(removed.node)
        await broker.metadata.changed()


def _make_all_known(broker: Broker, peers: Mapping[int, KnownPeer]) -> None:
    for node, peer in peers.items():
        if node != broker.node.node:
            address = HostPort(peer.host, peer.port)
            _make_known(broker, NodeId(node), DirectoryId(peer.directory_id), address)


def _make_known(broker: Broker, node: NodeId, directory_id: DirectoryId, address: HostPort) -> None:
    broker.membership.register(node, directory_id)
    if node not in broker.config.cluster:
        broker.node.set_peer(node, address)


async def keep_metadata_members(broker: Broker) -> None:
    """As the controller: let every broker follow the metadata log, and enough of them vote."""
    while True:
        group = broker.node.groups.get(METADATA_GROUP)
        if group is not None and group.is_ready:
            try:
                await _adjust_members(broker, group)
            except LogdError as error:
                log.info(log_events.METADATA_REFUSED, reason=str(error))
        with trio.move_on_after(ADJUST_INTERVAL_S):
            await broker.metadata.changed()


async def _adjust_members(broker: Broker, group: Group) -> None:
    current = group.configuration
    state = broker.metadata.state
    domains = {other.node: other.failure_domain for other in state.brokers}
    before = [node for node in current.voters if node not in state.removed_brokers]
    caught_up = [p.node for p in group.members.progress() if p.is_caught_up and not p.is_voter]
    heirs = [node for node in caught_up if node in domains and broker.node.is_up(node)]
    lost = broker.lost_brokers
    voters = choose_voters(before, heirs, domains, lost=lost, controller=broker.node.node)
    for node, heir in zip(before, voters, strict=False):
        if node != heir and node in lost:
            log.warning(log_events.METADATA_VOTER_REPLACED, lost=node, heir=heir)
    learners = [node for node in domains if node not in voters]
    is_as_wanted = voters == list(current.voters) and sorted(learners) == sorted(current.learners)
    if voters and not is_as_wanted and not current.is_joint:
        await group.members.change_configuration(tuple(voters), tuple(learners))
