"""A simulated network: TCP as a broker can meet it, on virtual time, from one generator.

What is modelled, and what the real network does likewise:

- Each connection is two directed pipes of bytes.  Bytes arrive in order, late, cut into other
  pieces than they were sent in, and never damaged (TCP's checksum and ours are not the point).
- A connection loses bytes only by ending: a live one delivers everything, however late.
- A pipe holds at most ``buffer_bytes`` that were sent and not yet received; then ``send``
  waits.  Room comes back to the sender only while the way back is open.
- A **cut** of a→b holds what travels that way.  Nobody is told: the ends notice by silence.
  At its end a connection that was held goes on or is reset, by chance.  Cuts may overlap; a
  link is open again when all of them have ended.
- A **clog** holds a→b for a time and then lets everything through; nothing is reset.
- A process that is **killed** leaves its kernel behind: the other side reads the rest and then
  the end, or is reset, and whoever sends to it later is reset.
- A connection is **half open** when one end has lost it and the other was not told: what it
  sends is answered with a reset; as long as it only listens it hears nothing.
- A host that **vanishes** (power, cable) is silent.  Who sends to it waits, and is reset when
  the host is back, for it no longer knows the connection.
- Connecting asks again at growing intervals while either direction is closed, then times
  out; it is refused where the host is up and nobody listens.

What is left out: congestion control, half-closing one direction, the kernel's own time-out of
an established connection (15 minutes; a broker that relies on it is lost anyway).

Hosts are names; a node of the cluster and a client are each a host.  Deterministic: the only
chance is the ``random.Random`` given, and everything is kept in lists and dicts.
"""

from __future__ import annotations

import errno
import itertools
import random
import socket
from collections import deque
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, NamedTuple

import outcome
import trio

from logd.env import Buffer, ByteStream, Listener, Receiver, Round
from logd.limits import KIB, MIB
from logd.types import HostPort
from logd_client.transport import Receiver as ClientReceiver
from tests.sim.clock import current_clock
from tests.sim.incarnation import Incarnation
from tests.sim.trace import Trace

EPHEMERAL_PORT_MIN: Final = 49_152
BACKLOG: Final = 1024

