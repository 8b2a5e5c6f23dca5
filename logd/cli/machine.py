"""Several brokers of one machine: what each is configured with, and who looks after them.

A broker computes on one core, so a machine with many runs several.  They are brokers like any
others, each a process with a data directory, ports and an id of its own, except that they share
a failure domain.  The process that was started runs none of them: it starts one that failed
again, passes on that they are to stop, and none outlives it.
"""

from __future__ import annotations

import dataclasses
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from logd.cli.display import say
from logd.config import BrokerConfig
from logd.errors import UsageError
from logd.limits import PORT_MAX
from logd.storage.directory import META_NAME
from logd.types import HostPort, NodeId

if TYPE_CHECKING:
    from types import FrameType

RESTART_AFTER_S: Final = 1.0
"""A broker that failed is started again after this time."""

RESTART_AFTER_S_MAX: Final = 30.0
"""Twice as long each time that it fails again, up to this."""

RAN_WELL_S: Final = 60.0
"""Who had run for so long before it failed is not counted among those that go on failing."""

PARENT_LOOK_S: Final = 0.5
"""How often whoever looks after them looks whether its own parent is there, if it is to."""

STANDARD_INPUT: Final = 0
_HEEDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM)
_ALARM_S_MIN: Final = 0.001
"""An alarm in no time at all would be none."""


# --- what each is configured with -------------------------------------------------------


def configurations(config: BrokerConfig, processes: int) -> list[BrokerConfig]:
    """One for each broker of this machine; ``config`` is that of the first.

    The next ones have the next ids and the next ports, each a directory of its own in ``data_dir``.
    Those that the ``cluster`` list names found the cluster, the others join it.

    Raises:
        UsageError: their ids or addresses are not theirs alone, a broker lives in ``data_dir``, or
            it can be no directory, which no broker that is started again would mend.
    """
    path = Path(config.data_dir)
    place = next(one for one in (path, *path.parents) if one.exists())
    if not place.is_dir():
        raise UsageError(f"cannot use data directory {config.data_dir}: {place} is no directory")
    if Path(config.data_dir, META_NAME).exists():
        raise UsageError(
            f"{config.data_dir} is the directory of one broker; of several each has its own in it: "
            f"move what is there to {_directory(config, config.node_id)}"
        )
    found = [_configuration(config, at) for at in range(processes)]
    taken: dict[HostPort, tuple[NodeId, str]] = {}
    for one in found:
        for name in ("listen", "peer_listen", "http_listen"):
            address: HostPort | None = getattr(one, name)
            if address is None or address.port == 0:
                continue
            if address in taken:
                other, its_name = taken[address]
                raise UsageError(
                    f"{processes} processes take ports from those given upwards: {address} "
                    f"would be {its_name} of broker {other} and {name} of broker {one.node_id}"
                )
            taken[address] = (one.node_id, name)
    return found


def _configuration(config: BrokerConfig, at: int) -> BrokerConfig:
    node = NodeId(config.node_id + at)
    founds = node in config.cluster
    if founds and config.cluster[node] != (expected := _shifted(config.peer_address, at)):
        raise UsageError(
            f"the cluster list has broker {node} at {config.cluster[node]}; as one of this "
            f"machine's, which begin with broker {config.node_id} at {config.peer_address}, it is "
            f"at {expected}"
        )
    return dataclasses.replace(
        config,
        node_id=node,
        data_dir=_directory(config, node),
        listen=_shifted(config.listen, at),
        peer_listen=_shifted(config.peer_listen, at),
        http_listen=None if config.http_listen is None else _shifted(config.http_listen, at),
        advertise=None if config.advertise is None else _shifted(config.advertise, at),
        cluster=config.cluster if founds else {},
        join=config.join if founds or config.join else config.peer_address,
    )


def _directory(config: BrokerConfig, node: NodeId) -> str:
    return str(Path(config.data_dir, f"broker-{node}"))


def _shifted(address: HostPort, by: int) -> HostPort:
    port = address.port and address.port + by
    if port > PORT_MAX:
        raise UsageError(f"a port is 0 to {PORT_MAX}; {address} and {by} more would be {port}")
    return HostPort(address.host, port)


# --- who looks after them ---------------------------------------------------------------


