"""Parts of the client's coordination that need no broker."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from types import SimpleNamespace
from typing import Any, Never, cast

import anyio
import msgspec
import pytest
from anyio.abc import TaskGroup, TaskStatus

from logd.errors import (
    ClaimLostError,
    ConflictError,
    InvalidNameError,
    InvalidRequestError,
    LeaseLostError,
    LogdError,
    NotLeaderError,
    OverloadedError,
    QuotaExceededError,
    RequestError,
    SessionExpiredError,
    UnknownServerError,
    UsageError,
)
from logd.limits import FRAME_BYTES_MAX, ITEMS_PER_COMMAND_MAX
from logd.record.batch import decode_batch
from logd.record.header import Codec
from logd.record.timestamps import TimestampRuns
from logd.types import GroupId
from logd.wire.coordination import (
    Acquire,
    Claim,
    ClaimedItem,
    CloseSession,
    ConfigureQueue,
    Done,
    ItemsPut,
    Join,
    Leave,
    Opened,
    OpenSession,
    PutItems,
    QueueOptions,
    QueueStatistics,
    Refused,
    Release,
    Result,
    Transact,
)
from logd.wire.messages import CoordinateResponse, UnwatchRequest
from logd_client.accumulator import NO_FENCE, OpenBatch
from logd_client.arguments import require_seconds
from logd_client.connection import Answer
from logd_client.coordination import leases, queues
from logd_client.coordination.calls import Calls, encoded, error_from_refusal
from logd_client.coordination.fences import Fence, fence_of
from logd_client.coordination.keys import delete, prefix_end, put
from logd_client.coordination.leases import Lease, LeaseContext, Place, settle
from logd_client.coordination.members import Membership
from logd_client.coordination.names import checked_key, parse_name, shown
from logd_client.coordination.queue_worker import (
    NOT_ITS_OWN,
    STOPPED,
    ItemFailedError,
    QueueWorker,
    WorkTally,
    failure_of,
)
from logd_client.coordination.queues import Queue, lost_text, make_item
from logd_client.coordination.session import SAFE_SHARE, WINDOW, Session
from logd_client.coordination.sessions import Sessions, require_ttl
from logd_client.delivery import Delivery
from logd_client.environment import Environment
from logd_client.transport import TcpTransport

GUARD_S = 30.0
"""For what would else hang."""


class HandClock:
    """What a session uses of ``Calls``: time, which the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def lease_clock(self) -> float:
        return self.now


def open_session(hand: HandClock, ttl_s: float = 10.0) -> Session:
    opened = Opened(revision=7, session=7, ttl_ms=int(ttl_s * 1000))
    session = Session(cast("Calls", hand), "default", GroupId(5), opened)
    session.start(hand.now)
    return session


# --- names ------------------------------------------------------------------------------


def test_a_name_without_a_namespace_is_in_the_default_one() -> None:
    assert parse_name("compactor") == ("default", "compactor")
    assert parse_name("orders/compactor") == ("orders", "compactor")
    assert str(parse_name("orders/compactor")) == "orders/compactor"


@pytest.mark.parametrize(
    "name", ["", "/", "a/", "/a", "a/b/c", ".", "..", "ns/..", "a b", "ä", "x" * 201, b"a", 7, None]
)
def test_what_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(InvalidNameError):
        parse_name(name)


def test_keys_are_bytes_or_text_of_a_bounded_length() -> None:
    assert checked_key("ü") == "ü".encode()
    assert checked_key(b"\xff") == b"\xff"
    for key in ("", b"", "x" * 1025, 7, "\ud800"):
        with pytest.raises(UsageError):
            checked_key(key)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"a", b"b"), (b"a\xff", b"b"), (b"", b""), (b"\xff\xff", b""), (b"ab\x00", b"ab\x01")],
)
def test_the_end_of_a_prefix_is_the_first_key_behind_all_that_begin_so(
    prefix: bytes, end: bytes
) -> None:
    assert prefix_end(prefix) == end


