"""The systemd unit says what brokers do."""

from __future__ import annotations

import configparser
from pathlib import Path

from logd.cli.exits import ExitCode

UNIT = Path(__file__).parents[2] / "deploy" / "logd.service"


def test_a_broker_is_started_again_until_it_runs_unless_its_configuration_is_at_fault() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(UNIT.read_text(encoding="utf-8"))

    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["Restart"] == "on-failure"
    assert unit["Service"]["RestartPreventExitStatus"] == str(ExitCode.USAGE.value)
