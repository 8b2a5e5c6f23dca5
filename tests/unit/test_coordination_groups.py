"""Members and assignments: one owner a shard at most, and nothing moves that need not."""

from __future__ import annotations

from collections import Counter

import pytest

from logd.errors import ConflictError, InvalidRequestError, NotHeldError, UnknownNameError
from logd.wire.coordination import (
    Assign,
    Assignment,
    Done,
    Join,
    Leave,
    LetGo,
    Members,
    ReadAssignment,
    ReadMembers,
    ReportLoad,
    ShardOwner,
)
from tests.support.coordination import NAMESPACE, Partition, error_of


def join(partition: Partition, member: str, data: bytes = b"", session: int | None = None) -> int:
    session = partition.open() if session is None else session
    assert isinstance(partition.do(session, Join(group="g", member=member, data=data)), Done)
    return session


def members(partition: Partition) -> list[tuple[str, bytes]]:
    answer = partition.state.answer(NAMESPACE, ReadMembers(group="g"))
    assert isinstance(answer, Members)
    return [(member.member, member.data) for member in answer.members]


def shards(partition: Partition) -> list[ShardOwner]:
    answer = partition.state.answer(NAMESPACE, ReadAssignment(group="g"))
    assert isinstance(answer, Assignment)
    return answer.shards


def owners(partition: Partition) -> dict[str, str | None]:
    return {shard.shard: shard.owner for shard in shards(partition)}


def revoked(partition: Partition) -> list[str]:
    return [shard.shard for shard in shards(partition) if shard.revoked]


def assign(partition: Partition, names: list[str], weights: list[float] | None = None) -> None:
    session = partition.open()
    command = Assign(group="g", shards=names, weights=weights or [])
    assert isinstance(partition.do(session, command), Done)


def let_go_of_all(partition: Partition, sessions: dict[str, int]) -> int:
    """All owners give up what was revoked.  Returns how many shards that was."""
    given_up = 0
    for member, session in sessions.items():
        mine = [s.shard for s in shards(partition) if s.revoked and s.owner == member]
        if mine:
            partition.do(session, LetGo(group="g", member=member, shards=mine))
            given_up += len(mine)
    return given_up


def test_members_are_listed_in_order_of_joining_while_their_sessions_live() -> None:
    partition = Partition()
    first = join(partition, "b", b"1")
    join(partition, "a", b"2")

    assert members(partition) == [("b", b"1"), ("a", b"2")]
    partition.expire(first)
    assert members(partition) == [("a", b"2")]


def test_joining_again_changes_the_data_and_only_a_change_is_told() -> None:
    partition = Partition()
    session = join(partition, "a", b"1")
    partition.events()

    join(partition, "a", b"1", session)
    join(partition, "a", b"2", session)

    assert [(e.change, e.subject, e.value) for e in partition.events()] == [("changed", "a", b"2")]


def test_a_member_s_name_is_taken_over_only_when_its_session_is_gone() -> None:
    partition = Partition()
    old, new = join(partition, "a"), partition.open()

    assert error_of(partition.do(new, Join(group="g", member="a"))) is ConflictError
    assert error_of(partition.do(new, Leave(group="g", member="a"))) is NotHeldError
    partition.expire(old)
    assert isinstance(partition.do(new, Join(group="g", member="a")), Done)


def test_changes_of_members_are_told_in_order() -> None:
    partition = Partition()
    session = join(partition, "a", b"x")
    partition.do(session, Leave(group="g", member="a"))
    other = join(partition, "b")
    partition.expire(other)

    assert [(e.change, e.subject) for e in partition.events()] == [
        ("joined", "a"),
        ("left", "a"),
        ("joined", "b"),
        ("left", "b"),
    ]


def test_shards_are_spread_over_members_with_tokens() -> None:
    partition = Partition()
    for member in "abc":
        join(partition, member)

    assign(partition, [f"s{at}" for at in range(7)])

    assert sorted(Counter(owners(partition).values()).values()) == [2, 2, 3]
    assert {shard.token for shard in shards(partition)} == {partition.revision}


def test_shards_without_members_are_nobody_s_until_one_joins() -> None:
    partition = Partition()
    assign(partition, ["s"])
    assert owners(partition) == {"s": None}

    session = join(partition, "a")
    assert owners(partition) == {"s": "a"}

    partition.expire(session)
    assert owners(partition) == {"s": None}
    assert [(e.change, e.owner) for e in partition.events() if e.kind == "assignment"] == [
        ("owner", "a"),
        ("free", ""),
    ]


def test_a_shard_moves_only_when_its_owner_has_let_go() -> None:
    partition = Partition()
    first = join(partition, "a")
    assign(partition, ["s1", "s2"])
    before = {shard.shard: shard.token for shard in shards(partition)}
    join(partition, "b")

    (moving,) = revoked(partition)
    assert owners(partition) == {"s1": "a", "s2": "a"}

    done = partition.do(first, LetGo(group="g", member="a", shards=[moving]))
    after = {shard.shard: shard for shard in shards(partition)}
    assert after[moving].owner == "b"
    assert after[moving].token == done.revision > before[moving]
    assert revoked(partition) == []
    (kept,) = set(after) - {moving}
    assert (after[kept].owner, after[kept].token) == ("a", before[kept])


def test_an_owner_that_is_gone_has_let_go() -> None:
    partition = Partition()
    first = join(partition, "a")
    assign(partition, ["s1", "s2"])
    join(partition, "b")

    partition.expire(first)

    assert owners(partition) == {"s1": "b", "s2": "b"}
    assert revoked(partition) == []


