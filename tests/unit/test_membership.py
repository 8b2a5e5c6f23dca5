"""Who may connect: what the cluster was founded with, and what became of it since."""

from __future__ import annotations

import random
from collections.abc import Callable

import trio

from logd.replication.membership import Membership
from logd.replication.peer_protocol import ClusterView
from logd.storage.directory import DataDirectory
from logd.types import DirectoryId, HostPort, NodeId
from tests.sim.env import SimEnv
from tests.sim.files import SimulatedFileSystem
from tests.sim.incarnation import Incarnation
from tests.sim.network import SimNetwork
from tests.support.replica import PROMPT, a_while, play

ONE, TWO, FOUR = NodeId(1), NodeId(2), NodeId(4)
CLUSTER = {node: HostPort(f"node{node}", 7181) for node in (ONE, TWO)}
FOUNDERS = {1: "d1", 2: "d2"}


def membership(*, formed: bool = True, join: HostPort | None = None) -> Membership:
    files = SimulatedFileSystem(random.Random(1))
    env = SimEnv(
        seed=1,
        incarnation=Incarnation("node1", 1),
        network=SimNetwork(random.Random(1)),
        files=files,
        boot_id="boot",
        blocking=PROMPT,
    )
    directory = DataDirectory.open(files, "/data", ONE, lambda: "d1")
    if formed:
        directory.form(FOUNDERS)
        directory.set_cluster_id("a-cluster")
    cluster = CLUSTER if join is None else {ONE: CLUSTER[ONE]}
    return Membership(ONE, directory, cluster, env, join)


def reason_against(ours: Membership, known: ClusterView) -> str | None:
    """Why it is refused for good; None if it is not."""
    refusal = ours.refusal(known)
    assert refusal is None or not refusal.is_passing
    return None if refusal is None else refusal.reason


def tell(story: Callable[[Membership], None], *, formed: bool = True) -> None:
    async def play_it() -> None:
        story(membership(formed=formed))

    play(play_it)


def view(
    node: int,
    directory_id: str,
    cluster_list: str = "1=node1:7181,2=node2:7181",
    cluster_id: str | None = "a-cluster",
) -> ClusterView:
    return ClusterView(
        node=node, directory_id=directory_id, cluster_list=cluster_list, cluster_id=cluster_id
    )


def test_a_founder_is_let_in_with_the_directory_it_founded_with() -> None:
    def story(ours: Membership) -> None:
        assert ours.refusal(view(TWO, "d2")) is None

    tell(story)


def test_a_wiped_founder_is_told_what_it_is_and_the_way_out() -> None:
    def story(ours: Membership) -> None:
        refusal = reason_against(ours, view(TWO, "another"))

        assert refusal is not None
        assert "start it with its old data directory" in refusal
        assert "--join" in refusal

    tell(story)


def test_a_broker_that_joined_is_let_in_once_it_is_registered() -> None:
    def story(ours: Membership) -> None:
        before = reason_against(
            ours, view(FOUR, "d4", cluster_list="4=node4:7181", cluster_id=None)
        )
        assert before is not None
        assert "--join" in before

        ours.register(FOUR, DirectoryId("d4"))

        assert ours.refusal(view(FOUR, "d4", cluster_list="4=node4:7181")) is None
        wiped = reason_against(ours, view(FOUR, "another", cluster_list="4=node4:7181"))
        assert wiped is not None
        assert "never used" in wiped

    tell(story)


def test_of_a_member_that_is_not_known_here_one_asks_those_who_are() -> None:
    """It has the cluster's id, so it was registered."""

    async def story() -> None:
        ours = membership()
        met: list[int] = []

        async def ask() -> None:
            while True:
                await ours.outdated()
                met.append(len(met))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await a_while()
            for known in (view(TWO, "another"), view(FOUR, "d4", cluster_id=None)):
                assert ours.refusal(known) is not None
            await a_while()
            assert met == []
            for _ in range(2):
                refusal = ours.refusal(view(FOUR, "d4", cluster_list="4=node4:7181"))
                assert refusal == ("node 1 has not heard of node 4 yet", True)
                await a_while()
            assert met == [0, 1]
            nursery.cancel_scope.cancel()

    play(story)


def test_a_removed_broker_is_told_what_it_is_and_the_way_out() -> None:
    def story(ours: Membership) -> None:
        ours.register(TWO, DirectoryId("d2"))

        ours.remove(TWO)

        refusal = reason_against(ours, view(TWO, "d2"))
        assert refusal is not None
        assert "was removed" in refusal
        assert "never used" in refusal

    tell(story)


def test_lists_are_compared_while_a_cluster_forms() -> None:
    def story(ours: Membership) -> None:
        refusal = reason_against(ours, view(TWO, "d2", cluster_list="2=node2:7181"))

        assert refusal is not None
        assert "lists differ" in refusal

    tell(story, formed=False)


def test_who_has_not_joined_yet_says_so_to_those_who_know_of_it_already() -> None:
    """They know as soon as it is registered; it knows with the answer, which may be on its way."""

    async def story() -> None:
        ours = membership(formed=False, join=HostPort("node2", 7181))

        refusal = ours.refusal(view(FOUR, "d4"))

        assert refusal is not None
        assert refusal.is_passing
        assert refusal.reason == "node 1 has not joined yet: it waits for the answer of node2:7181"
        ours.directory.form(FOUNDERS)  # The one half of what it writes down.
        assert ours.refusal(view(FOUR, "d4")) == refusal
        ours.register(FOUR, DirectoryId("d4"))
        assert ours.refusal(view(FOUR, "d4")) is None

    play(story)