def test_parts_of_a_transaction_are_checked_where_they_are_made() -> None:
    assert put("k", "v").value == b"v"
    assert delete("a", "").end == b""
    with pytest.raises(UsageError):
        put("k", 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("delay_s", [-1, float("nan"), "1", True, 1e12])
def test_a_delay_is_a_number_of_seconds(delay_s: object) -> None:
    with pytest.raises(UsageError, match="delay_s"):
        make_item(b"x", delay_s=delay_s)  # type: ignore[arg-type]


def test_a_command_that_fits_no_frame_is_refused_before_it_is_sent() -> None:
    command = Transact(then=[put("k", bytes(FRAME_BYTES_MAX))])

    with pytest.raises(QuotaExceededError, match="a command holds at most 3,145,728 bytes"):
        encoded(command)


@pytest.mark.parametrize("seconds", [-1, float("nan"), "5", True])
def test_what_is_no_number_of_seconds_is_refused(seconds: object) -> None:
    with pytest.raises(UsageError, match="timeout_s must be a number of seconds from 0"):
        require_seconds("timeout_s", seconds)


@pytest.mark.parametrize(
    ("key", "told"), [(b"a", "'a'"), ("ä".encode(), "'ä'"), (b"\xff", "b'\\xff'")]
)
def test_a_key_is_shown_as_text_if_it_is_text(key: bytes, told: str) -> None:
    assert shown(key) == told


def test_what_a_handler_raised_is_found_in_the_groups_of_its_tasks() -> None:
    meant = ItemFailedError("poison", dead=True)

    assert failure_of(ExceptionGroup("", [ExceptionGroup("", [meant])])) is meant
    assert str(failure_of(ExceptionGroup("", [KeyError("x")]))) == "KeyError: 'x'"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"dead": True, "uncounted": True}, "dead or uncounted"),
        ({"delay_s": -1}, "delay_s must be a number of seconds from 0 to 31,622,400"),
    ],
)
def test_a_handler_hears_at_once_that_an_item_cannot_be_given_back_so(
    given: dict[str, Any], told: str
) -> None:
    """Its worker could only leave the item alone, until the claim has run out."""
    with pytest.raises(UsageError, match=told):
        ItemFailedError("poison", **given)


@pytest.mark.parametrize("ttl_ms", [0, 999, 24 * 3600 * 1000 + 1, 1.5, True])
def test_a_time_to_live_has_bounds(ttl_ms: object) -> None:
    with pytest.raises(UsageError, match="ttl"):
        require_ttl("ttl", ttl_ms)


# --- refusals and fences ----------------------------------------------------------------


def test_a_refused_command_certainly_took_no_effect() -> None:
    error = error_from_refusal(Refused(revision=3, code=QuotaExceededError.code, message="full"))
    unknown = error_from_refusal(Refused(revision=3, code=9_999, message="?"))

    assert isinstance(error, QuotaExceededError)
    assert not error.may_have_applied
    assert isinstance(unknown, UnknownServerError)
    assert not unknown.may_have_applied


class DoubtfulCalls(Calls):
    """An attempt is never answered, the next one is refused."""

    def __init__(self, code: int) -> None:
        self._refused = Refused(revision=3, code=code, message="no")

    def _known_group(self, namespace: str) -> GroupId | None:
        return None

    async def _ask(self, *arguments: object, **options: object) -> tuple[Answer, bool]:
        return Answer(CoordinateResponse(), msgspec.msgpack.encode(self._refused)), True


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("refused", "may_have_applied"),
    [
        (ConflictError, False),
        (SessionExpiredError, True),
        (OverloadedError, True),
        (InvalidRequestError, True),
    ],
)
async def test_a_refusal_that_leaves_no_trace_says_nothing_of_an_earlier_attempt(
    anyio_backend: object, refused: type[RequestError], may_have_applied: bool
) -> None:
    calls = DoubtfulCalls(refused.code)

    with pytest.raises(refused) as caught:
        await calls.command(
            "default", CloseSession(), lambda group, timeout_ms: UnwatchRequest(watch=1)
        )

    assert caught.value.may_have_applied == may_have_applied


class LonelyCalls(Calls):
    """No broker that is asked who leads says anything."""

    def __init__(self, first: LogdError | None) -> None:
        routing = SimpleNamespace(
            environment=SimpleNamespace(
                clock=time.monotonic, lease_clock=time.monotonic, rng=random.Random(1)
            ),
            request_timeout_s=0.1,
        )
        super().__init__(cast("Any", routing))
        self._first = first

    def _known_group(self, namespace: str) -> GroupId:
        return GroupId(5)

    def _usual_connection(self, group: GroupId) -> None:
        return None

    def _is_redirected(self, error: LogdError, namespace: str) -> bool:
        return False

    async def find_leader(self, *_: object) -> Never:
        if self._first is not None:
            first, self._first = self._first, None
            raise first
        await anyio.sleep_forever()
        raise AssertionError("unreachable")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("first", "told"),
    [
        (NotLeaderError("no leader is known"), "no leader is known"),
        (None, r"not connected within 0\.1 s"),
    ],
)
async def test_a_command_is_over_in_time_although_nobody_says_who_leads(
    anyio_backend: object, first: LogdError | None, told: str
) -> None:
    calls = LonelyCalls(first)

    with anyio.fail_after(GUARD_S), pytest.raises(LogdError, match=told) as caught:
        await calls.command(
            "default", CloseSession(), lambda group, timeout_ms: UnwatchRequest(watch=1)
        )

    assert not caught.value.may_have_applied