def test_a_shard_that_was_to_move_to_who_left_is_kept_and_that_is_told() -> None:
    partition = Partition()
    join(partition, "a")
    assign(partition, ["s1", "s2"])
    second = join(partition, "b")
    (moving,) = revoked(partition)
    token = next(s.token for s in shards(partition) if s.shard == moving)
    partition.events()

    partition.expire(second)

    assert revoked(partition) == []
    told = [e for e in partition.events() if e.kind == "assignment"]
    assert [(e.change, e.subject, e.owner, e.token) for e in told] == [
        ("owner", moving, "a", token)
    ]


def test_what_is_let_go_without_need_comes_back_with_a_new_token() -> None:
    partition = Partition()
    session = join(partition, "a")
    assign(partition, ["s"])

    done = partition.do(session, LetGo(group="g", member="a", shards=["s", "unknown"]))

    (shard,) = shards(partition)
    assert (shard.owner, shard.token) == ("a", done.revision)


def test_only_a_member_s_own_session_speaks_for_it() -> None:
    partition = Partition()
    join(partition, "a")
    other = join(partition, "b")
    assign(partition, ["s1", "s2"])
    before = shards(partition)
    theirs = [shard.shard for shard in before if shard.owner == "a"]

    impostor = partition.do(other, LetGo(group="g", member="a", shards=theirs))
    partition.do(other, LetGo(group="g", member="b", shards=theirs))
    reported = partition.do(other, ReportLoad(group="g", member="a", loads={"s1": 5.0}))

    assert error_of(impostor) is NotHeldError
    assert error_of(reported) is NotHeldError
    assert shards(partition) == before


def test_letting_go_without_an_assignment_is_refused() -> None:
    partition = Partition()
    session = join(partition, "a")

    refused = partition.do(session, LetGo(group="g", member="a", shards=["s"]))

    assert error_of(refused) is UnknownNameError


def test_a_shard_off_the_list_is_not_given_to_another_before_its_owner_has_let_go() -> None:
    partition = Partition()
    first = join(partition, "a")
    assign(partition, ["s"])
    assign(partition, [])
    assert revoked(partition) == ["s"]
    join(partition, "b")

    assign(partition, ["s", "t"])
    assert owners(partition)["s"] == "a"

    assign(partition, ["t"])
    partition.do(first, LetGo(group="g", member="a", shards=["s"]))
    assert "s" not in owners(partition)


def test_an_assignment_ends_when_all_have_let_go() -> None:
    partition = Partition()
    sessions = {"a": join(partition, "a")}
    assign(partition, ["s1", "s2"])

    assign(partition, [])
    let_go_of_all(partition, sessions)

    assert shards(partition) == []
    partition.state.check_invariants()


def test_a_thousand_shards_over_ten_members_move_as_little_as_possible() -> None:
    partition = Partition()
    sessions = {f"m{at}": join(partition, f"m{at}") for at in range(10)}
    assign(partition, [f"s{at:04}" for at in range(1_000)])
    before = owners(partition)
    assert set(Counter(before.values()).values()) == {100}

    sessions["new"] = join(partition, "new")
    assert len(revoked(partition)) == 90
    assert let_go_of_all(partition, sessions) == 90
    joined = owners(partition)
    assert sorted(Counter(joined.values()).values()) == [90] + [91] * 10

    partition.expire(sessions.pop("m3"))
    left = owners(partition)
    assert revoked(partition) == []
    assert {s for s in left if left[s] != joined[s]} == {s for s in left if joined[s] == "m3"}
    assert set(Counter(left.values()).values()) == {100}


def test_weights_are_spread_and_reported_loads_count_at_the_next_spreading() -> None:
    partition = Partition()
    sessions = {member: join(partition, member) for member in "ab"}
    assign(partition, ["big", "s1", "s2", "s3"], [3.0, 1.0, 1.0, 1.0])
    by_owner = owners(partition)
    heavy = by_owner["big"]
    assert Counter(by_owner.values())[heavy] == 1

    other = "b" if heavy == "a" else "a"
    loads = {"s1": 50.0, "s2": 50.0, "s3": 50.0, "big": 1.0}
    partition.do(sessions[other], ReportLoad(group="g", member=other, loads=loads))
    assert revoked(partition) == []
    assign(partition, ["big", "s1", "s2", "s3"])

    assert len(revoked(partition)) == 1
    let_go_of_all(partition, sessions)
    assert sorted(Counter(owners(partition).values()).values()) == [2, 2]


def test_shards_that_are_listed_again_without_weights_keep_those_they_had() -> None:
    partition = Partition()
    for member in "ab":
        join(partition, member)
    names = ["big", "s1", "s2", "s3"]
    assign(partition, names, [3.0, 1.0, 1.0, 1.0])
    before = owners(partition)
    assert Counter(before.values())[before["big"]] == 1

    assign(partition, names)
    assign(partition, names)

    assert revoked(partition) == []
    assert owners(partition) == before


@pytest.mark.parametrize(
    "command",
    [
        Assign(group="g", shards=["s", "s"]),
        Assign(group="g", shards=["s"], weights=[1.0, 2.0]),
        Assign(group="g", shards=["s"], weights=[float("nan")]),
        Assign(group="g", shards=["s"], weights=[-1.0]),
        Join(group="g", member="a", data=bytes(4097)),
    ],
)
def test_what_makes_no_sense_is_refused(command: Assign | Join) -> None:
    partition = Partition()
    session = partition.open()

    assert error_of(partition.do(session, command)) is InvalidRequestError