Link = tuple[str, str]
"""(from host, to host)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConditions:
    """How kind the network is.  Each seed should draw its own (``draw``): one that is always
    punctual hides bugs, and so does one that never is."""

    latency_s_min: float = 0.000_1
    latency_s_mean: float = 0.000_4
    """Added to the minimum, exponentially distributed, anew for every piece."""

    spike_probability: float = 0.002
    spike_s_max: float = 0.1
    bytes_per_second: float = 200.0 * MIB
    """Of each pipe of its own; the links of one host do not share."""

    split_probability: float = 0.2
    """Of a piece to travel, and arrive, as two."""

    short_read_probability: float = 0.1
    """Of ``receive_into`` to return less than has arrived."""

    yield_probability: float = 0.5
    """Of an operation that need not wait to let other tasks run first."""

    buffer_bytes: int = 256 * KIB
    connect_timeout_s: float = 20.0
    reset_on_heal_probability: float = 0.3
    vanish_probability: float = 0.3
    """Of a crash to silence the host, too, and not only to kill the process."""

    @classmethod
    def draw(cls, chance: random.Random) -> NetworkConditions:
        """A network with a character of its own."""
        return cls(
            latency_s_mean=chance.choice([0.000_1, 0.000_4, 0.002, 0.01]),
            spike_probability=chance.choice([0.0, 0.002, 0.02]),
            spike_s_max=chance.choice([0.05, 0.3, 1.0]),
            bytes_per_second=chance.choice([2.0 * MIB, 50.0 * MIB, 1000.0 * MIB]),
            split_probability=chance.choice([0.0, 0.2, 0.7]),
            short_read_probability=chance.choice([0.0, 0.1, 0.5]),
            buffer_bytes=chance.choice([16 * KIB, 64 * KIB, 256 * KIB]),
            reset_on_heal_probability=chance.choice([0.0, 0.3, 1.0]),
            vanish_probability=chance.choice([0.0, 0.3, 1.0]),
        )


CALM: Final = NetworkConditions(
    spike_probability=0.0,
    split_probability=0.0,
    short_read_probability=0.0,
    reset_on_heal_probability=0.0,
    vanish_probability=0.0,
)
"""For tests of something else than the network."""


class SimNetwork:
    """All hosts, listeners and connections of one run, and the faults between them.

    Bytes move on the run's agenda (``clock.py``), so it can only be made inside a run.
    """

    def __init__(
        self,
        chance: random.Random,
        *,
        conditions: NetworkConditions | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.conditions = conditions or NetworkConditions()
        self.chance = chance
        self.trace = trace or Trace()
        self._clock = current_clock()
        self._hosts: dict[str, _Host] = {}
        self._connections: dict[int, _Connection] = {}
        self._connection_count = 0
        self._prune_at = 64
        self._cuts: dict[Link, int] = {}
        self._clogged_until: dict[Link, float] = {}
        self._slow: dict[Link, float] = {}

    def attach(self, incarnation: Incarnation) -> SimHostNetwork:
        """Plug in the host for a new life; the host is powered from now on."""
        host = self._hosts.setdefault(incarnation.host, _Host(incarnation.host))
        assert host.incarnation is None or not host.incarnation.is_alive
        host.incarnation = incarnation
        host.arrivals = _Arrivals(self, incarnation)
        host.is_powered = True
        self._release_held()
        return SimHostNetwork(self, host, incarnation)

    @property
    def host_names(self) -> list[str]:
        """All machines there ever were, brokers' and clients'."""
        return list(self._hosts)

    # --- faults ---------------------------------------------------------------------------

    def crash(self, name: str, *, vanish: bool | None = None) -> None:
        """End all sockets of the host, whose incarnation has ended already.

        ``vanish`` chooses between a lost host (True) and a killed process (False); by
        default chance does.
        """
        host = self._hosts[name]
        assert host.incarnation is not None
        assert not host.incarnation.is_alive, "end the incarnation first, then its sockets"
        if vanish is None:
            vanish = self._happens(self.conditions.vanish_probability)
        self.trace.record(name, "host_vanished" if vanish else "process_killed")
        host.is_powered = not vanish
        for listener in list(host.listeners.values()):
            listener._die()
        for connection in self._live_connections():
            for end in connection.ends:
                if end._incarnation is host.incarnation:
                    end._die(says_nothing=vanish)

    def cut(self, source: str, target: str) -> None:
        """Hold everything that travels from ``source`` to ``target``, until ``heal``."""
        self.hold([(source, target)])

    def partition(self, *groups: Sequence[str]) -> None:
        """Cut both directions between hosts of different groups.  Hosts in no group are not
        touched; cuts made before stay."""
        self.trace.record("network", "network_partitioned", groups=groups)
        for group, other_group in itertools.permutations(groups, 2):
            self._hold_quietly(itertools.product(group, other_group))

    def isolate(self, name: str, *, incoming: bool = True, outgoing: bool = True) -> None:
        """Cut what comes to ``name``, what leaves it, or both, from and to all other hosts."""
        self.trace.record("network", "host_isolated", host=name, into=incoming, out=outgoing)
        for other in self._hosts:
            if other != name and incoming:
                self._hold_quietly([(other, name)])
            if other != name and outgoing:
                self._hold_quietly([(name, other)])

    def hold(self, links: Sequence[Link]) -> None:
        """Cut these links, until ``release`` or ``heal``."""
        self.trace.record("network", "links_cut", links=_shown(links))
        self._hold_quietly(links)

    def _hold_quietly(self, links: Iterable[Link]) -> None:
        for link in links:
            self._cuts[link] = self._cuts.get(link, 0) + 1

    def release(self, links: Sequence[Link]) -> None:
        """End one cut of each of these links, unless ``heal`` has ended it already."""
        self.trace.record("network", "links_mended", links=_shown(links))
        mended: dict[Link, None] = {}
        for link in links:
            count = self._cuts.pop(link, 0) - 1
            if count > 0:
                self._cuts[link] = count
            elif count == 0:
                mended[link] = None
        self._mend(mended)

    def clog(self, source: str, target: str, seconds: float) -> None:
        """Hold everything from ``source`` to ``target`` for ``seconds``, then let it go."""
        self.trace.record("network", "link_clogged", link=f"{source}→{target}", seconds=seconds)
        until = trio.current_time() + seconds
        self._clogged_until[source, target] = max(
            until, self._clogged_until.get((source, target), 0.0)
        )
        self._clock.call_at(until, self._release_held)

    def slow(self, source: str, target: str, seconds: float) -> None:
        """Add ``seconds`` to every delay from ``source`` to ``target``, until ``heal`` or until
        it is called again; 0 ends it."""
        self.trace.record("network", "link_slowed", link=f"{source}→{target}", seconds=seconds)
        self._slow[source, target] = seconds

    def heal(self) -> None:
        """End all cuts, clogs and slowness.  What was cut goes on or is reset."""
        self.trace.record("network", "network_healed")
        cuts = self._cuts
        self._cuts = {}
        self._clogged_until = {}
        self._slow = {}
        self._mend(cuts)

    def calm_down(self) -> None:
        """Be quick and steady from now on; bytes still come in pieces as before."""
        self.conditions = replace(
            self.conditions,
            latency_s_mean=min(self.conditions.latency_s_mean, CALM.latency_s_mean),
            spike_probability=0.0,
            bytes_per_second=CALM.bytes_per_second,
        )

    def _mend(self, links: Container[Link]) -> None:
        """These are open again: what was held on them goes on or is reset."""
        for connection in self._live_connections():
            was_held = any(pipe.link in links and pipe.is_blocked for pipe in connection.pipes)
            if was_held and self._happens(self.conditions.reset_on_heal_probability):
                self._reset(connection)
        self._release_held()

    def reset_random(self) -> bool:
        """Reset one connection, as a machine in the middle might; False if there is none."""
        connection = self._random_live()
        if connection is not None:
            self._reset(connection)
        return connection is not None

    def half_open_random(self) -> bool:
        """Let one end of a connection lose it without the other being told; False if there is
        none."""
        connection = self._random_live()
        if connection is not None:
            end = self.chance.choice(connection.ends)
            self.trace.record("network", "half_opened", connection=connection, lost_by=end)
            end._lose()
        return connection is not None

    def _random_live(self) -> _Connection | None:
        live = [
            connection
            for connection in self._live_connections()
            if all(end.is_live for end in connection.ends)
        ]
        return self.chance.choice(live) if live else None

    # --- what the rest of this module asks ------------------------------------------------

    def is_passable(self, link: Link) -> bool:
        """True if what is sent along ``link`` arrives now."""
        return (
            link not in self._cuts
            and self._clogged_until.get(link, 0.0) <= self._clock.now
            and self._hosts[link[1]].is_powered
        )

    def delay(self, link: Link) -> float:
        """How long the next piece travels along ``link``."""
        seconds = self.conditions.latency_s_min + self._slow.get(link, 0.0)
        seconds += self.chance.expovariate(1.0) * self.conditions.latency_s_mean
        if self._happens(self.conditions.spike_probability):
            seconds += self.chance.random() * self.conditions.spike_s_max
        return seconds

    def _happens(self, probability: float) -> bool:
        return probability > 0.0 and self.chance.random() < probability

    async def _breathe(self) -> None:
        """Notice cancellation; sometimes let other tasks run, as a real socket sometimes does."""
        if self._happens(self.conditions.yield_probability):
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()

    def _open(self, near: _Host, far: _Host, port: int) -> _Connection:
        self._connection_count += 1
        connection = _Connection(self, self._connection_count, near, far, port)
        self._connections[connection.number] = connection
        if len(self._connections) >= self._prune_at:
            self._live_connections()
            self._prune_at = 2 * len(self._connections) + 64
        return connection

    def _live_connections(self) -> list[_Connection]:
        live = [one for one in self._connections.values() if not one.is_over]
        self._connections = {one.number: one for one in live}
        return live

    def _reset(self, connection: _Connection) -> None:
        self.trace.record("network", "connection_reset", connection=connection)
        for pipe in connection.pipes:
            pipe.lose_some()
            pipe.push(_Kind.RESET)

    def _release_held(self) -> None:
        for connection in self._live_connections():
            for pipe in connection.pipes:
                pipe.release()


class SimHostNetwork:
    """``logd.env.Network`` as one incarnation of one host sees it."""

    def __init__(self, network: SimNetwork, host: _Host, incarnation: Incarnation) -> None:
        self._network = network
        self._host = host
        self._incarnation = incarnation
        self._arrivals = host.arrivals

    async def deliver(self, turn: Round) -> None:
        """As ``Network.deliver``; what is there is sometimes handed over in several rounds.

        Bytes arrive when all tasks wait: a task that was woken for each would run alone and at
        once.  So the rounds are calls of the agenda, which are much cheaper, in the context of
        this task, which hears of them only if one raises.
        """
        self._incarnation.require_alive()
        await self._arrivals.deliver(turn)

    async def connect(self, address: HostPort) -> ByteStream:
        return await self.connect_stream(address)

    async def connect_stream(self, address: HostPort) -> SimStream:
        """As ``connect``; Raises ``OSError`` of the kinds TCP has."""
        await trio.lowlevel.checkpoint()
        self._incarnation.require_alive()
        far = self._resolve(address.host)
        await self._shake_hands(far, address)
        if address.port not in far.listeners:
            text = f"cannot connect to {address}: Connection refused"
            raise ConnectionRefusedError(errno.ECONNREFUSED, text)
        connection = self._network._open(self._host, far, address.port)
        self._network.trace.record(self._host.name, "connected", connection=connection)
        connection.pipes[0].push(_Kind.OPEN)
        return connection.ends[0]

    async def listen(self, address: HostPort, *, spare_descriptors: int = 0) -> Listener:
        await trio.lowlevel.checkpoint()
        self._incarnation.require_alive()
        host = self._resolve(address.host)
        if host is not self._host:
            text = f"cannot listen on {address}: Cannot assign requested address"
            raise OSError(errno.EADDRNOTAVAIL, text)
        port = address.port or host.draw_port()
        if port in host.listeners:
            text = f"cannot listen on {address}: Address already in use"
            raise OSError(errno.EADDRINUSE, text)
        listener = SimListener(self._network, host, port, self._incarnation)
        host.listeners[port] = listener
        return listener

    async def _shake_hands(self, far: _Host, address: HostPort) -> None:
        """Return when both directions were open for a round trip."""
        network = self._network
        there, back = (self._host.name, far.name), (far.name, self._host.name)
        deadline = trio.current_time() + network.conditions.connect_timeout_s
        pause_s = 1.0
        while True:
            await trio.sleep(network.delay(there) + network.delay(back))
            self._incarnation.require_alive()
            is_open = network.is_passable(there) and network.is_passable(back)
            listener = far.listeners.get(address.port)
            if is_open and (listener is None or not listener.is_full):
                return
            if trio.current_time() >= deadline:
                text = f"cannot connect to {address}: Connection timed out"
                raise TimeoutError(errno.ETIMEDOUT, text)
            await trio.sleep(min(pause_s, deadline - trio.current_time()))
            pause_s *= 2

    def _resolve(self, name: str) -> _Host:
        if name in ("localhost", "127.0.0.1", "0.0.0.0"):
            return self._host
        host = self._network._hosts.get(name)
        if host is None:
            text = f"cannot resolve {name!r}: Name or service not known"
            raise socket.gaierror(socket.EAI_NONAME, text)
        return host


class SimListener:
    """``logd.env.Listener`` of one incarnation."""

    def __init__(
        self, network: SimNetwork, host: _Host, port: int, incarnation: Incarnation
    ) -> None:
        self._network = network
        self._host = host
        self._port = port
        self._incarnation = incarnation
        self._waiting: deque[SimStream] = deque()
        self._changed = _Signal()
        self._is_open = True

    @property
    def address(self) -> HostPort:
        return HostPort(self._host.name, self._port)

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= BACKLOG

    async def accept(self) -> ByteStream:
        return await self.accept_stream()

    async def accept_stream(self) -> SimStream:
        """As ``accept``."""
        await trio.lowlevel.checkpoint()
        while True:
            self._incarnation.require_alive()
            if not self._is_open:
                raise _closed_here(str(self.address))
            if self._waiting:
                return self._waiting.popleft()
            await self._changed.wait()

    def close(self) -> None:
        """Stop listening; who was not accepted yet is reset, as by a kernel."""
        if self._is_open and self._incarnation.is_alive:
            self._die()
            for stream in self._waiting:
                stream.abort()

    def _die(self) -> None:
        self._is_open = False
        del self._host.listeners[self._port]
        self._changed.set()

    def _welcome(self, stream: SimStream) -> None:
        self._waiting.append(stream)
        self._changed.set()


class SimStream:
    """``logd.env.ByteStream``: one end of a connection."""

    def __init__(
        self,
        network: SimNetwork,
        host: _Host,
        outgoing: _Pipe,
        incoming: _Pipe,
        peer: HostPort,
    ) -> None:
        assert host.incarnation is not None
        self._network = network
        self._host = host
        self._incarnation = host.incarnation
        self._arrivals = host.arrivals
        self._outgoing = outgoing
        self._incoming = incoming
        self._peer_name = str(peer)
        self._arrived = bytearray()
        self._receiver: Receiver | None = None
        self._is_ended = False
        self._is_closed = False
        self._is_reset = False
        self._arrival = _Signal()
        self._room = _Signal()

    @property
    def peer_name(self) -> str:
        return self._peer_name

    async def receive_into(self, buffer: memoryview) -> int:
        """As ``ByteStream.receive_into``; by chance returns less than has arrived."""
        assert len(buffer) > 0
        if self._arrived or self._is_ended or self._is_reset or self._is_closed:
            await self._network._breathe()
        while True:
            self._require_open()
            if self._arrived:
                break
            if self._is_reset:
                raise _reset_by_peer()
            if self._is_ended:
                return 0
            await self._arrival.wait()
        return self._take_into(buffer)

    def _take_into(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._arrived))
        if self._network._happens(self._network.conditions.short_read_probability):
            count = self._network.chance.randint(1, count)
        buffer[:count] = self._arrived[:count]
        del self._arrived[:count]
        self._incoming.take(count)
        return count

    def hand_over_alone(self) -> _Arrivals:
        """What arrives at this end is handed over apart from the rest of its host."""
        self._arrivals = _Arrivals(self._network, self._incarnation)
        return self._arrivals

    def start_receiving(self, receiver: Receiver) -> None:
        """As ``ByteStream.start_receiving``."""
        self._require_open()
        assert self._receiver is None
        self._receiver = receiver
        if self._arrived or self._is_ended or self._is_reset:
            self._arrivals.add(self)

    def stop_receiving(self) -> None:
        """As ``ByteStream.stop_receiving``."""
        self._receiver = None

    def _hand_over(self) -> None:
        """Give the receiver what has arrived; by chance less, and the rest in another round."""
        receiver = self._receiver
        if receiver is None or self._is_closed or not self._incarnation.is_alive:
            return
        if not self._arrived:
            if self._is_reset or self._is_ended:
                self._receiver = None
                receiver.ended(_reset_by_peer() if self._is_reset else None)
            return
        buffer = receiver.writable()
        count = self._take_into(buffer)
        if self._arrived or self._is_ended or self._is_reset:
            self._arrivals.add(self)
        receiver.received(count)

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """As ``ByteStream.send``."""
        await self._network._breathe()
        data = b"".join(buffers)
        position = 0
        while True:
            self._require_open()
            if self._is_reset:
                raise _reset_by_peer()
            if position == len(data):
                return
            buffer_bytes = self._network.conditions.buffer_bytes
            room = buffer_bytes - self._outgoing.unread_bytes
            # Like TCP, not at once into every gap: ever smaller pieces would travel.
            if room < min(len(data) - position, buffer_bytes // 4):
                await self._room.wait()
                continue
            self._outgoing.push_data(data[position : position + room])
            position = min(position + room, len(data))

    def send_nowait(self, buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        """As ``ByteStream.send_nowait``."""
        self._require_open()
        if self._is_reset:
            raise _reset_by_peer()
        data = b"".join(buffers)
        buffer_bytes = self._network.conditions.buffer_bytes
        room = buffer_bytes - self._outgoing.unread_bytes
        if room < min(len(data), buffer_bytes // 4):
            return [data]
        self._outgoing.push_data(data[:room])
        return [data[room:]] if len(data) > room else ()

    def abort(self) -> None:
        """Close at once.  The peer reads what was sent and then the end; or is reset, if
        bytes it sent were never received here.  Idempotent."""
        if self._is_closed or not self._incarnation.is_alive:
            return
        self._is_closed = True
        self._receiver = None
        if not self._is_reset:
            self._outgoing.push(_Kind.RESET if self._arrived else _Kind.END)
        self._wake()

    @property
    def is_live(self) -> bool:
        """True while this end can still receive."""
        return not self._is_closed and not self._is_reset and self._incarnation.is_alive

    def _require_open(self) -> None:
        self._incarnation.require_alive()
        if self._is_closed:
            raise _closed_here(self._peer_name)

    def _wake(self) -> None:
        self._note_arrival()
        self._room.set()

    def _note_arrival(self) -> None:
        self._arrival.set()
        if self._receiver is not None:
            self._arrivals.add(self)

    def _die(self, *, says_nothing: bool) -> None:
        """The incarnation has ended; its kernel speaks for it, unless it is gone as well."""
        if not self._is_closed and not self._is_reset:
            if says_nothing:
                self._outgoing.lose_some()
            elif self._arrived or self._network.chance.random() < 0.5:
                self._outgoing.lose_some()
                self._outgoing.push(_Kind.RESET)
            else:
                self._outgoing.push(_Kind.END)
        self._wake()

    def __str__(self) -> str:
        return self._host.name

    def _lose(self) -> None:
        """This end is reset, and the other end not told."""
        self._is_reset = True
        self._wake()

    def _receive(self, segment: _Segment) -> None:
        """A piece has arrived at this end."""
        match segment.kind:
            case _Kind.DATA:
                if self.is_live:
                    self._arrived += segment.data
                    self._note_arrival()
                else:
                    self._refuse()
            case _Kind.OPEN:
                self._on_open()
            case _Kind.RESET:
                if self.is_live:
                    self._is_reset = True
                    self._wake()
            case _Kind.END:
                self._is_ended = True
                self._note_arrival()

    def _on_open(self) -> None:
        listener = self._host.listeners.get(self._incoming.port)
        if listener is None or not self.is_live:
            self._is_closed = True
            self._refuse()
        else:
            listener._welcome(self)

    def _refuse(self) -> None:
        """Nobody is here any more: tell the sender, each time.  It may not have heard before."""
        self._is_reset = True
        self._outgoing.push(_Kind.RESET)


class SimTransport:
    """The client library's transport: one client host on the simulated network."""

    def __init__(self, host_network: SimHostNetwork) -> None:
        self._host_network = host_network

    async def connect(self, host: str, port: int) -> SimTransportStream:
        """Connect.  Raises ``OSError``."""
        return SimTransportStream(await self._host_network.connect_stream(HostPort(host, port)))


