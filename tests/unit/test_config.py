"""A mistake in the configuration stops the broker, and the message says where it is."""

import dataclasses
from collections.abc import Mapping

import pytest

from logd.config import (
    COMMAND_LINE,
    TOPIC_OPTIONS,
    BrokerConfig,
    Source,
    parse_cluster,
    parse_host_port,
    read_environment,
    read_toml,
    resolve,
)
from logd.errors import UsageError
from logd.metadata.topic_config import OPTIONS
from logd.types import HostPort, NodeId


def load_config(
    text: str, origin: str, overrides: Mapping[str, object] | None = None
) -> BrokerConfig:
    """What a broker makes of a file and a command line."""
    return resolve([read_toml(text, origin), Source(COMMAND_LINE, overrides or {})]).config


MINIMAL = 'node_id = 1\ndata_dir = "/data"\n'


def test_the_minimum_is_who_and_where() -> None:
    config = load_config(MINIMAL, "broker.toml")

    assert config == BrokerConfig(node_id=NodeId(1), data_dir="/data")
    assert (config.advertise, config.listen) == (None, HostPort("127.0.0.1", 7171))


def test_without_a_list_a_broker_is_a_cluster_of_its_own() -> None:
    config = load_config(MINIMAL + 'peer_listen = "localhost:9"', "broker.toml")

    assert config.cluster == {1: HostPort("localhost", 9)}
    assert config.peer_address == HostPort("localhost", 9)


def test_everything_can_be_set() -> None:
    text = """
        node_id = 2
        data_dir = "/data"
        listen = "0.0.0.0:7171"
        peer_listen = "0.0.0.0:7181"
        advertise = "two.example:7171"
        failure_domain = "host2"
        rack = "r1"
        segment_bytes = 1048576
        liveness_interval_ms = 50
        [cluster]
        2 = "two.example:7181"
        1 = "[fe80::1]:7181"
    """

    config = load_config(text, "broker.toml")

    assert config.advertise == HostPort("two.example", 7171)
    assert config.peer_address == HostPort("two.example", 7181)
    assert list(config.cluster) == [1, 2]
    assert config.cluster[NodeId(1)] == HostPort("fe80::1", 7181)
    assert (config.segment_bytes, config.liveness_interval_ms) == (1048576, 50)


def test_flags_stand_above_the_file_where_they_are_given() -> None:
    config = load_config(
        MINIMAL + 'rack = "a"\n', "broker.toml", {"node_id": 3, "rack": None, "listen": "h:1"}
    )

    assert (config.node_id, config.rack, config.listen) == (3, "a", HostPort("h", 1))


def test_flags_alone_make_a_configuration() -> None:
    values = {"node_id": 2, "data_dir": "d", "cluster": "1=a:1,2=b:2", "listen": HostPort("h", 0)}

    config = resolve([Source("command line", values)]).config

    assert config.cluster == {1: HostPort("a", 1), 2: HostPort("b", 2)}


def test_the_environment_stands_between_the_file_and_the_flags() -> None:
    environment = {
        "LOGD_CONFIG_RACK": "environment",
        "LOGD_CONFIG_FAILURE_DOMAIN": "environment",
        "LOGD_CONFIG_SEGMENT_BYTES": "1048576",
        "LOGD_CONFIG_CLUSTER": "1=a:1,2=b:2",
        "LOGD_CONFIG_LISTEN": "[::1]:0",
        "LOGD_BOOTSTRAP": "h:1",
        "LOGD_PORT": "tcp://10.0.0.1:7171",
        "PATH": "/bin",
    }
    file = MINIMAL + 'rack = "file"\nadvertise = "h:1"\n'

    config, places = resolve(
        [
            read_toml(file, "broker.toml"),
            read_environment(environment),
            Source("command line", {"failure_domain": "flag", "listen": None}),
        ]
    )

    assert (config.rack, config.failure_domain) == ("environment", "flag")
    assert (config.segment_bytes, config.listen) == (1048576, HostPort("::1", 0))
    assert list(config.cluster) == [1, 2]
    assert places == {
        "node_id": "broker.toml",
        "data_dir": "broker.toml",
        "advertise": "broker.toml",
        "rack": "environment",
        "segment_bytes": "environment",
        "cluster": "environment",
        "listen": "environment",
        "failure_domain": "command line",
    }


