"""The consensus core against scripts that someone who knows Raft, not Python, can review.

``testdata/*.txt`` hold commands and what they print.  Only ``nodes`` and ``log`` set up;
everything else is one event or the delivery of one message.  Time stands still but for
``time``; each message waits on its link until it is delivered, dropped or doubled.

    nodes 1 2 3 [learners=4,5] [spares=6] [window=BYTES] [request=BATCHES]
                                  a cluster, and nodes that have no part in it;
                                  detectors have heard nobody yet; a batch has 100
                                  bytes, a request as many batches as are given (2)
    log N TERM,TERM,… [term=T]    N's log as recovered: one offset per batch; its hard state
    up N N… / down N by M…        every node named (or M…) hears, or gives up, N…
    meet                          every node hears and is connected to every other
    time MS                       time moves by MS, in order of deadlines: who is due ticks
    deliver A->B [all]            the oldest message on the link, or all of them
    drop A->B [all] / double A->B / swap A->B
    settle [N…]                   deliver and sync, among N…, until nothing is left; prints
                                  no messages
    propose N COUNT               N appends COUNT batches of one offset each
    sync N / sync-begin N / sync-end N / sync-event N
    crash N [keep=K]              N loses its memory, and its unsynced batches but K
    reboot N [keep=K]             the same, and its machine has booted anew
    rest N… on=memory|disk        what acknowledgements are to rest on, as N… hears
    connect A->B                  A has a new connection to B
    disclaim A->B                 A tells B that it does not lead B's term
    change N voters=A,… [learners=B,…]
                                  N is asked for these members; a refusal is named
    trim N OFFSET                 N drops what lies below, and has its state as of its commit
    remove N                      N's replica is deleted, and a newcomer takes its place; what
                                  is on its way stays on its way
    read N / transfer N M / resign N
    show N…                       role, term, leader, log, offsets
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from logd.errors import RequestError
from logd.raft.core import RaftOptions
from logd.raft.messages import (
    AppendRequest,
    AppendResponse,
    BatchSpan,
    Configuration,
    DurabilityChosen,
    Event,
    HardState,
    LeaderDisclaimed,
    Message,
    Output,
    PeerConnected,
    PeerDown,
    PeerUp,
    ReadRequested,
    Resign,
    Role,
    Tick,
    TimeoutNow,
    TransferLeadership,
    VoteRequest,
    VoteResponse,
)
from logd.types import NodeId, Offset, Term
from tests.spec.replica import NO_OP, Batch, Disk, Envelope, Replica, Shipment, Value

FILES = sorted((Path(__file__).parent / "testdata").glob("*.txt"))
CASE = re.compile(r"^(?P<command>[a-z].*)\n----\n(?P<expected>(?:.+\n)*)", re.MULTILINE)

FACT = re.compile(
    r"\d+(:| commits| restarts| is contradicted| serves| refuses| installs| appends \S+ voters)"
)

SETTLE_ROUNDS_MAX = 200

Link = tuple[NodeId, NodeId]


class Interpreter:
    """The vocabulary of the spec files."""

    def __init__(self) -> None:
        self._now_ms = 0
        self._configuration = Configuration(())
        self._options = RaftOptions()
        self._batches_per_request = 2
        self._disks: dict[NodeId, Disk] = {}
        self._replicas: dict[NodeId, Replica] = {}
        self._links: dict[Link, deque[Envelope | Shipment]] = {}
        self._boots: dict[NodeId, int] = {}
        self._reads = 0

    def run(self, command: str) -> str:
        verb, *words = command.split()
        options = dict(word.split("=") for word in words if "=" in word)
        args = [word for word in words if "=" not in word]
        method = getattr(self, f"_do_{verb.replace('-', '_')}")
        lines = list(method(*args, **options))
        return "\n".join(lines or ["ok"]) + "\n"

    # --- setting up -------------------------------------------------------------------

    def _do_nodes(
        self,
        *names: str,
        learners: str = "",
        spares: str = "",
        window: str = "100000",
        request: str = "2",
    ) -> Iterator[str]:
        voters = _nodes(names)
        others = _nodes(spares.split(",")) if spares else ()
        followers = _nodes(learners.split(",")) if learners else ()
        self._configuration = Configuration(voters, followers)
        self._options = RaftOptions(window_bytes_max=int(window))
        self._batches_per_request = int(request)
        self._disks, self._replicas = {}, {}
        for node in voters + followers + others:
            self._disks[node] = Disk()
            self._start(node)
        self._links = {(a, b): deque() for a in self._disks for b in self._disks if a != b}
        yield from ()

    def _do_log(self, name: str, terms: str, term: str = "") -> Iterator[str]:
        node = _node(name)
        disk = self._disks[node] = Disk()
        for offset, batch_term in enumerate(terms.split(",")):
            span = BatchSpan(Offset(offset), Offset(offset + 1), Term(int(batch_term)))
            disk.batches.append(Batch(span, f"{batch_term}/{offset}"))
        last_term = disk.batches[-1].span.term
        disk.hard_state = HardState(Term(int(term)) if term else last_term, None)
        self._start(node)
        yield from ()

    # --- liveness and time ------------------------------------------------------------

    def _do_meet(self) -> Iterator[str]:
        for source, target in self._links:
            yield from self._feed(source, PeerUp(target))
        for source, target in self._links:
            yield from self._feed(source, PeerConnected(target))

    def _do_up(self, *names: str) -> Iterator[str]:
        for observer in _nodes(names):
            for peer in _nodes(names):
                if observer != peer:
                    yield from self._feed(observer, PeerUp(peer))

    def _do_down(self, name: str, _by: str, *observers: str) -> Iterator[str]:
        for observer in _nodes(observers):
            yield from self._feed(observer, PeerDown(_node(name)))

    def _do_time(self, ms: str) -> Iterator[str]:
        until_ms = self._now_ms + int(ms)
        while True:
            due = [
                (deadline_ms, node)
                for node, replica in self._replicas.items()
                if (deadline_ms := replica.core.deadline_ms) is not None and deadline_ms <= until_ms
            ]
            if not due:
                break
            deadline_ms, node = min(due)
            self._now_ms = max(self._now_ms, deadline_ms)
            yield from self._feed(node, Tick())
        self._now_ms = until_ms

    def _do_connect(self, link: str) -> Iterator[str]:
        source, target = _link(link)
        yield from self._feed(source, PeerConnected(target))

    def _do_disclaim(self, link: str) -> Iterator[str]:
        source, target = _link(link)
        term = self._replicas[target].core.term
        yield from self._feed(target, LeaderDisclaimed(source, term))

    def _do_crash(self, name: str, keep: str = "0") -> Iterator[str]:
        node = _node(name)
        tail = self._replicas[node].unsynced[: int(keep)]
        for link, queue in self._links.items():
            if node in link:
                queue.clear()
        self._start(node, tail)
        yield from ()

    def _do_reboot(self, name: str, keep: str = "0") -> Iterator[str]:
        self._boots[_node(name)] = self._boots.get(_node(name), 1) + 1
        yield from self._do_crash(name, keep)

    def _do_rest(self, *names: str, on: str) -> Iterator[str]:
        for node in _nodes(names):
            yield from self._feed(node, DurabilityChosen(in_memory=on == "memory"))

    # --- messages ---------------------------------------------------------------------

    def _do_deliver(self, link: str, how_many: str = "one") -> Iterator[str]:
        source, target = _link(link)
        queue = self._links[(source, target)]
        assert queue, f"nothing to deliver {link}"
        for _ in range(len(queue) if how_many == "all" else 1):
            yield from self._deliver(target, queue.popleft())

    def _do_drop(self, link: str, how_many: str = "one") -> Iterator[str]:
        queue = self._links[_link(link)]
        assert queue, f"nothing to drop {link}"
        for _ in range(len(queue) if how_many == "all" else 1):
            queue.popleft()
        yield from ()

    def _do_double(self, link: str) -> Iterator[str]:
        queue = self._links[_link(link)]
        queue.appendleft(queue[0])
        yield from ()

    def _do_swap(self, link: str) -> Iterator[str]:
        queue = self._links[_link(link)]
        queue[0], queue[1] = queue[1], queue[0]
        yield from ()

    def _do_settle(self, *names: str) -> Iterator[str]:
        among = _nodes(names) or tuple(self._replicas)
        for _ in range(SETTLE_ROUNDS_MAX):
            is_quiet = True
            for (source, target), queue in self._links.items():
                if queue and source in among and target in among:
                    is_quiet = False
                    yield from _facts(self._deliver(target, queue.popleft()))
            for node in among:
                if self._replicas[node].unsynced:
                    is_quiet = False
                    yield from _facts(self._do_sync(str(node)))
            if is_quiet:
                return
        yield "never settles"

    # --- the log ----------------------------------------------------------------------

    def _do_propose(self, name: str, count: str) -> Iterator[str]:
        for _ in range(int(count)):
            yield from self._append(self._replicas[_node(name)], "value")

    def _do_change(self, name: str, voters: str, learners: str = "") -> Iterator[str]:
        replica = self._replicas[_node(name)]
        followers = _nodes(learners.split(",")) if learners else ()
        try:
            first = replica.core.first_step_to(Configuration(_nodes(voters.split(",")), followers))
        except RequestError as error:
            yield f"{name} refuses: {type(error).__name__}"
        else:
            yield from self._append(replica, first)

    def _do_trim(self, name: str, offset: str) -> Iterator[str]:
        replica = self._replicas[_node(name)]
        replica.trim(Offset(int(offset)), replica.core.commit_offset)
        yield from ()

    def _do_remove(self, name: str) -> Iterator[str]:
        node = _node(name)
        promised = self._disks[node].hard_state
        self._disks[node] = Disk(replace(promised, is_newcomer=True))
        self._start(node)
        yield from ()

    def _do_sync(self, name: str) -> Iterator[str]:
        yield from self._do_sync_begin(name)
        yield from self._do_sync_end(name)
        yield from self._do_sync_event(name)

    def _do_sync_begin(self, name: str) -> Iterator[str]:
        assert self._replicas[_node(name)].begin_sync(), f"{name} has nothing to sync"
        yield from ()

    def _do_sync_end(self, name: str) -> Iterator[str]:
        assert self._replicas[_node(name)].complete_sync(), f"{name} is not syncing"
        yield from ()

    def _do_sync_event(self, name: str) -> Iterator[str]:
        node = _node(name)
        yield from self._feed(node, self._replicas[node].syncs_done.popleft())

    # --- requests ---------------------------------------------------------------------

    def _do_read(self, name: str) -> Iterator[str]:
        self._reads += 1
        yield from self._feed(_node(name), ReadRequested(self._reads))

    def _do_transfer(self, name: str, target: str) -> Iterator[str]:
        chosen = None if target == "any" else _node(target)
        yield from self._feed(_node(name), TransferLeadership(chosen))

    def _do_resign(self, name: str) -> Iterator[str]:
        yield from self._feed(_node(name), Resign(may_campaign=True))

    def _do_show(self, *names: str) -> Iterator[str]:
        for node in _nodes(names) or tuple(self._replicas):
            replica = self._replicas[node]
            core = replica.core
            terms = ",".join(str(batch.span.term) for batch in replica.batches) or "empty"
            start = f" start={core.log_start}" if core.log_start else ""
            newcomer = " newcomer" if core.hard_state.is_newcomer else ""
            newcomer += " doubtful" if core.is_doubtful else ""
            yield (
                f"{node}: {core.role.name} term={core.term} leader={core.leader} log={terms} "
                f"synced={core.synced_end} commit={core.commit_offset}{start}{newcomer}"
            )

    # --- what commands are made of ----------------------------------------------------

    def _start(self, node: NodeId, tail: list[Batch] | None = None) -> None:
        self._replicas[node] = Replica(
            node,
            self._configuration,
            self._disks[node],
            options=self._options,
            draw=lambda: 0.5,
            now_ms=self._now_ms,
            tail=tail or [],
            boot=self._boots.get(node, 1),
        )

    def _deliver(self, target: NodeId, envelope: Envelope | Shipment) -> Iterator[str]:
        shipment = envelope if isinstance(envelope, Shipment) else None
        yield from self._feed(target, envelope.event, envelope.batches, shipment)

    def _feed(
        self,
        node: NodeId,
        event: Event,
        batches: tuple[Batch, ...] = (),
        shipment: Shipment | None = None,
    ) -> Iterator[str]:
        replica = self._replicas[node]
        role = replica.core.role
        output, envelopes = replica.step(event, self._now_ms, batches, shipment)
        yield from self._describe(node, role, output, batches)
        yield from self._post(envelopes)
        if output.became_leader:
            yield from self._append(replica, NO_OP)
        if output.snapshot_wanted is not None:
            wanted = replica.ship(output.snapshot_wanted)
            yield from self._post([wanted] if wanted is not None else [])
        if replica.core.configuration_due is not None:
            yield from self._append(replica, replica.core.configuration_due)
        yield from self._post(replica.pump(self._batches_per_request, self._now_ms))

    def _append(self, replica: Replica, value: Value) -> Iterator[str]:
        role, offset = replica.core.role, replica.core.log_end
        output, envelopes = replica.append(value, 1, self._now_ms)
        shown = value if isinstance(value, str) else _describe_members(value)
        yield f"{replica.node} appends [{offset},{offset + 1}) {shown}"
        yield from self._describe(replica.node, role, output, ())
        yield from self._post(envelopes)
        yield from self._post(replica.pump(self._batches_per_request, self._now_ms))

    def _describe(
        self, node: NodeId, role: Role, output: Output, batches: tuple[Batch, ...]
    ) -> Iterator[str]:
        core = self._replicas[node].core
        if core.role is not role:
            yield f"{node}: {role.name} -> {core.role.name} term={core.term}"
        if output.send_now and output.persist is not None:
            yield f"{node} sends before it persists"
        if output.persist is not None:
            boot = f" boot={output.persist.rests_on}" if output.persist.rests_on else ""
            vote = output.persist.voted_for
            yield f"{node} persists term={output.persist.term} vote={vote}{boot}"
        if output.restarted:
            yield f"{node} restarts the group"
        if output.contradicted:
            yield f"{node} is contradicted"
        if output.truncate_to is not None:
            yield f"{node} truncates to {output.truncate_to}"
        if output.install_snapshot:
            yield f"{node} installs a log from {core.log_start}"
        if output.append_from is not None:
            new = batches[output.append_from :]
            yield f"{node} writes [{new[0].span.base_offset},{new[-1].span.end_offset})"
        if output.commit_offset is not None:
            yield f"{node} commits {output.commit_offset}"
        for read_id, offset in output.reads_confirmed:
            yield f"{node} serves read {read_id} at {offset}"
        for read_id in output.reads_failed:
            yield f"{node} refuses read {read_id}"

    def _post(self, envelopes: Sequence[Envelope | Shipment]) -> Iterator[str]:
        for envelope in envelopes:
            message = envelope.message
            self._links[(message.source, message.target)].append(envelope)
            yield f"{message.source}->{message.target} {_describe_message(message)}"


def _describe_members(configuration: Configuration) -> str:
    voters = ",".join(map(str, configuration.voters))
    before = ",".join(map(str, configuration.voters_outgoing))
    learners = ",".join(map(str, configuration.learners))
    between = f" from {before}" if before else ""
    return f"voters {voters}{between}" + (f" learners {learners}" if learners else "")


def _describe_message(message: Message | Shipment) -> str:
    match message:
        case Shipment():
            span = f"from {message.event.start_offset}, state at {message.state_offset}"
            return f"Snapshot term={message.event.term} {span}"
        case VoteRequest():
            kind = "PreVote" if message.pre_vote else "Vote"
            waived = " transfer" if message.transfer else ""
            log = f"{message.last_term}/{message.end_offset}"
            restart = " restart" if message.restart else ""
            return f"{kind}Request term={message.term} log={log}{waived}{restart}"
        case VoteResponse():
            kind = "PreVote" if message.pre_vote else "Vote"
            answer = "granted" if message.granted else "refused"
            doubt = " doubtful" if message.doubtful else ""
            return f"{kind}Response term={message.term} {answer}{doubt}"
        case AppendRequest():
            span = f"[{message.start_offset},{message.end_offset})"
            read = f" round={message.round}" if message.round else ""
            notice = "" if message.expects_answer else " notice"
            whole = f" whole={message.whole_end}" if message.doubt else ""
            return (
                f"Append term={message.term} {span} prev={message.prev_term} "
                f"commit={message.commit_offset}{read}{notice}{whole}"
            )
        case AppendResponse(accepted=True):
            read = f" round={message.round}" if message.round else ""
            ends = f"synced={message.synced_end} received={message.received_end}"
            held = f" held={message.held_end}" if message.held_end else ""
            doubt = " doubtful" if message.doubt else ""
            return f"Accepted term={message.term} {ends}{held}{doubt}{read}"
        case AppendResponse():
            read = f" round={message.round}" if message.round else ""
            conflict = f"{message.conflict_term}/{message.conflict_end}"
            doubt = " doubtful" if message.doubt else ""
            return f"Refused term={message.term} conflict={conflict}{doubt}{read}"
        case TimeoutNow():
            return f"TimeoutNow term={message.term}"


def _facts(lines: Iterator[str]) -> Iterator[str]:
    """Roles, commits, reads, members: what is left when messages are taken for granted."""
    return (line for line in lines if FACT.match(line))


def _node(name: str) -> NodeId:
    return NodeId(int(name))


def _nodes(names: tuple[str, ...] | list[str]) -> tuple[NodeId, ...]:
    return tuple(_node(name) for name in names)


def _link(text: str) -> Link:
    source, target = text.split("->")
    return _node(source), _node(target)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_spec(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text(encoding="utf-8")
    interpreter = Interpreter()

    actual = CASE.sub(
        lambda match: f"{match['command']}\n----\n{interpreter.run(match['command'])}", text
    )

    if request.config.getoption("--rewrite"):
        path.write_text(actual, encoding="utf-8")
    assert actual == text
