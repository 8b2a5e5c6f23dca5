"""The recipes of docs/recipes.md and docs/coordination.md do what they say: each is a script that
checks itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from logd.cli.local_cluster import LocalCluster
from tests.process.harness import run_logd

pytestmark = pytest.mark.process

RECIPES = Path(__file__).parent.parent.parent / "scripts" / "recipes"
DOCS = RECIPES.parent.parent / "docs"
PAGES = [DOCS / "recipes.md", DOCS / "coordination.md"]
SCRIPTS = sorted(path.name for path in RECIPES.glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_recipe_does_what_it_says(cluster: LocalCluster, name: str) -> None:
    ran = subprocess.run(
        [sys.executable, RECIPES / name, cluster.bootstrap],
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr.decode()


def test_the_cron_job_runs_with_a_token(cluster: LocalCluster) -> None:
    ran = run_logd(
        "elect", "run", "recipes/nightly", "--wait", "0", "--bootstrap", cluster.bootstrap,
        "--", RECIPES / "nightly.sh",
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    assert b", token " in ran.stdout


def test_the_pages_name_every_recipe() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)

    assert [
        name for name in (*SCRIPTS, "nightly.sh") if f"scripts/recipes/{name}" not in text
    ] == []