@pytest.mark.parametrize(
    ("variable", "text", "found"),
    [
        ("LOGD_CONFIG_SEGMENT_BYTE", "1", "unknown key 'segment_byte'; did you mean segment_bytes"),
        ("LOGD_CONFIG_", "1", "unknown key ''"),
        ("LOGD_CONFIG_SEGMENT_BYTES", "64MiB", "segment_bytes = '64MiB': expected a whole number"),
        ("LOGD_CONFIG_SEGMENT_BYTES", "\u0663", "expected a whole number"),
        ("LOGD_CONFIG_SEGMENT_BYTES", "9" * 5000, "expected a whole number"),
    ],
)
def test_a_mistake_in_the_environment_is_named_with_its_variable(
    variable: str, text: str, found: str
) -> None:
    with pytest.raises(UsageError, match=f"^environment: {variable}: .*{found}"):
        read_environment({variable: text})


def test_settings_that_contradict_each_other_are_named_with_all_their_places() -> None:
    sources = [
        read_toml(MINIMAL + 'listen = "h:1"', "broker.toml"),
        read_environment({}),
        Source("command line", {"peer_listen": "h:1"}),
    ]

    with pytest.raises(UsageError, match=r"^broker.toml, command line: listen and peer_listen"):
        resolve(sources)


@pytest.mark.parametrize(
    ("setting", "value", "found"),
    [
        ("rack", "r\udcff", "rack = 'r\\\\udcff': expected text"),
        ("failure_domain", "\udcff", "failure_domain = '\\\\udcff': expected text"),
        ("listen", "h\udcff:1", "listen: expected HOST:PORT, found 'h\\\\udcff:1'"),
        ("cluster", "1=h\udcff:1", "expected HOST:PORT, found 'h\\\\udcff:1'"),
    ],
)
def test_bytes_of_an_argument_that_are_no_text_are_a_mistake(
    setting: str, value: str, found: str
) -> None:
    with pytest.raises(UsageError, match=f"command line: .*{found}"):
        load_config(MINIMAL, "broker.toml", {setting: value})


def test_a_flag_that_cannot_be_is_a_mistake_of_the_command_line() -> None:
    with pytest.raises(UsageError, match=r"^command line: cluster: expected ID=HOST:PORT"):
        load_config(MINIMAL, "broker.toml", {"cluster": "x"})


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("nod = 1", "unknown key 'nod'; did you mean node_id"),
        ("segment_byte = 1", "did you mean segment_bytes"),
        ("retention_ms = 1", "an option of a topic: `logd topic alter NAME --config retention_ms"),
        ("zzz = 1", "unknown key 'zzz'; known are node_id, data_dir"),
        ("[storage]\nsegment_bytes = 1", "unknown key 'storage'"),
        ("segment_bytes = 'big'", "segment_bytes = 'big': expected a whole number"),
        ("segment_bytes = true", "segment_bytes = True: expected a whole number"),
        ("segment_bytes = 1.5", r"segment_bytes = 1.5: expected a whole number"),
        ("segment_bytes = 1", "segment_bytes = 1: expected 65536 to"),
        ("liveness_timeout_ms = 200", "expected at least three times liveness_interval_ms"),
        ("rack = 7", "rack = 7: expected text"),
        ("rack = '" + "r" * 256 + "'", "rack has 256 characters"),
        ("listen = 7171", "listen = 7171: expected text"),
        ("listen = '7171'", "listen: expected HOST:PORT, found '7171'"),
        ("listen = '::1:7171'", "an IPv6 address in brackets"),
        ("listen = '0.0.0.0:7171'", "clients cannot connect to that address; say with advertise"),
        ("listen = '0:7171'", "clients cannot connect to that address"),
        ("listen = '[::0]:7171'", "clients cannot connect to that address"),
        ("listen = '[0:0:0:0:0:0:0:0]:7171'", "clients cannot connect to that address"),
        ("listen = '[::ffff:0.0.0.0]:7171'", "clients cannot connect to that address"),
        ("listen = 'h:1'\npeer_listen = 'h:1'", "listen and peer_listen are both h:1"),
        ("advertise = 'h:0'", "nobody can connect"),
        ("advertise = '[::0]:1'", "nobody can connect"),
        ("join = 'h:0'", "join = 'h:0': nobody can connect"),
        ("cluster = '2=a:1,3=b:1'", "lists brokers 2, 3, but not this one, 1"),
        ("cluster = 'x'", "cluster: expected ID=HOST:PORT"),
        ("cluster = 5", "cluster: expected a table"),
        ("[cluster]\n1 = 5", "cluster: broker 1 = 5: expected 'HOST:PORT'"),
        ("[cluster]\none = 'a:1'", "cluster: expected a node id of 1 to 2147483647, found 'one'"),
        ("[cluster]\n1 = 'a:1'\n2 = 'a:1'", "brokers 1 and 2 have the same address a:1"),
        (
            "peer_listen = '0.0.0.0:7181'",
            "other brokers cannot connect to that address, .*say with cluster = '1=HOST:PORT'",
        ),
        ("peer_listen = '[::]:1'\njoin = 'h:1'", "cannot connect .* is known to them by it"),
        ("cluster = '1=0.0.0.0:1'", "gives broker 1 the address 0.0.0.0:1: nobody can"),
        ("cluster = '1=a:0'", "gives broker 1 the address a:0: nobody can"),
        ("cluster = '1=0.0.0.0:1,2=b:1'", "gives broker 1 the address 0.0.0.0:1"),
        ("cluster = '1=a:1,2=a:2,3=a:3,4=a:4,5=a:5,6=a:6'", "lists 6 brokers; at most 5"),
        ("data_dir = '/twice'", "not valid TOML"),
        ("?", "not valid TOML"),
        ("rack = " + "[" * 10_000, "nested too deeply"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_key(line: str, found: str) -> None:
    with pytest.raises(UsageError, match=f"^broker.toml: .*{found}"):
        load_config(MINIMAL + line + "\n", "broker.toml")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "node_id is missing"),
        ("node_id = 1", "data_dir is missing"),
        ("node_id = 0\ndata_dir = 'd'", "node_id = 0: expected 1 to"),
        ("node_id = 1\ndata_dir = ''", "data_dir = '': expected the path"),
    ],
)
def test_who_and_where_are_required(text: str, found: str) -> None:
    with pytest.raises(UsageError, match=found):
        load_config(text, "broker.toml")


