"""Every broker that applies the same commands holds the same metadata; a refusal changes
nothing."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logd.errors import (
    CorruptionError,
    InvalidConfigError,
    InvalidNameError,
    InvalidPartitionError,
    InvalidRequestError,
    MalformedBatchError,
    NewerFormatError,
    NotEnoughBrokersError,
    RequestError,
    TopicExistsError,
    UnavailableError,
    UnknownTopicError,
)
from logd.limits import (
    BROKERS_MAX,
    FEATURE_LEVEL,
    METADATA_COMMAND_BYTES_MAX,
    PRODUCER_IDS_PER_BLOCK,
)
from logd.metadata.commands import (
    AddPartitions,
    AllocateProducerIds,
    AlterTopic,
    Command,
    CreateInternalTopic,
    CreateTopic,
    DeleteTopic,
    FormCluster,
    RegisterBroker,
    decode_command,
    encode_command,
)
from logd.metadata.features import LEVEL_MAX, ORDER_LEVEL
from logd.metadata.state import (
    BrokerRegistered,
    MetadataState,
    ProducerIdBlock,
    Result,
    TopicAltered,
    TopicCreated,
    TopicDeleted,
)
from logd.types import NODE_ID_MAX, DirectoryId, HostPort, NodeId, Offset

FORM = FormCluster(
    cluster_id="cluster",
    voters={NodeId(n): DirectoryId(f"disk{n}") for n in (1, 2, 3)},
    feature_level=FEATURE_LEVEL,
)


def register(node: int, /, **changes: object) -> RegisterBroker:
    command = RegisterBroker(
        node=NodeId(node),
        directory_id=DirectoryId(f"disk{node}"),
        incarnation=1,
        host=f"host{node}",
        port=7171,
        peer_host=f"host{node}",
        peer_port=7181,
        failure_domain=f"host{node}",
        features={LEVEL_MAX: FEATURE_LEVEL},
    )
    return msgspec.structs.replace(command, **changes)


def create(name: str = "orders", partitions: int = 3, **changes: object) -> CreateTopic:
    command = CreateTopic(name=name, partitions=partitions, now_ms=1_000)
    return msgspec.structs.replace(command, **changes)


def apply(state: MetadataState, command: Command) -> Result:
    """Apply as a broker does: from the bytes in the log, and what it proposed knowing the state."""
    if isinstance(command, RegisterBroker) and command.instead_of is None:
        command = state.in_order(command)
    result = state.apply(decode_command(encode_command(command)), state.version)
    state.check_invariants()
    return result


def cluster(brokers: int = 3) -> MetadataState:
    state = MetadataState()
    apply(state, FORM)
    for node in range(1, brokers + 1):
        apply(state, register(node))
    return state


# --- the cluster ------------------------------------------------------------------------


def test_before_the_first_command_there_is_no_cluster() -> None:
    assert MetadataState().cluster_id is None


def test_the_first_command_says_who_the_cluster_is() -> None:
    state = MetadataState()

    apply(state, FORM)

    assert state.cluster_id == "cluster"
    assert state.voters == FORM.voters


def test_forming_it_again_in_the_same_way_is_harmless_and_otherwise_refused() -> None:
    state = cluster()

    apply(state, FORM)
    with pytest.raises(InvalidRequestError, match="formed before, as 'cluster' of brokers 1, 2, 3"):
        apply(state, msgspec.structs.replace(FORM, cluster_id="other"))

    assert state.cluster_id == "cluster"


@pytest.mark.parametrize(
    "command",
    [
        register(1),
        create(),
        AllocateProducerIds(node=NodeId(1), count=1),
    ],
)
def test_nothing_else_happens_before(command: Command) -> None:
    with pytest.raises(UnavailableError, match="not been formed"):
        apply(MetadataState(), command)


@pytest.mark.parametrize(
    "voters",
    [
        {},
        {NodeId(0): DirectoryId("d")},
        {NodeId(1): DirectoryId("")},
        {NodeId(n): DirectoryId(f"d{n}") for n in range(1, 7)},
    ],
)
def test_a_cluster_of_impossible_voters_is_refused(voters: dict[NodeId, DirectoryId]) -> None:
    with pytest.raises(InvalidRequestError):
        apply(MetadataState(), FormCluster(cluster_id="c", voters=voters))


# --- brokers ----------------------------------------------------------------------------


def test_a_broker_that_starts_again_replaces_its_registration() -> None:
    state = cluster()

    result = apply(state, register(2, port=9000, incarnation=2))

    assert isinstance(result, BrokerRegistered)
    assert result.replaced is not None
    assert result.replaced.address == HostPort("host2", 7171)
    assert result.broker.address == HostPort("host2", 9000)
    assert [broker.node for broker in state.brokers] == [1, 2, 3]


def test_registering_twice_is_the_same_as_once() -> None:
    state = cluster()

    result = apply(state, register(2))

    assert isinstance(result, BrokerRegistered)
    assert result.broker == result.replaced == state.broker(NodeId(2))


@pytest.mark.parametrize("known", [None, 1], ids=["below the level", "at it"])
def test_an_attempt_of_an_earlier_start_does_not_come_behind_that_of_a_later_one(
    known: int | None,
) -> None:
    state = cluster()
    slow = register(2, port=8000, incarnation=2, instead_of=known)
    apply(state, register(2, port=9000, incarnation=3))
    before = state.broker(NodeId(2))

    with pytest.raises(UnavailableError, match="broker 2 has another registration by now than"):
        state.apply(slow, state.version)

    assert state.broker(NodeId(2)) == before


def test_the_first_of_two_that_replace_the_same_registration_holds_until_the_other_knows() -> None:
    state = cluster()
    earlier = state.in_order(register(2, port=8000, incarnation=2))
    later = state.in_order(register(2, port=9000, incarnation=3))
    apply(state, earlier)
    with pytest.raises(UnavailableError, match="another registration"):
        apply(state, later)

    apply(state, state.in_order(later))
    apply(state, later)  # A second attempt of the same start changes nothing.

    with pytest.raises(UnavailableError, match="another registration"):
        apply(state, earlier)
    found = state.broker(NodeId(2))
    assert found is not None
    assert found.address == HostPort("host2", 9000)


def test_the_first_attempt_of_a_newcomer_may_come_late_too() -> None:
    state = cluster()
    slow = state.in_order(register(4, port=8000, incarnation=1))
    assert slow.instead_of == 0
    apply(state, register(4, port=9000, incarnation=2))

    with pytest.raises(UnavailableError, match="another registration"):
        apply(state, slow)


def test_below_the_level_for_it_the_last_registration_holds() -> None:
    """As brokers of before apply it."""
    state = cluster()
    state._feature_level = ORDER_LEVEL - 1
    late = register(2, port=8000, incarnation=2)
    assert state.in_order(late) == late
    apply(state, register(2, port=9000, incarnation=3))

    apply(state, late)

    found = state.broker(NodeId(2))
    assert found is not None
    assert found.address == HostPort("host2", 8000)


def test_a_wiped_disk_is_not_the_broker_it_was() -> None:
    state = cluster(brokers=4)

    for node in (3, 4):
        with pytest.raises(InvalidRequestError, match=f"broker {node} .* 'disk{node}', found 'x'"):
            apply(state, register(node, directory_id="x"))


def test_a_voter_registers_with_the_disk_that_formed_the_cluster() -> None:
    state = cluster(brokers=0)

    with pytest.raises(InvalidRequestError, match="'disk1', found 'new'"):
        apply(state, register(1, directory_id="new"))


@pytest.mark.parametrize(
    "changes",
    [
        {"host": ""},
        {"port": 0},
        {"peer_port": 65_536},
        {"rack": "r" * 256},
        {"incarnation": -1},
        {"features": {f"f{n}": 1 for n in range(65)}},
    ],
)
def test_a_registration_out_of_range_is_refused(changes: dict[str, object]) -> None:
    state = cluster(brokers=0)

    with pytest.raises(InvalidRequestError):
        apply(state, register(1, **changes))

    assert state.brokers == ()


@pytest.mark.parametrize("node", [-1, 0, 2**31])
def test_a_node_id_out_of_range_is_refused(node: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"node id {node}, expected 1 to 2147483647"):
        apply(cluster(), register(node))


# --- topics -----------------------------------------------------------------------------


def test_a_topic_gets_numbered_partitions_with_groups_of_their_own() -> None:
    state = cluster()

    result = apply(state, create(partitions=2))

    assert isinstance(result, TopicCreated)
    assert [(p.group, p.partition, p.replicas) for p in result.topic.partitions] == [
        (1, 0, (1, 2, 3)),
        (2, 1, (2, 1, 3)),
    ]
    assert state.topic("orders") == result.topic
    assert str(result.topic.partitions[1].name) == "orders/1"


def test_a_broker_can_ask_what_it_holds() -> None:
    state = cluster(brokers=4)

    apply(state, create(partitions=4, replicas=2))

    held = {node: [p.group for p in state.partitions_on(NodeId(node))] for node in range(1, 6)}
    assert held == {1: [1, 3], 2: [1, 3], 3: [2, 4], 4: [2, 4], 5: []}
    placement = state.placement(state.partitions_on(NodeId(3))[0].group)
    assert placement == state.partitions_on(NodeId(3))[0]


def test_placement_counts_what_other_topics_have_placed() -> None:
    state = cluster()

    for number in range(6):
        apply(state, create(f"topic{number}", partitions=1))

    leaders = [topic.partitions[0].replicas[0] for topic in state.topics]
    assert leaders == [1, 2, 3, 1, 2, 3]


def test_nothing_new_is_placed_on_brokers_that_were_down_while_there_are_others() -> None:
    state = cluster(brokers=4)
    down = (NodeId(2), NodeId(9))  # Who has been removed meanwhile may be named too.
    commands: list[Command] = [
        create(partitions=4, avoid=down),
        AddPartitions(name="orders", partitions=6, avoid=down),
        CreateInternalTopic(name="__internal", partitions=2, now_ms=1_000, avoid=down),
    ]

    for command in commands:
        apply(state, command)

    assert state.partitions_on(NodeId(2)) == ()
    assert {len(state.partitions_on(NodeId(node))) for node in (1, 3, 4)} == {8}


def test_a_broker_that_was_down_gets_replicas_where_there_are_too_few_others() -> None:
    state = cluster(brokers=3)

    result = apply(state, create(partitions=2, avoid=(NodeId(1),)))

    assert isinstance(result, TopicCreated)
    assert [p.replicas for p in result.topic.partitions] == [(2, 3, 1), (3, 2, 1)]


def test_a_change_of_options_is_told_by_a_version_of_its_own() -> None:
    state = cluster()
    apply(state, create())
    apply(state, create("other"))
    before = state.options_version

    apply(state, AlterTopic(name="orders", config={"fence": "required"}))

    assert before < state.options_version <= state.version
    # Who is shipped the state does not know what it has missed.
    assert MetadataState.restore(state.snapshot()).options_version == state.version


def test_topics_are_listed_by_name() -> None:
    state = cluster()

    for name in ("b", "c", "a"):
        apply(state, create(name, partitions=1))

    assert [topic.name for topic in state.topics] == ["a", "b", "c"]


def test_a_topic_created_again_is_another_topic() -> None:
    state = cluster()
    apply(state, create(partitions=2))
    deleted = apply(state, DeleteTopic(name="orders"))

    created = apply(state, create(partitions=2))

    assert isinstance(deleted, TopicDeleted)
    assert isinstance(created, TopicCreated)
    assert [p.group for p in deleted.topic.partitions] == [1, 2]
    assert [p.group for p in created.topic.partitions] == [3, 4]
    assert (deleted.topic.topic_id, created.topic.topic_id) == (1, 2)
    assert [p.group for p in state.partitions_on(NodeId(1))] == [3, 4]


def test_a_deleted_topic_leaves_nothing_behind() -> None:
    state = cluster()
    apply(state, create())

    apply(state, DeleteTopic(name="orders"))

    assert state.topics == ()
    assert all(state.partitions_on(broker.node) == () for broker in state.brokers)
    assert all(state.placement(group) is None for group in range(5))  # type: ignore[arg-type]


def test_options_are_set_and_reset() -> None:
    state = cluster()
    apply(state, create(config={"segment_bytes": "1MiB", "fence": "required"}))

    result = apply(state, AlterTopic(name="orders", config={"fence": None, "durability": "synced"}))

    assert isinstance(result, TopicAltered)
    assert result.topic.config == {"durability": "synced", "segment_bytes": "1MiB"}
    assert result.topic.options.segment_bytes == 1024 * 1024
    assert result.topic.options.fence == "none"
    assert state.topic("orders") == result.topic


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"segment_byte": "1"}, "unknown topic option 'segment_byte'; did you mean 'segment_byt"),
        ({"colour": "red"}, "unknown topic option 'colour'; known are durability"),
        ({"segment_bytes": "much"}, "segment_bytes='much': expected a number of bytes such as"),
        ({"segment_bytes": "-1"}, "segment_bytes='-1': expected a number"),
        ({"segment_bytes": "1"}, "segment_bytes='1': allowed are 65536 to 2147483648 bytes"),
        ({"segment_bytes": "9" * 5000}, "segment_bytes='999999.*: expected a number"),
        ({"durability": "maybe"}, "durability='maybe': allowed are synced, replicated"),
        ({"fence": "yes"}, "fence='yes': allowed are none, required"),
        ({"retention_ms": "-1"}, "15m, 36h or 7d; without it nothing is removed"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(config: dict[str, str], found: str) -> None:
    state = cluster()
    apply(state, create("existing"))

    with pytest.raises(InvalidConfigError, match=found):
        apply(state, create(config=config))
    with pytest.raises(InvalidConfigError, match=found):
        apply(state, AlterTopic(name="existing", config=dict(config)))


def test_resetting_a_misspelt_option_is_refused() -> None:
    state = cluster()
    apply(state, create())

    with pytest.raises(InvalidConfigError, match="did you mean 'fence'"):
        apply(state, AlterTopic(name="orders", config={"fense": None}))


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (create("taken"), TopicExistsError),
        (create("a b"), InvalidNameError),
        (create("__internal"), InvalidNameError),
        (create(partitions=0), InvalidPartitionError),
        (create(partitions=10**6), InvalidPartitionError),
        (create(replicas=4), NotEnoughBrokersError),
        (create(replicas=0), InvalidRequestError),
        (create(config={"no": "option"}), InvalidConfigError),
        (DeleteTopic(name="missing"), UnknownTopicError),
        (AlterTopic(name="missing", config={}), UnknownTopicError),
        (AllocateProducerIds(node=NodeId(1), count=0), InvalidRequestError),
        (
            AllocateProducerIds(node=NodeId(1), count=PRODUCER_IDS_PER_BLOCK + 1),
            InvalidRequestError,
        ),
    ],
)
def test_a_refusal_moves_the_version_and_nothing_else(
    command: Command, error: type[RequestError]
) -> None:
    state = cluster()
    apply(state, create("taken"))
    untouched = MetadataState.restore(state.snapshot())

    with pytest.raises(error):
        apply(state, command)

    untouched.advance(Offset(untouched.version + 1))
    assert state.snapshot() == untouched.snapshot()
    state.check_invariants()


# --- producer ids -----------------------------------------------------------------------


def test_producer_ids_are_given_once() -> None:
    state = cluster()

    first = apply(state, AllocateProducerIds(node=NodeId(1), count=100))
    second = apply(state, AllocateProducerIds(node=NodeId(2), count=10))

    assert first == ProducerIdBlock(start=1, end=101)  # type: ignore[arg-type]
    assert second == ProducerIdBlock(start=101, end=111)  # type: ignore[arg-type]


# --- version and snapshot ---------------------------------------------------------------


def test_the_version_is_the_end_of_what_was_applied() -> None:
    state = MetadataState()

    state.advance(Offset(3))
    state.apply(FORM, Offset(3))

    assert state.version == 4


def test_commands_are_not_applied_twice() -> None:
    state = cluster()

    with pytest.raises(AssertionError, match="in order"):
        state.apply(create(), Offset(0))


COMMANDS = st.lists(
    st.one_of(
        st.builds(register, st.integers(1, 6), rack=st.sampled_from(["", "x", "y"])),
        st.builds(
            create,
            st.sampled_from("abc"),
            partitions=st.integers(0, 5),
            replicas=st.none() | st.integers(0, 4),
        ),
        st.builds(DeleteTopic, name=st.sampled_from("abc")),
        st.builds(
            AlterTopic,
            name=st.sampled_from("abc"),
            config=st.dictionaries(
                st.sampled_from(["fence", "segment_bytes"]),
                st.sampled_from([None, "none", "required", "1MiB"]),
            ),
        ),
        st.builds(AllocateProducerIds, node=st.just(NodeId(1)), count=st.integers(0, 9)),
    ),
    max_size=25,
)


@given(before=COMMANDS, after=COMMANDS)
@settings(max_examples=60, deadline=None)
def test_a_restored_state_goes_on_as_the_one_it_was_taken_of(
    before: list[Command], after: list[Command]
) -> None:
    state = MetadataState()
    outcomes(state, [FORM, *before])
    restored = MetadataState.restore(state.snapshot())
    restored.check_invariants()

    assert outcomes(restored, after) == outcomes(state, after)
    assert restored.snapshot() == state.snapshot()
    state.check_invariants()


def outcomes(state: MetadataState, commands: list[Command]) -> list[object]:
    found: list[object] = []
    for command in commands:
        try:
            found.append(state.apply(command, state.version))
        except RequestError as error:
            found.append((type(error), str(error)))
    return found


def test_a_snapshot_of_a_newer_version_is_refused() -> None:
    snapshot = bytearray(cluster().snapshot())
    snapshot[len(b"logd metadata ")] = 3

    with pytest.raises(NewerFormatError, match="format 3, this version reads 2"):
        MetadataState.restore(bytes(snapshot))


@pytest.mark.parametrize("length", [0, 5, 15, 16, 17, 60])
def test_a_snapshot_that_is_cut_short_is_corruption(length: int) -> None:
    with pytest.raises(CorruptionError):
        MetadataState.restore(cluster().snapshot()[:length])


def test_a_snapshot_that_places_replicas_nowhere_is_corruption() -> None:
    state = cluster(brokers=1)
    apply(state, create())
    damaged = state.snapshot().replace(b"\xa8replicas\x91\x01", b"\xa8replicas\x91\x09")

    with pytest.raises(CorruptionError, match="not all of them registered"):
        MetadataState.restore(damaged)


# --- commands as bytes ------------------------------------------------------------------


def test_the_bytes_of_a_command_never_change() -> None:
    command = CreateTopic(name="t", partitions=2, replicas=3, config={"fence": "none"}, now_ms=5)

    assert encode_command(command) == (
        b"\x86\xa7command\xabCreateTopic\xa4name\xa1t\xaapartitions\x02\xa8replicas\x03"
        b"\xa6config\x81\xa5fence\xa4none\xa6now_ms\x05"
    )


def test_the_bytes_of_a_command_that_names_brokers_to_avoid_never_change() -> None:
    command = AddPartitions(name="t", partitions=2, avoid=(NodeId(3), NodeId(300)))

    assert encode_command(command) == (
        b"\x84\xa7command\xadAddPartitions\xa4name\xa1t\xaapartitions\x02\xa5avoid\x92\x03\xcd\x01,"
    )


def test_the_bytes_of_a_command_that_counts_replicas_never_change() -> None:
    command = AddPartitions(name="t", partitions=2, replicas=3)

    assert encode_command(command) == (
        b"\x84\xa7command\xadAddPartitions\xa4name\xa1t\xaapartitions\x02\xa8replicas\x03"
    )


def test_a_command_that_names_more_brokers_than_there_can_be_is_refused() -> None:
    named = tuple(NodeId(NODE_ID_MAX - at) for at in range(BROKERS_MAX + 1))

    assert decode_command(encode_command(create(avoid=named[1:]))) == create(avoid=named[1:])
    with pytest.raises(MalformedBatchError, match="length <= 1000"):
        decode_command(encode_command(create(avoid=named)))


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\xc0",
        b"\x80",
        b"\x81\xa7command\xa5Unknow",
        b"\x81\xa7command\xa7Unknown",
        b"\x82\xa7command\xabDeleteTopic\xa4name\x07",
        b"\x82\xa7command\xabDeleteTopic\xa4name\xa1\xff",
        b"\x83\xa7command\xabDeleteTopic\xa4name\xa1t\xa3new\x01",
        b"\x82\xa7command\xabDeleteTopic\xa4name\xa1tmore",
        b"\x91" * METADATA_COMMAND_BYTES_MAX,
        b"\xc0" * (METADATA_COMMAND_BYTES_MAX + 1),
    ],
    ids=range(11),
)
def test_what_is_not_a_command_is_refused(encoded: bytes) -> None:
    with pytest.raises(MalformedBatchError, match="metadata command"):
        decode_command(encoded)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_garbage_is_refused_and_nothing_else(garbage: bytes) -> None:
    with pytest.raises(MalformedBatchError):
        decode_command(garbage)


def test_a_command_too_large_for_the_log_is_refused_before_it_gets_there() -> None:
    with pytest.raises(InvalidRequestError, match=f"at most {METADATA_COMMAND_BYTES_MAX}"):
        encode_command(create(config={"fence": "x" * METADATA_COMMAND_BYTES_MAX}))


def test_text_that_cannot_be_stored_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="cannot be stored"):
        encode_command(create("\ud800"))
