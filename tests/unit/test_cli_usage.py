"""What is typed wrongly is refused before anything is connected to, with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner

from logd.cli import COMMANDS, root
from logd.cli.bench import LATENCY_RECORDS, PRODUCE_RECORDS
from logd.cli.options import BootstrapType
from logd.config import BrokerConfig
from logd.types import NodeId
from logd.wire.coordination import QueueOptions

BEYOND = str(2**64)
ENDLESS = "9" * 5000
"""More digits than Python makes a number of."""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["no-such-command"], "No such command 'no-such-command'"),
        (["topic", "create"], "Missing argument 'NAME'"),
        (["topic", "create", "t", "--partitions", "0"], "0 is not in the range 1<=x<=2000"),
        (["topic", "create", "t", "--partitions", "1000000"], "not in the range 1<=x<=2000"),
        (["topic", "create", "t", "--replicas", "0"], "0 is not in the range 1<=x<=7"),
        (["topic", "create", "t", "--config", "x"], "expected NAME=VALUE, found 'x'"),
        (["topic", "list", "--bootstrap", ""], "expected HOST:PORT[,HOST:PORT…], found nothing"),
        (["topic", "list", "--bootstrap", "here"], "expected HOST:PORT, found 'here'"),
        (["topic", "list", "--bootstrap", "h:1, here"], "expected HOST:PORT, found 'here'"),
        (["topic", "list", "--bootstrap", "h:0"], "port 0 cannot be connected to"),
        (["topic", "list", "--bootstrap", "h:70000"], "a port is 0 to 65535"),
        (["topic", "list", "--bootstrap", "::1:7171"], "IPv6 address in brackets"),
        (["topic", "alter", "t"], "nothing to change"),
        (["topic", "alter", "t", "--config", "a=b", "--reset", "a"], "both set and reset: a"),
        (["partition", "describe", "orders"], "expected TOPIC/N, for example orders/0"),
        (["partition", "move", "orders/0"], "nothing to do: give --to, or --cancel"),
        (["partition", "move", "orders/0", "--cancel", "--to", "1"], "goes with neither --to nor"),
        (["partition", "describe", f"orders/{ENDLESS}"], "expected TOPIC/N, for example orders/0"),
        (["topic", "trim", f"orders/{ENDLESS}", "--before", "1"], "expected TOPIC/N"),
        (["topic", "trim", "orders", "--before", "nonsense"], "expected an offset, a timestamp"),
        (["topic", "trim", "orders", "--before", "start"], "expected an offset, a timestamp"),
        (["produce", "t", "/"], "'/' is a directory"),
        (["produce", "t", "/no/such/file"], "does not exist"),
        (["produce", "t", "--key-separator", ""], "must not be empty"),
        (["produce", "t", "--input", "json", "--key-separator", "="], "--key-separator is for lin"),
        (["consume", "t", "--from", "2026-01-01T00:00:00"], "names no time zone"),
        (["consume", "t", "--from", "yesterday"], "expected start, end, an offset"),
        (["consume", "t/0"], "a partition of it is named with --partition"),
        (["produce", "t/0"], "a partition of it is named with --partition"),
        (["consume", "t", "--count", "-1"], "-1 is not in the range"),
        (["dev", "--brokers", "9"], "9 is not in the range 1<=x<=5"),
        (["serve"], "give --config FILE, or --node-id and --data-dir"),
        (["topc", "list"], "No such command 'topc'. Did you mean 'topic'?"),
        (["serve", "--node-id", "0", "--data-dir", "x"], "node_id = 0: expected 1 to"),
        (
            ["serve", "--node-id", "4", "--data-dir", "x", "--cluster", "1=h:1,2=h:2"],
            "cluster lists brokers 1, 2, but not this one, 4",
        ),
        (["bench", "produce", "--record-bytes", "0"], "0 is not in the range"),
        (["lock", "run", "nightly"], "Missing argument 'COMMAND...'"),
        (["lock", "run", "n", "--ttl", "0", "--", "x"], "not in the range 1<=x<=86400"),
        (["lock", "run", "n", "--wait", "-1", "--", "x"], "-1.0 is not in the range"),
        (["lock", "run", "n", "--shared", "--protect", "t", "--", "x"], "goes with neither"),
        (["lock", "run", "n", "--capacity", "0", "--", "x"], "0 is not in the range"),
        (["lock", "run", "n", "--permits", "2", "--", "x"], "say its --capacity too"),
        (["lock", "run", "n", "--ttl", "nan", "--", "x"], "expected a number of seconds"),
        (["lock", "run", "n", "--wait", "nan", "--", "x"], "expected a number of seconds"),
        (["lock", "run", "n", "--hold", "inf", "--", "x"], "expected a number of seconds"),
        (["queue", "claim", "q", "--visibility", "nan"], "expected a number of seconds"),
        (["queue", "put", "q", "x", "--delay", "nan"], "expected a number of seconds"),
        (["kv", "list", "--limit", "0"], "0 is not in the range"),
        (["elect", "run", "n", "--again", "--wait", "1", "--", "x"], "does not go with --wait"),
        (["assign", "set", "g"], "name shards, or say how many with --count"),
        (["assign", "set", "g", "a", "--count", "1"], "name shards, or say how many"),
        (["queue", "complete", "q", "12"], "expected ITEM:TOKEN:SESSION"),
        (["queue", "redrive", "q"], "name items, or say --all"),
        (["queue", "work", "q", "--concurrency", "0", "--", "x"], "0 is not in the range"),
        (["rebalance", "plan", "--tolerance", "nan"], "expected a number, found 'nan'"),
        (["rebalance", "plan", "--throttle", "0"], "a rate is 65536 to"),
        (["rebalance", "set", "--throttle", "9999GB"], "a rate is 65536 to"),
        (["kv", "txn"], "nothing to do"),
        (["kv", "txn", "--if-revision", "k=x", "--put", "k=v"], "takes KEY=REVISION"),
        (["kv", "txn", "--add", "k=x"], "--add takes KEY=NUMBER, a whole number"),
        (["kv", "txn", "--add", "k=x"], "found 'x'"),
        (["kv", "txn", "--put", "k"], "expected KEY=VALUE, found 'k'"),
        (["topic", "create", "t", "--partitions", "many"], "expected a whole number, found 'many'"),
        (["kv", "list", "--limit", ENDLESS], "expected a whole number"),
        (["lock", "run", "n", "--ttl", "15s", "--", "x"], "a number of seconds, found '15s'"),
        (["assign", "set", "g", "a", "b", "a"], "named more than once: a"),
        (["kv", "put", "k", "v", "--if-revision", "-1"], "-1 is not in the range"),
        (["kv", "put", "k", "v", "--if-revision", BEYOND], "not in the range 0<=x<="),
        (["kv", "list", "--limit", BEYOND], "not in the range 1<=x<="),
        (["kv", "watch", "k", "--from", BEYOND], "not in the range 0<=x<="),
        (["kv", "txn", "--add", f"k={BEYOND}"], "number of -9223372036854775807 to 9"),
        (["kv", "txn", "--if-revision", "k=-1", "--put", "k=v"], "a whole number of 0 to"),
        (["queue", "put", "q", "x", "--priority", str(2**31)], "not in the range -2147483647<=x"),
        (["queue", "configure", "q", "--visibility-ms", BEYOND], "in the range 100<=x<=86400000"),
        (["queue", "configure", "q", "--attempts-max", BEYOND], "not in the range 1<=x<=10000"),
        (["queue", "redrive", "q", BEYOND], "not in the range 1<=x<="),
        (["partition", "transfer-leader", "t/0", "--to", str(2**31)], "in the range 1<=x<="),
        (["broker", "drain", str(2**31)], "not in the range 1<=x<=2147483647"),
        (["cluster", "upgrade", "--level", BEYOND], "not in the range 1<=x<=1000"),
        (["lock", "run", "n", "--capacity", BEYOND, "--", "x"], "not in the range 1<=x<=1000000"),
        (["produce", "t", "--fence", "7"], "expected ID:TOKEN as $LOGD_FENCE holds it"),
        (["produce", "t", "--fence", "0:7"], "a fence's id is 1 to"),
    ],
)
def test_a_mistake_is_named(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(root, arguments)

    assert told in " ".join(result.stderr.split())
    assert result.exit_code == 2


def test_a_configuration_file_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broker.toml"
    path.write_text('node_id = 1\ndata_dirr = "x"\n', encoding="utf-8")

    result = CliRunner().invoke(root, ["serve", "--config", str(path)])

    assert result.stderr == f"logd: {path}: unknown key 'data_dirr'; did you mean data_dir?\n"
    assert result.exit_code == 2


def test_dev_refuses_a_directory_with_other_things_in_it(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()

    result = CliRunner().invoke(root, ["dev", "--data-dir", str(tmp_path)])

    assert "is not empty and holds no dev.json" in result.stderr
    assert result.exit_code == 1


def test_dev_refuses_another_number_of_brokers_than_the_directory_has(tmp_path: Path) -> None:
    entry = {"id": 1, "address": "127.0.0.1:1", "peer_address": "127.0.0.1:2"}
    (tmp_path / "dev.json").write_text(json.dumps({"brokers": [entry]}), encoding="utf-8")

    result = CliRunner().invoke(root, ["dev", "--data-dir", str(tmp_path), "--brokers", "3"])

    assert "holds a cluster of 1 broker, not 3" in result.stderr
    assert result.exit_code == 2


@pytest.mark.parametrize(
    "name", [command.name for command in COMMANDS if command.name != "segment"]
)
def test_help_says_of_each_command_a_whole_sentence(name: str) -> None:
    result = CliRunner().invoke(root, [name, "--help"], env={"COLUMNS": "80"})

    _, _, commands = result.stdout.partition("\nCommands:")
    assert "..." not in commands
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    "name", [command.name for command in COMMANDS if command.name != "segment"]
)
def test_every_command_in_the_table_has_help(name: str) -> None:
    result = CliRunner().invoke(root, [name, "--help"])

    assert result.stdout.startswith("Usage: ")
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["consume"], "--from start|end|OFFSET|TIMESTAMP|-15m"),
        (["topic", "trim"], "--before OFFSET|TIMESTAMP|-15m"),
        (["kv", "get"], "The value of KEY as it is, and a newline"),
    ],
)
def test_help_shows_words_as_they_are_typed(command: list[str], shown: str) -> None:
    assert shown in CliRunner().invoke(root, [*command, "--help"]).stdout


@pytest.mark.parametrize(
    ("words", "completed"),
    [("top", "topic"), ("topic cr", "create"), ("consume t --output ", "value\njson")],
)
def test_shells_complete_commands_and_choices(words: str, completed: str) -> None:
    environment = {
        "COMP_WORDS": f"logd {words}",
        "COMP_CWORD": str(len(words.split(" "))),
        "_LOGD_COMPLETE": "bash_complete",
    }

    result = CliRunner().invoke(root, env=environment, prog_name="logd")

    assert result.stdout.replace("plain,", "").strip() == completed


def test_help_imports_none_of_the_heavy_libraries() -> None:
    script = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from logd.cli import root\n"
        "assert CliRunner().invoke(root, ['--help']).exit_code == 0\n"
        "heavy = {'trio', 'anyio', 'rich', 'msgspec', 'structlog', 'logd_client'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)

    assert done.stderr == b""
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://127.0.0.1:7171", "expected HOST:PORT, without anything before it"),
        (f"{'h' * 300}:7171", "..."),
    ],
)
def test_a_strange_address_is_shown_shortly(address: str, told: str) -> None:
    result = CliRunner().invoke(root, ["topic", "list", "--bootstrap", address])

    assert told in " ".join(result.stderr.split())
    assert len(result.stderr) < 400
    assert result.exit_code == 2


def test_a_setting_of_the_wrong_type_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "broker.toml"
    path.write_text('node_id = 1\ndata_dir = "x"\nlisten = 5\n', encoding="utf-8")

    result = CliRunner().invoke(root, ["serve", "--config", str(path)])

    assert "listen = 5: expected text in quotes" in result.stderr
    assert "listen: listen" not in result.stderr


def options(command: click.Command, path: str) -> Iterator[tuple[str, click.Option]]:
    """Every option of a command and of those below it."""
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield path, parameter
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below is not None
                yield from options(below, f"{path} {name}")


def test_every_option_says_what_it_is_for() -> None:
    silent = [
        f"{path} {option.opts[-1]}"
        for path, option in options(root, "logd")
        if not (option.help or option.hidden)
    ]

    assert silent == []


def test_defaults_that_help_tells_are_those_of_a_broker_and_of_a_queue() -> None:
    config = BrokerConfig(node_id=NodeId(1), data_dir="d")
    told = {
        f"{path} {option.opts[-1]}": (option.help or "").partition("  ")[2]
        for path, option in options(root, "logd")
    }

    assert told["logd serve --listen"] == f"Default: {config.listen}."
    assert told["logd serve --peer-listen"] == f"Default: {config.peer_listen}."
    for name, value in msgspec.structs.asdict(QueueOptions()).items():
        option = f"logd queue configure --{name.replace('_', '-')}"
        assert told[option] == f"Of a new queue: {value}."


def test_records_of_a_benchmark_that_has_a_rate_have_the_default_that_help_tells() -> None:
    told = {
        path: (option.help or "").rpartition("else ")[2]
        for path, option in options(root, "logd")
        if option.opts == ["--records"] and option.default is None
    }

    assert told["logd bench latency"] == f"{LATENCY_RECORDS}."
    assert told["logd bench end-to-end"] == f"{PRODUCE_RECORDS}."


def test_config_show_says_which_options_of_serve_it_does_not_take() -> None:
    taken = {path: set[str]() for path in ("logd serve", "logd config show")}
    for path, option in options(root, "logd"):
        if path in taken and not option.hidden:
            taken[path] |= set(option.opts)
    help_of = " ".join(CliRunner().invoke(root, ["config", "show", "--help"]).output.split())

    missing = taken["logd serve"] - taken["logd config show"]

    assert missing == {"--processes", "--log-level"}
    assert "all but --processes and --log-level" in help_of


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--nonsense"], "logd: No such option"),
        (["topc", "list"], "logd: No such command 'topc'.  Did you mean 'topic'?"),
        (["topic", "create"], "logd: Missing argument 'NAME'."),
        (
            ["topic", "list", "--bootstrap", "h"],
            "logd: Invalid value for '--bootstrap'",
        ),
        (["topic", "alter", "t"], "logd: nothing to change"),
    ],
)
def test_wrong_usage_is_told_by_logd_behind_how_the_command_is_used(
    arguments: list[str], told: str
) -> None:
    result = CliRunner().invoke(root, arguments, prog_name="logd")

    usage, hint, empty, last = result.stderr.splitlines()
    assert usage.startswith("Usage: logd ")
    assert hint.startswith("Try 'logd ")
    assert empty == ""
    assert last.startswith(told)
    assert result.exit_code == 2


def test_a_noun_alone_shows_its_commands() -> None:
    result = CliRunner().invoke(root, ["topic"], prog_name="logd")

    assert "Commands:" in result.output
    assert "logd:" not in result.output


def test_a_list_of_addresses_may_have_spaces_as_people_paste_it() -> None:
    found = BootstrapType().convert(" a:1, [::1]:2 ,c:3,", None, None)

    assert found == "a:1,[::1]:2,c:3"


def commands_under(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[Any]:
    """Each command that is no group, with the words it is called by."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands_under(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_command_that_asks_a_cluster_answers_in_json_but_those_that_run_a_command() -> None:
    """What those write is what their COMMAND writes."""
    silent = [
        " ".join(words)
        for words, command in commands_under(root)
        if (names := {each.name for each in command.params}) >= {"bootstrap"}
        and "output" not in names
    ]

    assert silent == ["lock run", "elect run", "member join", "assign work"]