class SimTransportStream:
    """A connection as the client library wants it."""

    def __init__(self, stream: SimStream) -> None:
        self._stream = stream
        self._arrivals: _Arrivals | None = None

    async def deliver_to(self, receiver: ClientReceiver) -> None:
        """As the client's ``Stream.deliver_to``; like a broker's, on the agenda."""
        arrivals = self._arrivals = self._stream.hand_over_alone()
        self._stream.start_receiving(_UntilEnd(receiver, arrivals))
        await arrivals.deliver(_NoRound())

    async def send(self, parts: Sequence[Buffer]) -> None:
        """As the client's ``Stream.send``."""
        await self._stream.send(parts)

    def send_nowait(self, parts: Sequence[Buffer]) -> int:
        """As the client's ``Stream.send_nowait``."""
        return sum(map(len, parts)) - sum(map(len, self._stream.send_nowait(parts)))

    async def aclose(self) -> None:
        self._stream.abort()
        if self._arrivals is not None:
            self._arrivals.end(_closed_here(self._stream.peer_name))
        await trio.lowlevel.cancel_shielded_checkpoint()


class _NoRound:
    """A client does nothing around what it is handed."""

    def begin(self) -> None: ...

    def end(self) -> None: ...


class _UntilEnd:
    """A client's receiver, as a broker's: with the stream the delivery ends."""

    def __init__(self, receiver: ClientReceiver, arrivals: _Arrivals) -> None:
        self.writable = receiver.writable
        self.received = receiver.received
        self.ended = arrivals.end