class Supervisor:
    """Runs one process per broker until it is told to stop, or none is left.

    SIGTERM and SIGINT are passed on as SIGTERM; the second one ends all brokers at once.  That is
    for this process to say: a broker may be told to stop twice where nobody is impatient, as a
    service manager signals all processes of a unit.  A broker that fails is started again; one that
    ends by itself without failing is not.
    """

    def __init__(self, nodes: Sequence[NodeId], *, stops_with_parent: bool = False) -> None:
        """
        Args:
            stops_with_parent: all are told to stop when our standard input ends.
        """
        self._due: dict[NodeId, float] = dict.fromkeys(nodes, 0.0)
        """Those that are to be started, and when."""
        self._running: dict[int, NodeId] = {}
        self._started_at: dict[NodeId, float] = {}
        self._restart_after_s: dict[NodeId, float] = {}
        self._stops_with_parent = stops_with_parent
        self._is_stopping = False
        self._has_failed = False
        self._lifeline, self._lifeline_held = os.pipe()

    def become_one(self) -> NodeId:
        """Fork; returns in each child with the broker that it is to be.

        The child's standard input ends when the parent does.  It leads a session of its own, so
        that Ctrl-C reaches the parent alone.

        Raises:
            SystemExit: in the parent, once no broker is left; 1 if one of them had failed then.
        """
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
        # Without a handler a child's end would not be told.
        before = signal.signal(signal.SIGCHLD, _ignore)
        while self._due or self._running:
            node = self._start_due()
            if node is not None:
                signal.signal(signal.SIGCHLD, before)
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                return node
            self._heed(self._next_news())
            if self._stops_with_parent and not self._is_stopping and _input_has_ended():
                self._stop(signal.SIGTERM)
        sys.exit(int(self._has_failed))

    def _start_due(self) -> NodeId | None:
        """Start those whose time has come.  Returns one in the child only."""
        for node, at in list(self._due.items()):
            if at > time.monotonic():
                continue
            del self._due[node]
            sys.stdout.flush()
            sys.stderr.flush()
            try:
                pid = os.fork()
            except OSError as error:
                after_s = self._start_later(node)
                say(f"logd: broker {node} cannot be started: {error}; again in {after_s:g} s")
                continue
            if pid == 0:
                os.setsid()
                os.dup2(self._lifeline, STANDARD_INPUT)
                os.close(self._lifeline)
                os.close(self._lifeline_held)
                return node
            self._running[pid] = node
            self._started_at[node] = time.monotonic()
        return None

    def _next_news(self) -> signal.struct_siginfo | None:
        """A signal; None once there is something to look at.

        An alarm says so, and not sigtimedwait: where SIGCONT ends that after its time, Python
        (up to 3.13 at least) returns whatever is in memory in place of a signal.
        """
        now = time.monotonic()
        looks_at = list(self._due.values())
        looks_at += [now + PARENT_LOOK_S] if self._stops_with_parent else []
        if looks_at:
            signal.setitimer(signal.ITIMER_REAL, max(_ALARM_S_MIN, min(looks_at) - now))
        news = signal.sigwaitinfo(_HEEDED)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return None if news.si_signo == signal.SIGALRM else news

    def _heed(self, news: signal.struct_siginfo | None) -> None:
        if news is None:
            return
        if news.si_signo == signal.SIGCHLD:
            self._note_ended()
            return
        self._stop(signal.SIGKILL if self._is_stopping else signal.SIGTERM)

    def _stop(self, passed_on: signal.Signals) -> None:
        self._is_stopping = True
        self._due.clear()
        for pid in self._running:
            os.kill(pid, passed_on)

    def _note_ended(self) -> None:
        """One signal may stand for several."""
        for pid in list(self._running):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found == 0:
                continue
            node = self._running.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            if self._is_stopping:
                # It may not have come to listen for the signal yet.
                if code not in (0, -signal.SIGTERM):
                    self._has_failed = True
                    say(f"logd: broker {node} {how}")
            elif code == 0:
                say(f"logd: broker {node} {how}")
            else:
                after_s = self._start_later(node)
                say(f"logd: broker {node} {how} and is started again in {after_s:g} s")

    def _start_later(self, node: NodeId) -> float:
        """Returns in how many seconds."""
        now = time.monotonic()
        if now - self._started_at.get(node, now) >= RAN_WELL_S:
            self._restart_after_s.pop(node, None)
        after_s = self._restart_after_s.get(node, RESTART_AFTER_S)
        self._restart_after_s[node] = min(2 * after_s, RESTART_AFTER_S_MAX)
        self._due[node] = now + after_s
        return after_s


def _input_has_ended() -> bool:
    """The kernel ends it with the process that holds its other end."""
    readable, _, _ = select.select([STANDARD_INPUT], [], [], 0)
    return bool(readable) and not os.read(STANDARD_INPUT, 4096)


def _ignore(number: int, frame: FrameType | None) -> None:
    pass
