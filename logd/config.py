"""What an operator may choose for one broker.

A configuration is read once, checked whole and never changes: a mistake stops the broker
before it has touched a disk or a port, and the message names the place, the key, what was
found and what is allowed.  An unknown key is such a mistake, because a misspelt setting that
is silently ignored is found at the worst moment.

Hard bounds are in ``limits.py``; the options of a topic in ``metadata/topic_config.py``.
docs/configuration.md is made from the docstrings here.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from logd.errors import UsageError
from logd.limits import (
    FEATURE_LEVEL,
    FEATURE_LEVEL_MIN,
    FRAME_BYTES_MAX,
    METADATA_VOTERS_MAX,
    MIB,
    PORT_MAX,
    PRODUCE_BYTES_IN_FLIGHT_MAX,
    REGISTERED_CHARACTERS_MAX,
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    TAIL_CACHE_BYTES_MAX,
)
from logd.types import NODE_ID_MAX, HostPort, NodeId
from logd.wording import named

LISTEN_DEFAULT: Final = HostPort("127.0.0.1", 7171)
PEER_LISTEN_DEFAULT: Final = HostPort("127.0.0.1", 7181)

REQUIRED: Final = ("node_id", "data_dir")
"""Settings without a default."""

ENVIRONMENT: Final = "environment"
COMMAND_LINE: Final = "command line"
ENVIRONMENT_PREFIX: Final = "LOGD_CONFIG_"

_WILDCARD_HOST: Final = re.compile(r"(::ffff:)?[0:.]+|0x0+", re.IGNORECASE)
"""Addresses to listen on that nobody can connect to: ``0.0.0.0`` and ``::``, however written."""


_FOUNDS_OR_JOINS: Final = "join and cluster are both given: a broker founds a cluster, or joins one"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """Settings of one broker.  In the file each is a key of that name at the top level."""

    node_id: NodeId
    """Who this broker is, 1 to 2147483647.

    Unique in the cluster, bound to the data directory at its first start, and never given
    to another broker afterwards: a vote that was cast under an id must not be cast again.
    """

    data_dir: str
    """Where the broker keeps its logs.

    The directory is created if it is missing and locked while the broker runs. It must be
    on a disk that keeps what has been synced.
    """

    listen: HostPort = LISTEN_DEFAULT
    """Where clients connect, as `HOST:PORT`; an IPv6 address stands in brackets.

    The default can be reached from this machine only. Port 0 takes any free port.
    """

    peer_listen: HostPort = PEER_LISTEN_DEFAULT
    """Where the other brokers connect, as `HOST:PORT`.

    A broker that listens on `0.0.0.0` or `[::]` is listed in `cluster`, with the address that the
    others can use, also if it is alone at first.
    """

    http_listen: HostPort | None = None
    """Where metrics, health and the status page are served, as `HOST:PORT`; by default
    nowhere.

    Who can connect there can read what the cluster is called, its topics and their traffic;
    nothing can be changed there. `logd dev` turns it on, on loopback.
    """

    advertise: HostPort | None = None
    """The address that clients are told to use for this broker; by default that of `listen`.

    Needed when `listen` is `0.0.0.0` or `[::]`, which nobody can connect to, and behind
    address translation.
    """

    cluster: Mapping[NodeId, HostPort] = dataclasses.field(
        default_factory=lambda: MappingProxyType({})
    )
    """The brokers that form the cluster, this one included, with the address that the others
    reach each under: a table `1 = "host:port"`, or the text `1=HOST:PORT,2=HOST:PORT`.

    The same list is given to all of them: brokers with differing lists refuse each other.
    They vote in the metadata log, so three or five is what one wants. Without it the broker
    is a cluster of its own.
    """

    join: HostPort | None = None
    """Where any member of a cluster listens for brokers (its `peer_listen`), as `HOST:PORT`: this
    broker becomes a member of that cluster.

    For a broker with an empty data directory, under an id that was never used, and without
    `cluster`. Later starts do not need it.
    """

    failure_domain: str = ""
    """What this broker fails together with; by default the name of the machine.

    Two replicas of a partition are not put into one failure domain while there is another.
    """

    rack: str = ""
    """Where the machine stands; replicas are spread over racks where that is possible."""

    segment_bytes: int = 256 * MIB
    """A log continues in a new file when the current one has reached this size.

    Smaller segments give retention finer grain, at the cost of more open files. A topic
    may choose its own.
    """

    index_interval_bytes: int = 4096
    """One entry of the offset index per this many bytes of batches.

    Bounds the scan behind a lookup: at most this many bytes and one batch.
    """

    allocate_bytes: int = 16 * MIB
    """Disk space is reserved this far ahead of the end of a log.

    Appending into reserved space makes a sync cheaper. A log that is rarely written to
    holds this much all the same, up to `segment_bytes`; one that is only opened does not.
    """

    disk_free_bytes_min: int = 256 * MIB
    """Appends are refused while the disk has less than this left; 0 lets it run full.

    Reads go on, and appends too once there is space again. What is left is for metadata and
    coordination: deletions, votes and releases go on. A follower is sent no records, as long as
    there is a majority without it, and others lead what it could.
    """

    liveness_interval_ms: int = 100
    """Each broker sends every other one a sign of life this often."""

    liveness_timeout_ms: int = 1000
    """A broker that has not been heard for this long counts as dead, and others take over
    what it leads.

    Lower is a shorter gap when a machine vanishes, and more needless elections when one is
    merely slow. A process that dies is noticed at once, by its connections. A leader that
    no majority has answered for this long steps down: it has to exceed a round trip between
    brokers.
    """

    election_timeout_ms: int = 150
    """A vote that has not been decided is repeated after this time, or up to twice as long.

    Should exceed a few round trips between brokers and two syncs of their disks.
    """

    restart_wait_ms: int = 30_000
    """How long a partition with `durability=replicated` waits for all its replicas, when a majority
    of them has lost power.

    Without a majority that remembers what it acknowledged, the partition goes on from the longest
    log there is. When all replicas have answered it does so at once. The longer it waits for one
    that is missing, the better the chance that nothing is lost; until then it takes no writes.
    """

    leader_balance_interval_ms: int = 5000
    """How often a broker looks whether it leads more than its share of the partitions.

    It then hands one over to a replica that has caught up and leads at least two fewer.
    0 turns this off.
    """

    replace_after_ms: int = 1_800_000
    """A broker that is missing for this long is taken for lost: what it held is rebuilt elsewhere.

    If there is room, and enough other brokers. Longer than a reboot should take, or every
    maintenance copies the disk. 0 turns this off, and that replicas which nobody can mend are
    made anew; `logd rebalance set --autonomy off` does so for the whole cluster while it runs.
    """

    feature_level_max: int = FEATURE_LEVEL
    """The highest feature level that this broker claims to support.

    Lower than what its version supports only to rehearse an upgrade: a cluster is kept from what
    came with a higher level as it would be by a broker of an older version.
    """

    rebalance_interval_ms: int = 0
    """How often the controller evens out the brokers by itself, a few partitions at a time.

    0, the default, leaves that to `logd rebalance run`. While a broker is missing that may come
    back (`replace_after_ms`) it is put off; what would be hardly more even is left as it is.
    """

    scrub_bytes_per_s: int = 8 * MIB
    """How fast each broker reads its logs again to find damage, over all of them.

    At the default 1 TiB takes a day and a half; very small batches take longer than their
    bytes say. 0 turns it off: damage is then found when somebody reads it.
    """

    scrub_interval_s: int = 3600
    """How long after a broker began to read its logs again it begins anew, at the earliest.

    The first round begins when it starts; logs that were new then are left alone for as long.
    """

    compaction_bytes_per_s: int = 32 * MIB
    """How fast each broker reads and writes to compact its logs, one at a time. 0: no bound.

    It is done by a process of its own, at the lowest priority.
    """

    retention_interval_ms: int = 5000
    """How often a broker looks for segments to remove or to compact.

    `retention_bytes` is also looked after whenever a log begins a new segment.
    """

    produce_bytes_in_flight: int = PRODUCE_BYTES_IN_FLIGHT_MAX
    """Memory for produce requests that are not acknowledged yet, over all connections.

    When it is used up, connections are not read until there is room: producers slow down.
    """

    tail_cache_bytes: int = TAIL_CACHE_BYTES_MAX
    """Memory for the newest batches, from which followers and tailing consumers are served.

    What is no longer in it is read from the files, usually from the system's page cache.
    """

    follower_cached_bytes: int = 32 * MIB
    """How much a replica that follows leaves in the system's page cache behind its log's end.

    What lies before is read by few, and its memory serves the logs that are led here better; a
    consumer that is far behind when such a replica comes to lead is served from the disk.
    """

    coordination_partitions: int = 4
    """Partitions of the topic that locks, members, queues and keys live in, made when it is first
    needed; the setting of the broker that is asked for it counts, and later changes do not.

    A namespace lies in one of them, so this bounds over how many leaders namespaces spread.
    """

    def __post_init__(self) -> None:
        if not self.cluster:
            object.__setattr__(self, "cluster", {self.node_id: self.peer_listen})
        object.__setattr__(self, "cluster", MappingProxyType(dict(sorted(self.cluster.items()))))
        self._check_identity()
        self._check_addresses()
        self._check_cluster()
        self._check_numbers()

    @property
    def peer_address(self) -> HostPort:
        """What the other brokers connect to."""
        return self.cluster[self.node_id]

    def _check_identity(self) -> None:
        _require(
            1 <= self.node_id <= NODE_ID_MAX,
            f"node_id = {self.node_id}: expected 1 to {NODE_ID_MAX}",
        )
        _require(
            bool(self.data_dir) and "\0" not in self.data_dir,
            f"data_dir = {self.data_dir!r}: expected the path of a directory",
        )
        for name, text in (("failure_domain", self.failure_domain), ("rack", self.rack)):
            _require(
                len(text) <= REGISTERED_CHARACTERS_MAX,
                f"{name} has {len(text)} characters, "
                f"at most {REGISTERED_CHARACTERS_MAX} are allowed",
            )
            _require(_NO_TEXT.search(text) is None, f"{name} = {text!r}: expected text")

    def _check_addresses(self) -> None:
        _require(
            self.listen != self.peer_listen or self.listen.port == 0,
            f"listen and peer_listen are both {self.listen}: clients and brokers need "
            "one address each",
        )
        for name, address in (("listen", self.listen), ("peer_listen", self.peer_listen)):
            _require(
                self.http_listen != address or address.port == 0,
                f"http_listen and {name} are both {address}: each needs an address of its own",
            )
        _require(
            self.advertise is not None or not _is_wildcard(self.listen),
            f"listen = {str(self.listen)!r}: clients cannot connect to that address; "
            "say with advertise which one they can use",
        )
        if self.advertise is not None:
            _require(
                not _is_wildcard(self.advertise) and self.advertise.port != 0,
                f"advertise = {str(self.advertise)!r}: nobody can connect to that address",
            )

    def _check_cluster(self) -> None:
        _require(
            self.node_id in self.cluster,
            f"cluster lists {named('broker', list(self.cluster))}, "
            f"but not this one, {self.node_id}",
        )
        _require(
            len(self.cluster) <= METADATA_VOTERS_MAX,
            f"cluster lists {len(self.cluster)} brokers; at most {METADATA_VOTERS_MAX} form it",
        )
        _check_no_duplicate_addresses(self.cluster)
        is_listed = dict(self.cluster) != {self.node_id: self.peer_listen}
        _require(self.join is None or not is_listed, _FOUNDS_OR_JOINS)
        _require(
            self.join is None or self.join.port != 0,
            f"join = {str(self.join)!r}: nobody can connect to that address",
        )
        if not is_listed:
            why = (
                f"who joins later is told it; say with cluster = '{self.node_id}=HOST:PORT' "
                "which one they can use"
                if self.join is None
                else "who joins is known to them by it"
            )
            _require(
                not _is_wildcard(self.peer_listen),
                f"peer_listen = {str(self.peer_listen)!r}: other brokers cannot connect to that "
                f"address, and {why}",
            )
            return
        for node, address in self.cluster.items():
            _require(
                not _is_wildcard(address) and address.port != 0,
                f"cluster gives broker {node} the address {address}: nobody can connect to it",
            )

    def _check_numbers(self) -> None:
        for name, low, high in (
            ("segment_bytes", SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX),
            ("index_interval_bytes", 512, MIB),
            ("allocate_bytes", 0, SEGMENT_BYTES_MAX),
            ("disk_free_bytes_min", 0, 2**50),
            ("liveness_interval_ms", 10, 10_000),
            ("liveness_timeout_ms", 50, 60_000),
            ("election_timeout_ms", 10, 10_000),
            ("restart_wait_ms", 0, 86_400_000),
            ("leader_balance_interval_ms", 0, 3_600_000),
            ("replace_after_ms", 0, 30 * 86_400_000),
            ("feature_level_max", FEATURE_LEVEL_MIN, FEATURE_LEVEL),
            ("rebalance_interval_ms", 0, 86_400_000),
            ("scrub_bytes_per_s", 0, 2**40),
            ("compaction_bytes_per_s", 0, 2**40),
            ("retention_interval_ms", 10, 3_600_000),
            ("scrub_interval_s", 1, 365 * 86_400),
            ("produce_bytes_in_flight", FRAME_BYTES_MAX, 2**40),
            ("tail_cache_bytes", 0, 2**40),
            ("follower_cached_bytes", 0, 2**40),
            ("coordination_partitions", 1, 64),
        ):
            found = getattr(self, name)
            _require(low <= found <= high, f"{name} = {found}: expected {low} to {high}")
        # One lost sign of life, or one that comes late, is no death.
        _require(
            self.liveness_timeout_ms >= 3 * self.liveness_interval_ms,
            f"liveness_timeout_ms = {self.liveness_timeout_ms}: expected at least three times "
            f"liveness_interval_ms, which is {self.liveness_interval_ms}",
        )


# --- reading ----------------------------------------------------------------------------


class Source(NamedTuple):
    """The settings that were given in one place."""

    place: str
    """For people: the path of a file, ``environment``, ``command line``."""
    values: Mapping[str, object]


class Settings(NamedTuple):
    """A configuration, and where each part of it comes from."""

    config: BrokerConfig
    places: Mapping[str, str]
    """Setting → place; what is missing has its default."""


def read_toml(text: str, place: str) -> Source:
    """Read a TOML document.

    Raises:
        UsageError: it is none.
    """
    try:
        return Source(place, tomllib.loads(text))
    except ValueError as error:  # Of a number of thousands of digits, not a TOMLDecodeError.
        raise UsageError(f"{place}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{place}: nested too deeply") from error


def read_environment(environment: Mapping[str, str]) -> Source:
    """Pick the variables that are settings: ``LOGD_CONFIG_SEGMENT_BYTES=1048576``.

    The prefix is a long one because others name variables too: Kubernetes gives every process
    a ``LOGD_PORT`` where a service is called logd.

    Raises:
        UsageError: there is no such setting, or a number is none.
    """
    values: dict[str, object] = {}
    for variable in sorted(environment):
        if variable.startswith(ENVIRONMENT_PREFIX):
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            text = environment[variable]
            try:
                _check_keys([name])
                is_number = _READERS[name] is _read_integer
                values[name] = _parse_integer(name, text) if is_number else text
            except UsageError as error:
                raise UsageError(f"{ENVIRONMENT}: {variable}: {error}") from error
    return Source(ENVIRONMENT, values)


def resolve(sources: Sequence[Source]) -> Settings:
    """Check and convert settings by name; a later source stands above an earlier one.

    Addresses may be text or ``HostPort``, the cluster text or a table; None is not given.

    Raises:
        UsageError: names the place, the key, what was found and what is expected.
    """
    read: dict[str, object] = {}
    places: dict[str, str] = {}
    for source in sources:
        given = {name: value for name, value in source.values.items() if value is not None}
        try:
            _check_keys(given)
            read |= {name: _READERS[name](name, value) for name, value in given.items()}
        except UsageError as error:
            raise UsageError(f"{source.place}: {error}") from error
        places |= dict.fromkeys(given, source.place)
    try:
        for name in REQUIRED:
            _require(name in read, f"{name} is missing")
        # Here too: a list of this broker alone may be what it would be without one.
        _require(not read.get("join") or not read.get("cluster"), _FOUNDS_OR_JOINS)
        config = BrokerConfig(**read)  # type: ignore[arg-type]  # The readers give these types.
    except UsageError as error:
        used = [source.place for source in sources if source.place in places.values()]
        where = ", ".join(used) or sources[0].place
        raise UsageError(f"{where}: {error}") from error
    return Settings(config, MappingProxyType(places))


def parse_host_port(text: str) -> HostPort:
    """Read ``HOST:PORT``; an IPv6 address stands in brackets.

    Raises:
        UsageError: says what was found and what is expected.
    """
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        hint = ", with an IPv6 address in brackets" if text.count(":") > 1 else ""
        hint = ", without anything before it" if "://" in text else hint
        raise UsageError(f"expected HOST:PORT{hint}, found {_shown(text)}")
    host = match["bracketed"] or match["host"]
    port = int(match["port"])
    if port > PORT_MAX:
        raise UsageError(f"a port is 0 to {PORT_MAX}, found {_shown(text)}")
    if len(host) > REGISTERED_CHARACTERS_MAX:
        raise UsageError(
            f"a host name has at most {REGISTERED_CHARACTERS_MAX} characters, found {_shown(text)}"
        )
    return HostPort(host, port)


def parse_cluster(text: str) -> dict[NodeId, HostPort]:
    """Read ``1=HOST:PORT,2=HOST:PORT``.

    Raises:
        UsageError: not of that form, or an id or an address is listed twice.
    """
    cluster: dict[NodeId, HostPort] = {}
    for item in text.split(","):
        node_text, separator, address_text = item.strip().partition("=")
        if not separator:
            raise UsageError(f"expected ID=HOST:PORT,…, found {_shown(item.strip())}")
        _add_member(cluster, node_text, address_text)
    _check_no_duplicate_addresses(cluster)
    return cluster


_HOST_PORT: Final = re.compile(
    r"(?:\[(?P<bracketed>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[^\s:\[\],=\ud800-\udfff]+))"
    r":(?P<port>[0-9]{1,6})"
)
_NO_TEXT: Final = re.compile(r"[\ud800-\udfff]")
"""Bytes of an argument or a variable that Python could not decode: brokers tell each other text."""

_INTEGER: Final = re.compile(r"-?[0-9]{1,19}")
_NODE_ID: Final = re.compile(r"[0-9]{1,10}")


def _is_wildcard(address: HostPort) -> bool:
    return _WILDCARD_HOST.fullmatch(address.host) is not None


def _add_member(cluster: dict[NodeId, HostPort], node_text: str, address_text: str) -> None:
    if _NODE_ID.fullmatch(node_text) is None or not 1 <= int(node_text) <= NODE_ID_MAX:
        raise UsageError(f"expected a node id of 1 to {NODE_ID_MAX}, found {_shown(node_text)}")
    node = NodeId(int(node_text))
    if node in cluster:
        raise UsageError(f"broker {node} is listed twice")
    try:
        cluster[node] = parse_host_port(address_text)
    except UsageError as error:
        raise UsageError(f"broker {node}: {error}") from error


def _check_no_duplicate_addresses(cluster: Mapping[NodeId, HostPort]) -> None:
    seen: dict[HostPort, NodeId] = {}
    for node, address in cluster.items():
        other = seen.setdefault(address, node)
        _require(
            other == node or address.port == 0,
            f"brokers {other} and {node} have the same address {address}",
        )


TOPIC_OPTIONS: Final = (
    *("durability", "fence", "segment_ms", "retention_bytes", "retention_ms"),
    *("cleanup", "tombstone_ms"),
)
"""What is set for each topic, and by no broker: ``metadata/topic_config.py``."""


def _check_keys(names: Iterable[str]) -> None:
    for name in names:
        if name in _READERS:
            continue
        close = difflib.get_close_matches(name[:100], _READERS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(_READERS)}"
        if name in TOPIC_OPTIONS:
            hint = f"it is an option of a topic: `logd topic alter NAME --config {name}=VALUE`"
        raise UsageError(f"unknown key {_shown(name)}; {hint}")


def _read_integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} = {_shown(value)}: expected a whole number")
    return value


def _parse_integer(name: str, text: str) -> int:
    if _INTEGER.fullmatch(text) is None:
        raise UsageError(f"{name} = {_shown(text)}: expected a whole number")
    return int(text)


def _read_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name} = {_shown(value)}: expected text in quotes")
    return value


def _read_address(name: str, value: object) -> HostPort:
    if isinstance(value, HostPort):
        return value
    text = _read_text(name, value)
    try:
        return parse_host_port(text)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def _read_cluster(name: str, value: object) -> dict[NodeId, HostPort]:
    try:
        if isinstance(value, str):
            return parse_cluster(value)
        if not isinstance(value, Mapping):
            raise UsageError(f'expected a table of ID = "HOST:PORT", found {_shown(value)}')
        cluster: dict[NodeId, HostPort] = {}
        for node, address in value.items():
            if not isinstance(address, str | HostPort):
                raise UsageError(f"broker {node} = {_shown(address)}: expected 'HOST:PORT'")
            _add_member(cluster, str(node), str(address))
        return cluster
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


_READERS: Final[Mapping[str, Callable[[str, object], object]]] = {
    field.name: {
        "NodeId": _read_integer,
        "int": _read_integer,
        "str": _read_text,
        "HostPort": _read_address,
        "HostPort | None": _read_address,
        "Mapping[NodeId, HostPort]": _read_cluster,
    }[str(field.type)]
    for field in dataclasses.fields(BrokerConfig)
}
"""How each setting is read, by the type it is declared with."""


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UsageError(otherwise)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
