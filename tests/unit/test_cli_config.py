"""``logd config show`` says what a broker would run with, and which place said so."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from logd.cli import root
from logd.config import BrokerConfig


def show(*arguments: str, environment: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(root, ["config", "show", *arguments], env=environment)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "broker.toml"
    path.write_text(
        'node_id = 1\ndata_dir = "/data"\nrack = "r1"\n[cluster]\n1 = "a:1"\n2 = "b:2"\n'
    )
    return path


def test_every_setting_is_shown_with_its_value_and_origin(file: Path) -> None:
    result = show(
        *("--config", str(file), "--rack", "r2", "--output", "json"),
        environment={"LOGD_CONFIG_SEGMENT_BYTES": "1048576"},
    )

    assert result.exit_code == 0, result.output
    rows = {row["setting"]: (row["value"], row["origin"]) for row in json.loads(result.output)}
    assert set(rows) == {field.name for field in dataclasses.fields(BrokerConfig)}
    assert rows["node_id"] == (1, str(file))
    assert rows["cluster"] == ({"1": "a:1", "2": "b:2"}, str(file))
    assert rows["segment_bytes"] == (1048576, "environment")
    assert rows["rack"] == ("r2", "command line")
    assert rows["listen"] == ("127.0.0.1:7171", "default")
    assert rows["http_listen"] == (None, "default")


def test_a_person_gets_a_table(file: Path) -> None:
    lines = show("--config", str(file)).output.splitlines()

    assert lines[0].split() == ["setting", "value", "origin"]
    assert ["cluster", "1=a:1,2=b:2", str(file)] in [line.split() for line in lines]


def test_what_serve_would_refuse_is_refused(file: Path) -> None:
    result = show("--config", str(file), environment={"LOGD_CONFIG_RAK": "r"})

    assert result.exit_code == 2
    assert "environment: LOGD_CONFIG_RAK: unknown key 'rak'; did you mean rack?" in result.output


def test_a_path_that_is_no_text_cannot_be_in_a_json_document() -> None:
    path = os.fsdecode(b"/data-\xff")

    result = show("--node-id", "1", "--data-dir", path, "--output", "json")

    assert result.exit_code == 2
    assert result.stderr == r"logd: JSON is text, which '/data-\udcff' is not" + "\n"


def test_without_any_settings_it_says_what_to_give() -> None:
    result = show()

    assert result.exit_code == 2
    assert "give --config FILE, or --node-id and --data-dir" in result.output
