"""The metadata log, applied: every broker's copy of the cluster's state.

Group 0 is replicated like any partition.  This service applies its committed commands, in
order, to ``MetadataState``, so that every broker answers metadata requests from memory.
Commands are proposed by its leader, the controller; other brokers forward to it.  The
result of a command is what applying it returned here, at the offset it was committed at:
nothing but that offset travels back.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import structlog
import trio

from logd import __version__
from logd.broker import log_events
from logd.errors import (
    ERROR_BY_CODE,
    CorruptionError,
    LeadershipLostError,
    LogdError,
    NotLeaderError,
    OverloadedError,
    RequestError,
    RequestTimeoutError,
    UnavailableError,
    UnknownServerError,
    UnsupportedVersionError,
)
from logd.limits import (
    COMMANDS_PER_SNAPSHOT,
    FEATURE_LEVEL,
    FEATURE_LEVEL_MIN,
    KIB,
    PRODUCER_IDS_PER_BLOCK,
)
from logd.metadata.commands import (
    AllocateProducerIds,
    Command,
    ReplicasRetired,
    decode_command,
    encode_command,
)
from logd.metadata.features import check_level, check_supported
from logd.metadata.state import MetadataState, ProducerIdBlock
from logd.record.batch import seal_opaque
from logd.record.header import HEADER_BYTES, BatchKind, split_batches
from logd.replication.group import Group
from logd.replication.peer_protocol import Forward, ForwardResult
from logd.types import METADATA_GROUP, NodeId, Offset

if TYPE_CHECKING:
    from logd.replication.node import Node

log = structlog.get_logger(__name__)

RESULTS_KEPT_MAX: Final = 1024
PIECE_BYTES: Final = 64 * KIB
"""Applied at once; then those who wait for the results take them."""

# They may take them while the next piece is applied.
assert 2 * (PIECE_BYTES // HEADER_BYTES) <= RESULTS_KEPT_MAX

FORWARDS_MAX: Final = 256
ANSWER_LOOK_S: Final = 0.2
RETRY_S: Final = 0.02
READ_AGAIN_S: Final = 1.0


class MetadataService:
    """Applies group 0 and carries commands to it."""

    def __init__(self, node: Node) -> None:
        self.state = MetadataState()
        """Another object once this broker was shipped state: not to be kept while waiting."""
        self._commands_since_snapshot = 0
        self._snapshot_offset = Offset(0)
        """Of the state that was kept last."""
        self._node = node
        self._group: Group | None = None
        self._applied = Offset(0)
        self._results: OrderedDict[Offset, object] = OrderedDict()
        self._progress = trio.Event()
        self._commits = trio.Event()
        self._forwards: dict[int, tuple[trio.Event, list[ForwardResult]]] = {}
        # An answer meant for an earlier life of this broker must not be taken for ours.
        self._next_forward = node.incarnation
        self._forwards_served = 0
        self._producer_ids = range(0)
        """What is left of the block this broker was given."""
        self._producer_ids_lock = trio.Lock()
        node.on_forward = self._on_forward
        node.on_forward_result = self._on_forward_result

    # --- applying -----------------------------------------------------------------------------

    @property
    def applied_offset(self) -> Offset:
        return self._applied

    @property
    def is_known(self) -> bool:
        """The cluster is formed and this broker has applied that."""
        return self.state.cluster_id is not None

    def brokers_down(self) -> tuple[NodeId, ...]:
        """The registered brokers that are not alive, as far as this one hears."""
        known = self.state.brokers
        return tuple(broker.node for broker in known if not self._node.is_up(broker.node))

    def unfit_disks(self) -> tuple[NodeId, ...]:
        """The registered brokers whose disks are full or failing, as far as this one hears."""
        fitness = self._node.fitness
        unfit = fitness.full_disks.keys() | fitness.failing_disks.keys()
        return tuple(broker.node for broker in self.state.brokers if broker.node in unfit)

    def attach(self, group: Group) -> None:
        """Follow ``group``, which is group 0."""
        assert group.group_id == METADATA_GROUP
        self._group = group
        group.application = self
        group.watch(self)

    def on_commit(self, commit_offset: Offset) -> None:
        self._commits.set()

    def on_leadership_lost(self) -> None:
        pass

    async def changed(self) -> None:
        """Wait until something was applied."""
        await self._progress.wait()

    async def reach(self, offset: Offset, timeout_s: float) -> None:
        """Wait until everything below ``offset`` is applied here.

        Raises:
            UnavailableError: it was not within ``timeout_s``; another broker may be ahead.
        """
        with trio.move_on_after(timeout_s):
            while self._applied < offset:
                await self._progress.wait()
        if self._applied < offset:
            raise UnavailableError(
                f"node {self._node.node} has applied the metadata log up to {self._applied}, "
                f"the question is about {offset}: it is cut off or catching up"
            )

    async def run(self) -> None:
        """Apply committed commands until cancelled."""
        assert self._group is not None
        group = self._group
        await self._restore(group)
        while True:
            if self._applied < group.commit_offset:
                try:
                    if self._applied < group.log.start_offset:
                        self._take_over(*await self._node.repairer.restore_application(group))
                    else:
                        await self._apply_some(group)
                except (OSError, LogdError) as error:
                    self._check_version()
                    # Nothing is skipped: this broker's picture grows old, its partitions serve.
                    log.error(
                        log_events.METADATA_UNREADABLE, offset=self._applied, reason=str(error)
                    )
                    await trio.sleep(READ_AGAIN_S)
                else:
                    await self._keep_state_now_and_then(group)
                if self._applied < group.commit_offset:
                    await trio.lowlevel.checkpoint()
                continue
            self._commits = trio.Event()
            await self._commits.wait()

    def _check_version(self) -> None:
        """What cannot be read may be what a newer version has written: who was given an older one
        after the level was raised would wait for its registration to be refused.

        Raises:
            InvalidRequestError: it was, and so this broker may not be part of the cluster.
        """
        who = f"broker {self._node.node} (logd {__version__})"
        check_supported(who, (FEATURE_LEVEL_MIN, FEATURE_LEVEL), self.state.feature_level)

    async def _apply_some(self, group: Group) -> None:
        begin = self._applied
        found = await group.reader.read_committed(begin, PIECE_BYTES)
        assert found is not None
        if self._applied != begin:
            return  # A snapshot was installed meanwhile.
        try:
            for header, view in split_batches(memoryview(b"".join(found.buffers))):
                if header.is_control:
                    self.state.advance(header.end_offset)
                else:
                    self._apply(bytes(view[HEADER_BYTES:]), header.base_offset)
                self._applied = header.end_offset
        finally:
            self._tell_progress()

    def _tell_progress(self) -> None:
        progress, self._progress = self._progress, trio.Event()
        progress.set()

    def _apply(self, encoded: bytes, offset: Offset) -> None:
        self._commands_since_snapshot += 1
        result: object
        try:
            result = self.state.apply(decode_command(encoded), offset)
        except RequestError as error:
            result = error
            log.info(log_events.METADATA_REFUSED, offset=offset, reason=str(error))
        self._results[offset] = result
        if len(self._results) > RESULTS_KEPT_MAX:
            self._results.popitem(last=False)

    # --- snapshots ----------------------------------------------------------------------------

    async def _restore(self, group: Group) -> None:
        """Begin with the state that was kept last, if any can be read; then comes the log."""
        found = await group.checkpoints.load_application()
        if found is not None:
            self._take_over(*found)

    def on_installed(self, offset: Offset, payload: bytes) -> None:
        """The log begins anew further on, with this state."""
        self._take_over(offset, payload)

    def _take_over(self, offset: Offset, payload: bytes) -> None:
        if offset <= self._applied:
            return  # This broker was further already.
        state = MetadataState.restore(payload)
        if state.version != offset:
            raise CorruptionError(
                f"the metadata kept for offset {offset} are those of {state.version}"
            )
        self.state = state
        self._applied = self._snapshot_offset = offset
        self._commands_since_snapshot = 0
        self._tell_progress()

    async def _keep_state_now_and_then(self, group: Group) -> None:
        if self._commands_since_snapshot < COMMANDS_PER_SNAPSHOT:
            return
        try:
            await self._keep_state(group)
        except (OSError, LogdError) as error:
            # Tried again after as many commands; until then the log that it would spare stays.
            log.warning(log_events.METADATA_NOT_KEPT, offset=self._applied, reason=str(error))

    async def _keep_state(self, group: Group) -> None:
        """Keep the state on the disk, and drop the log below the state before it.

        One state's worth of commands is left to those who lag, who then need no snapshot.
        """
        tail_start, offset = self._snapshot_offset, self._applied
        self._commands_since_snapshot = 0
        await group.checkpoints.save_application(offset, self.state.snapshot())
        self._snapshot_offset = max(self._snapshot_offset, offset)
        trash = self._node.membership.directory.trash_path
        if await group.upkeep.trim_behind_state(tail_start, trash):
            start = group.log.start_offset
            log.info(log_events.METADATA_TRIMMED, start=start, offset=self._applied)

    async def _result_of(self, offset: Offset) -> object:
        while self._applied <= offset:
            await self._progress.wait()
        try:
            result = self._results[offset]
        except KeyError:
            raise UnknownServerError(f"the result of command {offset} is no longer known") from None
        if isinstance(result, LogdError):
            raise result
        return result

    # --- proposing ----------------------------------------------------------------------------

    async def execute(self, command: Command, *, timeout_ms: int, safe_to_repeat: bool) -> object:
        """Commit ``command`` and return what applying it returned.

        Args:
            timeout_ms: give up after this long.
            safe_to_repeat: propose again when it is unknown whether an attempt took effect.

        Raises:
            RequestError: the command was refused, or could not be committed in time
                (``may_have_applied`` tells whether it still may be).
        """
        encoded = encode_command(command)
        is_in_doubt = False
        """An attempt was made, and it is not known that it came to nothing."""
        try:
            with trio.fail_after(timeout_ms / 1000):
                while True:
                    was_in_doubt, is_in_doubt = is_in_doubt, True
                    leader, _ = self._node.leader_of(METADATA_GROUP)
                    try:
                        self._check_level(command, as_controller=leader == self._node.node)
                        offset = await self._commit(command, encoded, timeout_ms)
                    except LogdError as error:
                        if not error.retriable:
                            raise
                        if error.may_have_applied and not safe_to_repeat:
                            raise
                        is_in_doubt = was_in_doubt or error.may_have_applied
                        await self._node.leadership_news(RETRY_S)
                        continue
                    return await self._result_of(offset)
        except trio.TooSlowError:
            pass
        if is_in_doubt:
            raise RequestTimeoutError(f"not known to be committed within {timeout_ms} ms")
        leader, _ = self._node.leader_of(METADATA_GROUP)
        if leader is None:
            raise UnavailableError(
                "no controller: a majority of the metadata voters must be alive; node "
                f"{self._node.node} hears {self._node.peers_up() or 'none of its peers'}"
                f"{self._who_looks_elsewhere()}"
            )
        raise RequestTimeoutError(f"the controller, node {leader}, did not answer in time")

    def _who_looks_elsewhere(self) -> str:
        hosts = ", ".join(map(str, self._node.unheard_hosts()))
        if not hosts:
            return ""
        return (
            f"; {hosts} let it in and are not heard: they hang, or look for it at an address that "
            "it had before"
        )

    async def catch_up(self, timeout_ms: int) -> None:
        """Return once all that was committed before this call is applied here.

        Raises:
            RequestError: that is not known within the time.
        """
        # Commits a command that changes nothing: it is applied behind all the others.
        nothing = ReplicasRetired(node=self._node.node, groups=())
        await self.execute(nothing, timeout_ms=timeout_ms, safe_to_repeat=True)

    def _check_level(self, command: Command, *, as_controller: bool) -> None:
        """Refuse what a broker of an older version does not know: it could not go on behind that.

        Raises:
            UnsupportedVersionError: the cluster is at too low a level.
            UnavailableError: this controller was elected just now, and its state is from before:
                who joins would take its refusal for a last word.
        """
        try:
            check_level(command, self.state.feature_level)
        except UnsupportedVersionError as error:
            group = self._group
            is_current = (
                group is not None and group.is_ready and self._applied >= group.commit_offset
            )
            if as_controller and not is_current:
                raise UnavailableError(
                    f"the controller, node {self._node.node}, has yet to apply what was committed "
                    "before it led"
                ) from error
            raise

    async def _commit(self, command: Command, encoded: bytes, timeout_ms: int) -> Offset:
        leader, _ = self._node.leader_of(METADATA_GROUP)
        if leader == self._node.node:
            return await self._propose(command, timeout_ms)
        if leader is None:
            raise NotLeaderError("no controller is known")
        return await self._forward(leader, encoded, timeout_ms)

    async def _propose(self, command: Command, timeout_ms: int) -> Offset:
        if self._group is None:
            raise UnavailableError("this broker is starting")
        command = self.state.counting(command)
        command = self.state.avoiding(command, self.brokers_down(), self.unfit_disks())
        encoded = encode_command(command)
        now_ms = self._node.env.wall_clock_ms()
        batch = seal_opaque(encoded, kind=BatchKind.DATA, timestamp_ms=now_ms)
        placed = await self._group.commit(batch, self._node.now_ms() + timeout_ms)
        return placed.base_offset

    # --- forwarding ---------------------------------------------------------------------------

    async def _forward(self, leader: NodeId, encoded: bytes, timeout_ms: int) -> Offset:
        request_id = self._next_forward
        self._next_forward += 1
        answered = trio.Event()
        answers: list[ForwardResult] = []
        self._forwards[request_id] = (answered, answers)
        try:
            message = Forward(request_id=request_id, command=encoded, timeout_ms=timeout_ms)
            interruptions = self._node.interruptions(leader)
            if not self._node.send_peer(leader, message):
                raise NotLeaderError(f"no connection to the controller, node {leader}")
            while not answered.is_set():
                was_interrupted = self._node.interruptions(leader) != interruptions
                with trio.move_on_after(ANSWER_LOOK_S):
                    await answered.wait()
                if answered.is_set():
                    break
                # The answer is lost with the leader; its successor is asked anew.
                if self._node.leader_of(METADATA_GROUP)[0] != leader:
                    raise LeadershipLostError(f"node {leader} stopped being the controller")
                if was_interrupted:  # And it has not come on the next connection either.
                    raise LeadershipLostError(
                        f"a connection to the controller, node {leader}, was lost, and "
                        "perhaps its answer with it"
                    )
        finally:
            del self._forwards[request_id]
        answer = answers[0]
        if answer.offset is not None:
            return Offset(answer.offset)
        error_type = ERROR_BY_CODE.get(answer.error_code, UnknownServerError)
        raise error_type(answer.error)

    def _on_forward_result(self, result: ForwardResult) -> None:
        waiting = self._forwards.get(result.request_id)
        if waiting is not None:
            waiting[1].append(result)
            waiting[0].set()

    def _on_forward(self, source: NodeId, forward: Forward) -> None:
        if self._forwards_served >= FORWARDS_MAX:
            error = OverloadedError(f"{FORWARDS_MAX} forwarded commands are under way")
            self._answer(source, forward, error)
            return
        self._forwards_served += 1
        self._node.start_soon(self._serve_forward, source, forward)

    async def _serve_forward(self, source: NodeId, forward: Forward) -> None:
        try:
            command = decode_command(forward.command)
            self._check_level(command, as_controller=True)
            offset = await self._propose(command, forward.timeout_ms)
        except LogdError as error:
            self._answer(source, forward, error)
        else:
            self._node.send_peer(
                source, ForwardResult(request_id=forward.request_id, offset=offset)
            )
        finally:
            self._forwards_served -= 1

    def _answer(self, source: NodeId, forward: Forward, error: LogdError) -> None:
        self._node.send_peer(
            source,
            ForwardResult(request_id=forward.request_id, error_code=error.code, error=str(error)),
        )

    # --- producer ids -------------------------------------------------------------------------

    async def next_producer_id(self, timeout_ms: int) -> int:
        """A producer id nobody else has; blocks of them come from the metadata log.

        Raises:
            RequestError: there is none to be had within the time.
        """
        try:
            with trio.fail_after(timeout_ms / 1000):
                return await self._take_producer_id(timeout_ms)
        except trio.TooSlowError:
            raise UnavailableError(f"no producer ids within {timeout_ms} ms") from None

    async def _take_producer_id(self, timeout_ms: int) -> int:
        async with self._producer_ids_lock:
            if not self._producer_ids:
                block = await self.execute(
                    AllocateProducerIds(node=self._node.node, count=PRODUCER_IDS_PER_BLOCK),
                    timeout_ms=timeout_ms,
                    safe_to_repeat=True,
                )
                assert isinstance(block, ProducerIdBlock)
                self._producer_ids = range(block.start, block.end)
            first, self._producer_ids = self._producer_ids[0], self._producer_ids[1:]
            return first