def test_a_founder_that_listens_everywhere_says_where_it_is_found() -> None:
    text = "peer_listen = '0.0.0.0:7181'\ncluster = '1=broker1.example:7181'\n"

    assert load_config(MINIMAL + text, "f").peer_address == HostPort("broker1.example", 7181)


def test_a_configuration_never_changes() -> None:
    config = load_config(MINIMAL, "broker.toml")

    with pytest.raises(TypeError):
        config.cluster[NodeId(2)] = HostPort("h", 1)  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:7171", HostPort("localhost", 7171)),
        ("10.0.0.1:0", HostPort("10.0.0.1", 0)),
        ("[::1]:65535", HostPort("::1", 65535)),
        ("[fe80::1%eth0]:1", HostPort("fe80::1%eth0", 1)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, address: HostPort) -> None:
    assert parse_host_port(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "host", "host:", ":7171", "host:port", "host:-1", "host:65536", "host:7171 ",
        "host:9999999", "a b:1", "::1:7171", "[::1]", "[]:1", "[host]:1", "host:\u0661", "a,b:1",
        "h" * 256 + ":1",
    ],
)  # fmt: skip
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected HOST:PORT|a port is|a host name"):
        parse_host_port(text)


def test_a_cluster_is_a_list_of_addresses_by_id() -> None:
    assert parse_cluster("2=b:1, 1=[::1]:1") == {1: HostPort("::1", 1), 2: HostPort("b", 1)}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "expected ID=HOST:PORT"),
        ("1=a:1,", "expected ID=HOST:PORT"),
        ("a:1", "expected ID=HOST:PORT"),
        ("0=a:1", "expected a node id"),
        ("-1=a:1", "expected a node id"),
        ("99999999999=a:1", "expected a node id"),
        ("1=a", "broker 1: expected HOST:PORT, found 'a'"),
        ("1=a:1,1=b:1", "broker 1 is listed twice"),
        ("1=a:1,2=a:1", "brokers 1 and 2 have the same address"),
    ],
)
def test_a_list_that_is_not_one_is_refused(text: str, found: str) -> None:
    with pytest.raises(UsageError, match=found):
        parse_cluster(text)


@pytest.mark.parametrize(
    "cluster", ["1=h:1,2=h:2", "1=h:1", "1=127.0.0.1:7172"], ids=["two", "one", "the default"]
)
def test_joining_and_founding_at_once_is_refused_however_long_the_list(cluster: str) -> None:
    given = {"node_id": 1, "data_dir": "/data", "join": "h:3", "cluster": cluster}

    with pytest.raises(UsageError, match="join and cluster are both given: a broker founds"):
        resolve([Source("options", given)])


def test_a_configuration_that_joins_can_be_changed() -> None:
    config = resolve([Source("options", {"node_id": 1, "data_dir": "/data", "join": "h:3"})]).config

    assert dataclasses.replace(config, failure_domain="h").join == HostPort("h", 3)


def test_what_belongs_to_a_topic_is_known_here() -> None:
    brokers_have_too = {"segment_bytes"}

    assert set(TOPIC_OPTIONS) == OPTIONS.keys() - brokers_have_too
