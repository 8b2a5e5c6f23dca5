"""Frames are taken as they arrive, no faster than there is room, and each in bounded time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio

from logd.env import ByteStream
from logd.errors import InvalidRequestError, LogdError, OverloadedError, ProtocolError
from logd.limits import MIB, RECEIVE_BYTES
from logd.replication.inbox import Inbox
from logd.replication.turn import Turn
from logd.types import HostPort
from logd.wire.frame import Frame, FrameDecoder, frame_prefix
from tests.sim.incarnation import Incarnation
from tests.sim.network import CALM, NetworkConditions, SimNetwork
from tests.support.replica import play, until

TIMEOUT_S = 30.0


class Desk:
    """Where the frames of one connection land: ``room`` more of them fit."""

    def __init__(self, near: ByteStream, far: ByteStream) -> None:
        self.decoder = decoder = FrameDecoder(MIB, large_frames=self)
        self.may_begin = True
        self.near = near
        self.turn = Turn(lambda: False)
        self.bodies: list[bytes] = []
        self.room = 1_000_000
        self.refuses = b""
        self.outcome: list[str] = []
        self.inbox = Inbox(
            far, decoder, self.turn, timeout_s=TIMEOUT_S, take=self.take, room=self.wait
        )

    def take(self, frame: Frame) -> bool:
        assert self.turn.is_open
        if self.refuses and frame.body == self.refuses:
            raise InvalidRequestError("not this one")
        self.bodies.append(bytes(frame.body))
        self.room -= 1
        return self.room > 0

    async def wait(self) -> None:
        while self.room <= 0 or not self.may_begin:
            await trio.sleep(0.01)

    def begins(self, frame_bytes: int) -> bool:
        return self.may_begin

    def is_over(self) -> None:
        pass

    async def run(self) -> None:
        try:
            await self.inbox.run()
        except trio.TooSlowError:
            self.outcome.append("too slow")
        except (LogdError, OSError) as error:
            self.outcome.append(type(error).__name__)
        else:
            self.outcome.append("ended")


def frame_of(body: bytes) -> bytes:
    return frame_prefix(1, 0, b"h", 0, len(body)) + body


def at_a_desk(
    story: Callable[[Desk], Awaitable[None]],
    *,
    held: bytes = b"",
    conditions: NetworkConditions = CALM,
) -> None:
    """Tell ``story`` with an inbox that runs, and whose decoder holds something already."""

    async def main() -> None:
        network = SimNetwork(random.Random(1), conditions=conditions)
        far_host = network.attach(Incarnation("far", 1))
        near_host = network.attach(Incarnation("near", 1))
        listener = await far_host.listen(HostPort("far", 0))
        near = await near_host.connect(listener.address)
        desk = Desk(near, await listener.accept())
        desk.decoder.feed(held)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far_host.deliver, desk.turn)
            nursery.start_soon(desk.run)
            await story(desk)
            nursery.cancel_scope.cancel()

    play(main)


@pytest.mark.parametrize("split", [0.0, 0.9])
def test_frames_are_taken_in_order_however_they_are_cut(split: float) -> None:
    bodies = [bytes([number]) * (number * 37 % 900 + 1) for number in range(200)]

    async def story(desk: Desk) -> None:
        await desk.near.send([frame_of(body) for body in bodies])
        desk.near.abort()
        await until(lambda: bool(desk.outcome))
        assert desk.bodies == bodies
        assert desk.outcome == ["ended"]

    at_a_desk(story, conditions=NetworkConditions(split_probability=split))


def test_what_came_with_the_greeting_is_taken_without_waiting_for_more() -> None:
    async def story(desk: Desk) -> None:
        await until(lambda: desk.bodies == [b"one", b"two"])

    at_a_desk(story, held=frame_of(b"one") + frame_of(b"two"))


def test_nothing_is_taken_while_there_is_no_room_and_all_of_it_afterwards() -> None:
    bodies = [b"%03d" % number for number in range(100)]

    async def story(desk: Desk) -> None:
        desk.room = 10
        await desk.near.send([frame_of(body) for body in bodies])
        await trio.sleep(1)
        assert len(desk.bodies) == 10
        desk.room = 1
        await trio.sleep(1)
        assert len(desk.bodies) == 11
        desk.room = 1000
        await until(lambda: desk.bodies == bodies)

    at_a_desk(story)


def test_a_frame_that_does_not_become_whole_in_time_ends_it() -> None:
    async def story(desk: Desk) -> None:
        frame = frame_of(b"x" * 1000)
        await desk.near.send([frame_of(b"whole"), frame[:10]])
        for position in range(10, 10 + int(TIMEOUT_S) - 2):
            await trio.sleep(1)
            await desk.near.send([frame[position : position + 1]])
        assert not desk.outcome
        await trio.sleep(3)
        assert desk.outcome == ["too slow"]
        assert desk.bodies == [b"whole"]

    at_a_desk(story)


def test_between_two_frames_it_may_be_quiet_and_slow_frames_each_have_their_time() -> None:
    async def story(desk: Desk) -> None:
        for _ in range(5):
            frame = frame_of(b"x" * 1000)
            await desk.near.send([frame[:500]])
            await trio.sleep(TIMEOUT_S * 0.7)
            await desk.near.send([frame[500:]])
            await trio.sleep(TIMEOUT_S * 2)
        assert not desk.outcome
        assert len(desk.bodies) == 5

    at_a_desk(story)


def test_a_frame_that_is_refused_ends_it_and_nothing_behind_it_is_taken() -> None:
    async def story(desk: Desk) -> None:
        desk.refuses = b"bad"
        await desk.near.send([frame_of(b"good"), frame_of(b"bad"), frame_of(b"good")])
        await until(lambda: bool(desk.outcome))
        assert desk.outcome == [InvalidRequestError.__name__]
        assert desk.bodies == [b"good"]

    at_a_desk(story)


def test_what_is_no_frame_ends_it() -> None:
    async def story(desk: Desk) -> None:
        await desk.near.send([b"GET / HTTP/1.1\r\n\r\n"])
        await until(lambda: bool(desk.outcome))
        assert desk.outcome == [ProtocolError.__name__]

    at_a_desk(story)


def test_a_large_frame_that_may_not_begin_is_not_read_and_its_time_stands_still() -> None:
    large = bytes(3 * RECEIVE_BYTES)

    async def story(desk: Desk) -> None:
        async def send() -> None:
            await desk.near.send([frame_of(b"before"), frame_of(large), frame_of(b"behind")])

        desk.may_begin = False
        async with trio.open_nursery() as sending:
            sending.start_soon(send)
            await trio.sleep(2 * TIMEOUT_S)
            assert not desk.outcome
            assert desk.bodies == [b"before"]
            assert desk.decoder.pending_bytes <= RECEIVE_BYTES

            desk.may_begin = True
            await until(lambda: desk.bodies == [b"before", large, b"behind"])

    at_a_desk(story)


def test_a_large_frame_that_has_begun_late_has_the_time_that_each_has() -> None:
    async def story(desk: Desk) -> None:
        desk.may_begin = False
        frame = frame_of(bytes(2 * RECEIVE_BYTES))
        await desk.near.send([frame[:5]])
        await trio.sleep(1)
        await desk.near.send([frame[5:1000]])
        await trio.sleep(2 * TIMEOUT_S)
        desk.may_begin = True
        await trio.sleep(TIMEOUT_S - 2)
        assert not desk.outcome
        await trio.sleep(4)
        assert desk.outcome == ["too slow"]

    at_a_desk(story)


def test_it_can_be_cut_off_within_a_frame_for_a_reason_that_lies_outside() -> None:
    async def story(desk: Desk) -> None:
        await desk.near.send([frame_of(b"whole"), frame_of(b"begun")[:5]])
        await until(lambda: desk.bodies == [b"whole"])
        desk.inbox.cut(OverloadedError("for others"))
        await until(lambda: desk.outcome == [OverloadedError.__name__])

    at_a_desk(story)