class _Kind(Enum):
    OPEN = b"open"
    DATA = b"data"
    END = b"end"
    RESET = b"reset"


class _Segment(NamedTuple):
    arrival_s: float
    kind: _Kind
    data: bytes


class _Arrivals:
    """The streams of one incarnation whose receivers have something to be handed."""

    def __init__(self, network: SimNetwork, incarnation: Incarnation) -> None:
        self._network = network
        self._incarnation = incarnation
        self._streams: dict[SimStream, None] = {}
        self._turn: Round | None = None
        self._task: trio.lowlevel.Task | None = None
        """In whose name the rounds are; None unless ``deliver`` is under way."""
        self._is_on_agenda = False

    async def deliver(self, turn: Round) -> None:
        """Hand over what arrives, until cancelled or ``end``.  Raises what a receiver raises."""
        assert self._task is None
        self._turn, self._task = turn, trio.lowlevel.current_task()
        if self._streams:
            self._call_round()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def end(self, error: OSError | None) -> None:
        """Let ``deliver`` return, or raise ``error``.  Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task, outcome.Error(error) if error else outcome.Value(None))

    def add(self, stream: SimStream) -> None:
        self._streams[stream] = None
        if not self._is_on_agenda and self._task is not None:
            self._call_round()

    def _call_round(self) -> None:
        """Behind whatever else is due now: what arrives at once is handed over at once."""
        self._is_on_agenda = True
        clock = self._network._clock
        clock.call_at(clock.now, self._round, self._incarnation.host)

    def _round(self) -> None:
        self._is_on_agenda = False
        task = self._task
        if task is None:
            return
        failed = outcome.capture(task.context.run, self._hand_over)
        if isinstance(failed, outcome.Error):
            if self._task is not None:  # Else whoever raised has cancelled it, too.
                self._task = None
                trio.lowlevel.reschedule(task, failed)
        elif self._streams and self._task is not None and not self._is_on_agenda:
            self._call_round()

    def _hand_over(self) -> None:
        self._incarnation.require_alive()
        assert self._turn is not None
        self._turn.begin()
        try:
            for stream in self._take():
                stream._hand_over()
        finally:
            self._turn.end()

    def _take(self) -> list[SimStream]:
        """Those of one round: all of them, or by chance some, in the order they came."""
        network, ready = self._network, list(self._streams)
        if len(ready) > 1 and network._happens(network.conditions.split_probability):
            ready = ready[: network.chance.randrange(1, len(ready))]
        for stream in ready:
            del self._streams[stream]
        return ready


class _Host:
    """A machine: its power, its listeners, and the incarnation that runs on it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.incarnation: Incarnation | None = None
        self.is_powered = False
        self.listeners: dict[int, SimListener] = {}
        self.arrivals: _Arrivals
        self._next_port = EPHEMERAL_PORT_MIN

    def draw_port(self) -> int:
        """A port nobody has used yet; after the last one the first is used again."""
        while True:
            port = self._next_port
            self._next_port = port + 1 if port < 65_535 else EPHEMERAL_PORT_MIN
            if port not in self.listeners:
                return port