def test_a_fence_is_taken_from_whatever_was_granted() -> None:
    class Granted:
        fence = Fence(9, 4)

    assert fence_of(Granted()) == fence_of(Fence(9, 4)) == (9, 4)
    for wrong in ((9, 4), 9, None):
        with pytest.raises(UsageError, match="fence"):
            fence_of(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("fence", [Fence(-1, 4), Fence(2**64, 4), Fence(9, -1), Fence(9, 2**64)])
def test_a_fence_that_no_batch_can_carry_is_refused_before_it_ends_the_client(
    fence: Fence,
) -> None:
    with pytest.raises(UsageError, match="fence has an id from 1 and a token from 0"):
        fence_of(fence)


def test_a_fence_of_no_lock_is_refused_since_it_would_fence_nothing() -> None:
    with pytest.raises(UsageError, match="fence has an id from 1"):
        fence_of(Fence(0, 4))


def test_a_batch_carries_its_fence() -> None:

    def sealed(fence: tuple[int, int]) -> bytearray:
        batch = OpenBatch(
            Delivery("t", 0),
            opened_at=0,
            deadline=1,
            values=[b"v"],
            keys=None,
            timestamps=TimestampRuns(1),
            fence=fence,
        )
        return batch.seal(Codec.NONE, producer_id=1, producer_epoch=0, base_sequence=0)

    fenced = decode_batch(sealed((9, 4))).header
    plain = decode_batch(sealed(NO_FENCE)).header

    assert (fenced.fence_id, fenced.fence_token) == (9, 4)
    assert (plain.fence_id, plain.fence_token) == (0, 0)


# --- sessions ---------------------------------------------------------------------------


def test_a_session_is_given_up_before_its_time_to_live_is_over() -> None:
    hand = HandClock()
    session = open_session(hand, ttl_s=10)
    lost: list[LogdError] = []
    session.call_on_loss("lock", lost.append)

    hand.now += 10 * SAFE_SHARE - 0.01
    assert not session.is_lost()
    hand.now += 0.01

    assert session.is_lost()
    assert [type(error) for error in lost] == [SessionExpiredError]
    with pytest.raises(SessionExpiredError, match="not renewed"):
        session.check()


class Awake(HandClock):
    """The clock of an event loop does not count the time in which the machine was suspended."""

    def clock(self) -> float:
        return 100.0


def test_a_session_runs_out_while_its_machine_is_suspended() -> None:
    hand = Awake()
    session = open_session(hand, ttl_s=10)

    hand.now += 60

    assert session.is_lost()


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no such clock")
def test_leases_go_by_a_clock_that_does_not_stop_with_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clocks = {time.CLOCK_BOOTTIME: 107.0, time.CLOCK_MONOTONIC: 7.0}
    environment = Environment(TcpTransport(), lambda: 7.0, lambda: 0, random.Random(0))
    monkeypatch.setattr(time, "clock_gettime", clocks.__getitem__)

    assert environment.lease_clock() == 107.0


class PlayedCalls(HandClock):
    """What a session uses of ``Calls``: each kind says what becomes of a command."""

    async def command(
        self,
        namespace: str,
        command: object,
        request: Callable[[GroupId, int], object],
        *,
        timeout_s: float | None = None,
    ) -> Result:
        return await self.carry_out(command, lambda: request(GroupId(5), 1_000))

    async def carry_out(self, command: object, send: Callable[[], object]) -> Result:
        """``send`` is called when an attempt leaves."""
        raise NotImplementedError


class SlowCalls(PlayedCalls):
    """Each command is carried out at once, and its answer is seen when the session is over: the
    client's process stood still in between."""

    async def carry_out(self, command: object, send: Callable[[], object]) -> Result:
        send()
        self.now += 60
        if isinstance(command, Acquire):
            return Claim(revision=9, ticket=9, token=9)
        return Done(revision=9)


class OneSession:
    """What leases use of ``Sessions``: one session, which may be lost."""

    def __init__(self, calls: HandClock) -> None:
        calls.routing = None  # type: ignore[attr-defined]  # Nothing is to be protected.
        self.calls = calls
        self._session = open_session(calls)

    async def get(self, namespace: str, ttl_ms: int | None) -> Session:
        return self._session


def compactor_lock(sessions: OneSession) -> Place[Lease]:
    acquire = Acquire(kind="lock", name="compactor")
    return Place(cast("Sessions", sessions), parse_name("compactor"), acquire, Lease)


@pytest.mark.anyio
async def test_a_lock_whose_grant_is_learnt_of_after_its_session_was_over_is_not_held(
    anyio_backend: object,
) -> None:
    place = compactor_lock(OneSession(SlowCalls()))

    with pytest.raises(SessionExpiredError, match="not renewed"):
        await place.obtain(None)


class QueueingCalls(PlayedCalls):
    """A lock that another holds until ``granted``; whatever else is asked is done at once."""

    def __init__(self) -> None:
        super().__init__()
        self.granted = anyio.Event()
        self.is_waited_for = anyio.Event()
        self.released: list[int] = []

    async def carry_out(self, command: object, send: Callable[[], object]) -> Result:
        send()
        if isinstance(command, Acquire):
            return Claim(revision=9, ticket=9, position=1)
        if isinstance(command, Release):
            self.released.append(command.ticket)
        return Done(revision=9)

    async def query(self, namespace: str, query: object, *, wait_s: float) -> Claim:
        self.is_waited_for.set()
        await self.granted.wait()
        return Claim(revision=2_000, ticket=9, token=2_000)


@pytest.mark.anyio
async def test_who_waits_for_a_lock_holds_up_nothing_else_of_its_session(
    anyio_backend: object,
) -> None:
    calls = QueueingCalls()
    sessions = OneSession(calls)
    place = compactor_lock(sessions)
    obtained: list[Lease] = []

    async def obtain() -> None:
        obtained.append(await place.obtain(None))

    with anyio.fail_after(GUARD_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(obtain)
            await calls.is_waited_for.wait()
            session = await sessions.get("default", None)
            for _ in range(WINDOW + 1):  # Who holds it may have to do much before it lets go.
                await session.call(CloseSession(), Done)
            calls.granted.set()

    assert [lease.token for lease in obtained] == [2_000]


@pytest.mark.anyio
async def test_who_waits_when_its_session_is_lost_is_told_of_that_and_of_no_cancellation(
    anyio_backend: object,
) -> None:
    calls = QueueingCalls()
    sessions = OneSession(calls)
    place = compactor_lock(sessions)
    lost = SessionExpiredError("gone")
    told: list[BaseException] = []

    async def obtain() -> None:
        with pytest.raises(SessionExpiredError) as caught:
            await place.obtain(None)
        told.append(caught.value)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(obtain)
        await calls.is_waited_for.wait()
        (await sessions.get("default", None)).lose(lost)

    assert told == [lost]
    assert lost.__suppress_context__


@pytest.mark.anyio
async def test_a_place_in_line_is_given_back_by_whoever_is_cancelled_there(
    anyio_backend: object,
) -> None:
    calls = QueueingCalls()
    place = compactor_lock(OneSession(calls))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(place.obtain, None)
        await calls.is_waited_for.wait()
        tasks.cancel_scope.cancel()

    assert calls.released == [9]


@pytest.mark.anyio
async def test_tasks_that_wait_for_one_lock_object_at_a_time_are_told_to_make_their_own(
    anyio_backend: object,
) -> None:
    calls = QueueingCalls()
    place = Place(
        cast("Sessions", OneSession(calls)),
        parse_name("api"),
        Acquire(kind="semaphore", name="api", capacity=2),
        Lease,
        is_exclusive=False,
    )
    shared = LeaseContext(lambda: place.obtain(None))
    refused: list[UsageError] = []

    async def enter() -> None:
        try:
            async with shared:
                pass
        except UsageError as error:
            refused.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(enter)
        tasks.start_soon(enter)
        await anyio.wait_all_tasks_blocked()
        calls.granted.set()

    assert len(refused) == 1
    async with shared:  # And again, once it is left.
        pass


@pytest.mark.anyio
async def test_a_lock_that_another_task_leaves_is_given_back_all_the_same(
    anyio_backend: object,
) -> None:
    """The event loop refuses that, and whoever stands next must not wait for it."""
    calls = QueueingCalls()
    calls.granted.set()
    place = compactor_lock(OneSession(calls))
    context = LeaseContext(lambda: place.obtain(None))

    async def enter(*, task_status: TaskStatus[None]) -> None:
        await context.__aenter__()
        task_status.started()
        await anyio.sleep_forever()

    with suppress(RuntimeError, BaseExceptionGroup):
        async with anyio.create_task_group() as tasks:
            await tasks.start(enter)
            await context.__aexit__(None, None, None)

    assert calls.released == [9]


@pytest.mark.anyio
@pytest.mark.parametrize("ending", ["given back", "lost"])
async def test_who_waits_until_a_lease_is_over_goes_on_then_and_not_before(
    anyio_backend: object, ending: str
) -> None:
    calls = QueueingCalls()
    calls.granted.set()
    sessions = OneSession(calls)
    lease = await compactor_lock(sessions).obtain(None)
    is_over = anyio.Event()

    async def wait() -> None:
        await lease.wait_until_over()
        is_over.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert not is_over.is_set()

        if ending == "lost":
            (await sessions.get("default", None)).lose(SessionExpiredError("gone"))
        else:
            await lease.release()
        with anyio.fail_after(5):
            await is_over.wait()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("what", ["lease", "membership"])
async def test_a_body_is_told_of_its_loss_also_after_a_task_group_in_it_has_failed(
    anyio_backend: object, what: str
) -> None:
    """Before Python 3.13 a task that has got over that counts as cancelled ever after."""
    calls = QueueingCalls()
    calls.granted.set()
    sessions = OneSession(calls)
    session = await sessions.get("default", None)
    place = compactor_lock(sessions)
    context: AbstractAsyncContextManager[object] = LeaseContext(lambda: place.obtain(None))
    if what == "membership":
        workers = parse_name("workers")
        context = Membership(cast("Sessions", sessions), workers, "one", b"", None)

    async def fail() -> None:
        raise ValueError("no")

    async def use() -> None:
        async with context:
            with pytest.raises(ExceptionGroup):
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(fail())
            session.lose(SessionExpiredError("gone"))
            await anyio.sleep_forever()

    with pytest.raises(LeaseLostError):
        await asyncio.create_task(use())


class HandledClaim:
    """What a worker uses of a claim; keeps the reason for which it was given back."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.asked_at = 100.0
        self.visibility_s = 60.0
        self.released: list[tuple[str, bool]] = []

    async def release(
        self, reason: str, *, delay_s: float | None, dead: bool, uncounted: bool
    ) -> None:
        self.released.append((reason, uncounted))


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_item_whose_handler_meets_a_cancellation_of_something_else_was_attempted(
    anyio_backend: object,
) -> None:
    """Else it would be handed out again and again, at once, and never be dead."""
    async with anyio.create_task_group() as tasks:
        calls = HangingCalls(tasks)
        handled = HandledClaim(open_session(calls))
        claim = cast("queues.Claim", handled)

        async def handle(_: object) -> None:
            other = asyncio.create_task(asyncio.sleep(60))
            other.cancel()
            await other

        worker = QueueWorker(
            cast("Queue", None), cast("Calls", calls), handle, 1, 1, 60.0, WorkTally()
        )
        await worker._run_one(claim)
        assert handled.released == [(NOT_ITS_OWN, False)]

        # And one whose worker is stopped was not.
        async def sleep(_: object) -> None:
            await anyio.sleep_forever()

        stopped = QueueWorker(
            cast("Queue", None), cast("Calls", calls), sleep, 1, 1, 60.0, WorkTally()
        )
        async with anyio.create_task_group() as working:
            working.start_soon(stopped._run_one, claim)
            await anyio.wait_all_tasks_blocked()
            working.cancel_scope.cancel()
        assert handled.released[1:] == [(STOPPED, True)]


class HangingCalls(PlayedCalls):
    """Nothing is answered until ``answers``."""

    def __init__(self, tasks: TaskGroup) -> None:
        super().__init__()
        self.routing = self.environment = self
        self.rng = self.identities = random.Random(0)
        self.tasks = tasks
        self.answers = anyio.Event()
        self.done: list[object] = []

    async def carry_out(self, command: object, send: Callable[[], object]) -> Result:
        await self.answers.wait()  # Before it is sent.
        send()
        self.done.append(command)
        return Done(revision=9)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_lease_is_given_back_although_asyncio_cancels_its_release(
    anyio_backend: object,
) -> None:
    """A task that asyncio itself cancels is not protected by a shield."""
    async with anyio.create_task_group() as tasks:
        calls = HangingCalls(tasks)
        session = open_session(calls)
        sessions = cast("Sessions", calls)
        calls.calls = calls  # type: ignore[attr-defined]
        claim = Claim(revision=9, ticket=9, token=9)
        lease = Lease(sessions, session, "lock", parse_name("a"), claim, is_exclusive=True)

        releasing = asyncio.create_task(lease.release())
        await anyio.wait_all_tasks_blocked()
        releasing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await releasing
        calls.answers.set()

    assert calls.done == [Release(kind="lock", name="a", ticket=9)]


@pytest.mark.anyio
async def test_two_of_one_name_that_leave_while_nobody_answers_leave_once(
    anyio_backend: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "GIVE_BACK_TIMEOUT_S", 0.05)
    async with anyio.create_task_group() as tasks:
        calls = HangingCalls(tasks)
        calls.calls = calls  # type: ignore[attr-defined]
        session = open_session(calls)
        leave = Leave(group="workers", member="one")
        for _ in range(2):
            await settle(cast("Sessions", calls), session, leave)
        assert list(session.unsettled) == [leave]
        calls.answers.set()

    assert calls.done == [leave]
    assert session.unsettled == {}


@pytest.mark.anyio
async def test_a_lease_of_a_session_that_is_lost_already_is_lost(anyio_backend: object) -> None:
    hand = HandClock()
    session = open_session(hand)
    hand.now += 60
    assert session.is_lost()

    lease = Lease(
        cast("Sessions", None),
        session,
        "lock",
        parse_name("compactor"),
        Claim(revision=9, ticket=9, token=9),
        is_exclusive=True,
    )

    assert lease.is_lost
    assert lease.time_left_s == 0
    await lease.wait_until_over()


@pytest.mark.anyio
async def test_who_joins_by_a_session_that_is_over_meanwhile_is_told_so(
    anyio_backend: object,
) -> None:
    sessions = cast("Sessions", OneSession(SlowCalls()))
    membership = Membership(sessions, parse_name("workers"), "one", b"", None)

    with pytest.raises(LeaseLostError, match="member one of default/workers is lost"):
        async with membership:
            await anyio.sleep_forever()


class JoiningCalls(PlayedCalls):
    """Who joins is a member, and who leaves is none."""

    def __init__(self) -> None:
        super().__init__()
        self.members: set[str] = set()

    async def carry_out(self, command: object, send: Callable[[], object]) -> Result:
        send()
        if isinstance(command, Join):
            self.members.add(command.member)
        else:
            assert isinstance(command, Leave)
            self.members.remove(command.member)
        return Done(revision=9)


@pytest.mark.anyio
async def test_a_membership_that_another_task_leaves_is_left_all_the_same(
    anyio_backend: object,
) -> None:
    """The event loop refuses that, and nobody is to be listed who is not there."""
    calls = JoiningCalls()
    sessions = cast("Sessions", OneSession(calls))
    membership = Membership(sessions, parse_name("workers"), "one", b"", None)

    async def enter(*, task_status: TaskStatus[None]) -> None:
        await membership.__aenter__()
        task_status.started()
        await anyio.sleep_forever()

    with suppress(RuntimeError, BaseExceptionGroup):
        async with anyio.create_task_group() as tasks:
            await tasks.start(enter)
            await membership.__aexit__(None, None, None)

    assert calls.members == set()


def test_a_renewal_counts_from_when_it_was_sent() -> None:
    hand = HandClock()
    session = open_session(hand, ttl_s=10)

    sent_at = hand.now + 3
    hand.now += 5
    session.renewed(sent_at)

    assert session.deadline == sent_at + 10 * SAFE_SHARE


class TryingCalls(PlayedCalls):
    """Each command takes two attempts, and its answer a while: which of them it is of, nobody
    can tell."""

    async def carry_out(self, command: object, send: Callable[[], object]) -> Result:
        for _ in range(2):
            send()
            self.now += 2
        return Done(revision=9)


@pytest.mark.anyio
async def test_a_command_renews_its_session_from_when_it_was_first_sent(
    anyio_backend: object,
) -> None:
    calls = TryingCalls()
    session = open_session(calls, ttl_s=10)

    calls.now += 3
    first_sent_at = calls.now
    await session.call(CloseSession(), Done)

    assert session.deadline == first_sent_at + 10 * SAFE_SHARE


def test_a_renewal_that_is_answered_too_late_revives_nothing() -> None:
    hand = HandClock()
    session = open_session(hand, ttl_s=10)

    sent_at = hand.now + 5
    hand.now += 60  # The process stood still.
    session.renewed(sent_at)
    session.renewed(hand.now)

    assert session.is_lost()


def test_an_older_renewal_does_not_shorten_a_newer_one() -> None:
    hand = HandClock()
    session = open_session(hand, ttl_s=10)

    hand.now += 6
    session.renewed(hand.now)
    session.renewed(hand.now - 4)

    assert session.deadline == hand.now + 10 * SAFE_SHARE


@pytest.mark.anyio
async def test_a_session_acknowledges_only_what_lies_below_everything_unanswered(
    anyio_backend: object,
) -> None:

    session = open_session(HandClock())

    first, second, third = [await session.prepare(CloseSession()) for _ in range(3)]
    assert [first.sequence, second.sequence, third.sequence] == [1, 2, 3]
    assert session.acknowledged == 1
    second.finish()
    assert session.acknowledged == 1
    first.finish()
    assert session.acknowledged == 3
    third.finish()

    assert session.acknowledged == 4


@pytest.mark.anyio
async def test_the_window_keeps_results_within_what_the_log_remembers(
    anyio_backend: object,
) -> None:

    session = open_session(HandClock())
    pending = [await session.prepare(CloseSession()) for _ in range(WINDOW)]
    beyond: list[int] = []

    async def one_more() -> None:
        beyond.append((await session.prepare(CloseSession())).sequence)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one_more)
        await anyio.wait_all_tasks_blocked()
        assert beyond == []
        pending[1].finish()  # Not the oldest: the log must keep the first result still.
        await anyio.wait_all_tasks_blocked()
        assert beyond == []
        pending[0].finish()

    assert beyond == [WINDOW + 1]


@pytest.mark.anyio
async def test_who_waits_for_a_place_is_woken_when_there_is_one_and_in_turn(
    anyio_backend: object,
) -> None:
    session = open_session(HandClock())
    pending = [await session.prepare(CloseSession()) for _ in range(WINDOW)]
    placed: list[int] = []

    async def wait(number: int) -> None:
        await session.prepare(CloseSession())
        placed.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(wait, number)
            await anyio.wait_all_tasks_blocked()
        for command in pending[:3]:
            command.finish()
        await anyio.wait_all_tasks_blocked()
        assert sorted(placed) == [0, 1, 2]
        for command in pending[3:]:
            command.finish()

    assert sorted(placed) == [0, 1, 2, 3, 4]


@pytest.mark.anyio
async def test_who_is_cancelled_while_waiting_for_a_place_leaves_its_turn_to_the_next(
    anyio_backend: object,
) -> None:
    session = open_session(HandClock())
    pending = [await session.prepare(CloseSession()) for _ in range(WINDOW)]
    placed: list[str] = []

    async def wait(name: str, scope: anyio.CancelScope) -> None:
        with scope:
            await session.prepare(CloseSession())
            placed.append(name)

    with anyio.fail_after(GUARD_S):
        async with anyio.create_task_group() as tasks:
            cancelled = anyio.CancelScope()
            tasks.start_soon(wait, "cancelled", cancelled)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(wait, "next", anyio.CancelScope())
            await anyio.wait_all_tasks_blocked()
            cancelled.cancel()
            pending[0].finish()

    assert placed == ["next"]


@pytest.mark.anyio
async def test_nobody_goes_on_waiting_for_a_place_in_a_session_that_is_lost(
    anyio_backend: object,
) -> None:
    session = open_session(HandClock())
    for _ in range(WINDOW):
        await session.prepare(CloseSession())
    refused: list[LogdError] = []

    async def wait() -> None:
        try:
            await session.prepare(CloseSession())
        except SessionExpiredError as error:
            refused.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        session.lose(SessionExpiredError("gone"))

    assert len(refused) == 3


class OpeningCalls(HangingCalls):
    """A session is opened at once, or as soon as it is allowed; nothing else is answered."""

    def __init__(self, tasks: TaskGroup) -> None:
        super().__init__(tasks)
        self.opens = anyio.Event()
        self.opens.set()

    async def carry_out(self, command: object, send: Callable[[], object]) -> Result:
        if not isinstance(command, OpenSession):
            return await super().carry_out(command, send)
        send()
        await self.opens.wait()
        return Opened(revision=7, session=7, ttl_ms=command.ttl_ms)

    async def group_of(self, namespace: str) -> GroupId:
        return GroupId(5)


@pytest.mark.anyio
@pytest.mark.parametrize("leaves_open", [True, False])
@pytest.mark.parametrize("is_full", [True, False])
async def test_what_hangs_on_a_session_is_lost_here_once_its_client_is_closed(
    anyio_backend: object, monkeypatch: pytest.MonkeyPatch, leaves_open: bool, is_full: bool
) -> None:
    """Whether the session is left open at the brokers, or they do not answer, or its closing does
    not even get a place among commands that they do not answer."""
    monkeypatch.setattr("logd_client.coordination.sessions.CLOSE_TIMEOUT_S", 0.05)
    async with anyio.create_task_group() as tasks:
        sessions = Sessions(cast("Calls", OpeningCalls(tasks)), "test", 30_000)
        sessions.leaves_open = leaves_open
        session = await sessions.get("default")
        claim = Claim(revision=9, ticket=9, token=9)
        lease = Lease(sessions, session, "lock", parse_name("a"), claim, is_exclusive=True)
        for _ in range(WINDOW if is_full else 0):
            await session.prepare(CloseSession())
        over = anyio.Event()

        async def wait() -> None:
            await lease.wait_until_over()
            over.set()

        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await sessions.aclose()
        with anyio.fail_after(GUARD_S):
            await over.wait()
        tasks.cancel_scope.cancel()

    assert lease.is_lost
    assert "the client was closed" in str(lease.lost_error())


@pytest.mark.anyio
async def test_a_session_that_is_opened_while_its_client_is_closed_is_given_to_nobody(
    anyio_backend: object,
) -> None:
    """Nobody would renew it."""
    refused: list[UsageError] = []
    async with anyio.create_task_group() as tasks:
        calls = OpeningCalls(tasks)
        calls.opens = anyio.Event()
        sessions = Sessions(cast("Calls", calls), "test", 30_000)

        async def get() -> None:
            try:
                await sessions.get("default")
            except UsageError as error:
                refused.append(error)

        tasks.start_soon(get)
        await anyio.wait_all_tasks_blocked()
        await sessions.aclose()
        calls.opens.set()
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert [str(error) for error in refused] == ["the client was closed"]


def test_a_claim_that_does_not_hold_may_have_been_settled_by_its_own_holder() -> None:
    why = "not hold: run out, completed or released before, or never made"

    assert lost_text([7]) == f"the claim of item 7 does {why}"
    assert lost_text([7, 9]) == f"the claims of items 7, 9 do {why}"


async def test_claims_of_a_session_that_is_gone_are_told_of_alike_whatever_is_to_become_of_them(
    anyio_backend: object,
) -> None:
    """Whoever completes one at the command line knows of claims, and not of sessions."""

    class GoneSession:
        id = 3

        async def call(self, *_: object) -> Never:
            raise SessionExpiredError("session 3 of namespace n is closed or expired")

    calls = SimpleNamespace(lease_clock=lambda: 0.0)
    queue = Queue(cast("Sessions", SimpleNamespace(calls=calls)), parse_name("n/q"))
    item = ClaimedItem(item=7, token=1, payload=b"")
    claim = queues.Claim(queue, cast("Session", GoneSession()), item, None, 0.0)

    with pytest.raises(ClaimLostError) as completed:
        await claim.complete()
    with pytest.raises(ClaimLostError) as renewed:
        await claim.renew()

    assert str(completed.value) == str(renewed.value) == f"queue n/q: {lost_text([7])}"


async def test_who_changes_an_option_of_a_queue_says_which_and_what_all_were(
    anyio_backend: object,
) -> None:
    """So that nobody's change at the same time is undone, and that an older broker changes it."""
    sent: list[object] = []
    before = QueueOptions(attempts_max=3, visibility_ms=5_000)

    async def query(namespace: str, query: object) -> QueueStatistics:
        return QueueStatistics(
            revision=1,
            ready=0,
            delayed=0,
            in_flight=0,
            dead=0,
            completed=0,
            oldest_ms=None,
            options=before,
        )

    async def call(namespace: str, command: object, kind: object) -> None:
        sent.append(command)

    sessions = SimpleNamespace(call=call, calls=SimpleNamespace(query=query))
    queue = Queue(cast("Sessions", sessions), parse_name("n/q"))

    changed = await queue.configure(backoff_ms=7)

    assert changed == msgspec.structs.replace(before, backoff_ms=7)
    assert sent == [ConfigureQueue(queue="q", options=changed, changed=["backoff_ms"])]


@pytest.mark.anyio
@pytest.mark.parametrize(("put_before", "may_have_applied"), [(0, False), (1, True)])
async def test_of_many_items_whose_first_are_in_the_queue_nobody_says_that_none_are(
    anyio_backend: object, put_before: int, may_have_applied: bool
) -> None:
    sent: list[PutItems] = []

    async def call(namespace: str, command: PutItems, kind: object) -> ItemsPut:
        if len(sent) == put_before:
            raise QuotaExceededError("full")
        sent.append(command)
        return ItemsPut(revision=1, items=list(range(len(command.items))))

    queue = Queue(cast("Sessions", SimpleNamespace(call=call)), parse_name("n/q"))

    with pytest.raises(QuotaExceededError) as caught:
        await queue.put_many([b"item"] * (ITEMS_PER_COMMAND_MAX + 1))

    assert caught.value.may_have_applied == may_have_applied