class _Connection:
    """Two ends and the pipes between them; ``pipes[0]`` leads away from ``ends[0]``, which is
    the one that connected."""

    def __init__(
        self, network: SimNetwork, number: int, near: _Host, far: _Host, port: int
    ) -> None:
        self.number = number
        near_address = HostPort(near.name, near.draw_port())
        far_address = HostPort(far.name, port)
        self._name = f"{number}:{near_address}→{far_address}"
        there = _Pipe(network, (near.name, far.name), port)
        back = _Pipe(network, (far.name, near.name), near_address.port)
        self.pipes = (there, back)
        self.ends = (
            SimStream(network, near, there, back, far_address),
            SimStream(network, far, back, there, near_address),
        )
        there.source, there.target = self.ends
        back.target, back.source = self.ends

    @property
    def is_over(self) -> bool:
        """True when nothing can happen on it any more."""
        return not any(end.is_live for end in self.ends) and all(
            pipe.is_empty for pipe in self.pipes
        )

    def __str__(self) -> str:
        return self._name


class _Pipe:
    """What travels one way on one connection, in order."""

    source: SimStream
    target: SimStream

    def __init__(self, network: SimNetwork, link: Link, port: int) -> None:
        self.link = link
        self.port = port
        self.unread_bytes = 0
        """Sent and, as far as the sender knows, not yet received: what fills its buffer."""
        self.is_blocked = False
        """Something was due and a cut, a clog or a dead host kept it from arriving."""
        self._network = network
        self._segments: deque[_Segment] = deque()
        self._last_arrival_s = 0.0
        self._is_on_agenda = False
        self._unreported_bytes = 0

    @property
    def is_empty(self) -> bool:
        return not self._segments

    def push_data(self, data: bytes) -> None:
        """Send ``data``, perhaps in two pieces."""
        self.unread_bytes += len(data)
        network = self._network
        if len(data) > 1 and network._happens(network.conditions.split_probability):
            middle = network.chance.randrange(1, len(data))
            self.push(_Kind.DATA, data[:middle])
            data = data[middle:]
        self.push(_Kind.DATA, data)

    def push(self, kind: _Kind, data: bytes = b"") -> None:
        """Put a piece on its way behind the others."""
        network = self._network
        arrival_s = max(network._clock.now + network.delay(self.link), self._last_arrival_s)
        arrival_s += len(data) / network.conditions.bytes_per_second
        self._last_arrival_s = arrival_s
        self._segments.append(_Segment(arrival_s, kind, data))
        if not self.is_blocked:
            self._deliver_at(self._segments[0].arrival_s)

    def lose_some(self) -> None:
        """Forget some of the latest pieces under way: the sender could not repeat them."""
        kept = self._network.chance.randint(0, len(self._segments))
        while len(self._segments) > kept:
            self._segments.pop()

    def take(self, count: int) -> None:
        """The receiver has taken ``count`` bytes; the sender learns it if it can."""
        self._unreported_bytes += count
        self._report()

    def release(self) -> None:
        """Go on if what held this pipe is over."""
        self._report()
        if self.is_blocked and self._network.is_passable(self.link):
            self.is_blocked = False
            self._deliver_at(trio.current_time() + self._network.delay(self.link))

    def _report(self) -> None:
        way_back = (self.link[1], self.link[0])
        if self._unreported_bytes > 0 and self._network.is_passable(way_back):
            self.unread_bytes -= self._unreported_bytes
            self._unreported_bytes = 0
            self.source._room.set()

    def _deliver_at(self, time_s: float) -> None:
        if not self._is_on_agenda:
            self._is_on_agenda = True
            self._network._clock.call_at(time_s, self._deliver)

    def _deliver(self) -> None:
        """Hand over what is due."""
        self._is_on_agenda = False
        if not self._network.is_passable(self.link):
            self.is_blocked = bool(self._segments)
            return
        now = self._network._clock.now
        while self._segments and self._segments[0].arrival_s <= now:
            segment = self._segments.popleft()
            self._network.trace.digest_bytes(segment.kind.value, segment.data)
            self.target._receive(segment)
        if self._segments:
            self._deliver_at(self._segments[0].arrival_s)


class _Signal:
    """Wakes whoever waits; at most one task does."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    def set(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        assert self._task is None, "two tasks wait for the same thing"
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


def _shown(links: Sequence[Link]) -> str:
    return " ".join(f"{source}→{target}" for source, target in links)


def _closed_here(name: str) -> OSError:
    return ConnectionAbortedError(errno.ECONNABORTED, f"{name} was closed here")


def _reset_by_peer() -> OSError:
    return ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
