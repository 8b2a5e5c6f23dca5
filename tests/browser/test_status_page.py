"""The status page in a real browser: what a person sees of a cluster at work, and of one in
trouble.

Needs Playwright (``pip install .[browser]``) and a Chromium (``$LOGD_CHROMIUM``, else the first
``chromium``, ``chromium-browser`` or ``google-chrome`` on the path); skipped without them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import pytest

from logd.cli.local_cluster import LocalCluster, open_cluster, stopping
from logd.cli.ready import wait_until_ready
from logd.types import NodeId
from logd_client import sync

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright_api = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: pip install .[browser]"
)

pytestmark = pytest.mark.process

BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS: Final = 30_000
ARGUMENTS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def chromium() -> str | None:
    named = os.environ.get("LOGD_CHROMIUM")
    return named or next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = chromium()
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the path")
    with playwright_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        yield found
        found.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    directory: Path = tmp_path_factory.mktemp("cluster")
    opened = open_cluster(directory / "cluster", broker_count=3, port=None, http=True)
    with stopping(opened):
        opened.start_all()
        anyio.run(wait_until_ready, opened, backend="trio")
        with sync.connect(opened.bootstrap) as client:
            client.admin.create_topic("orders", partitions=6, replicas=3)
            client.admin.create_topic("audit", partitions=1, replicas=3)
            with client.producer("orders") as producer:
                producer.append_many([b"value"] * 10_000)
        yield opened


@pytest.fixture
def page(browser: Browser, cluster: LocalCluster) -> Iterator[Page]:
    """The page of broker 1; anything it complains about fails the test."""
    complaints: list[str] = []
    opened = browser.new_page()
    opened.set_default_timeout(PATIENCE_MS)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "console", lambda line: complaints.append(line.text) if line.type == "error" else None
    )
    opened.on("request", lambda request: foreign(request.url, complaints))
    opened.goto(f"http://{cluster.brokers[0].http_address}/")
    opened.wait_for_selector("[data-broker]")
    yield opened
    opened.close()
    assert complaints == []


def foreign(url: str, complaints: list[str]) -> None:
    if not url.startswith("http://127.0.0.1:"):
        complaints.append(f"the page asks {url}")


def test_a_cluster_that_is_well_shows_its_brokers_topics_and_records(page: Page) -> None:
    playwright_api.expect(page.locator("#state")).to_have_text("healthy")
    playwright_api.expect(page.locator("[data-broker]")).to_have_count(3)
    playwright_api.expect(page.locator("#problems")).to_be_hidden()
    playwright_api.expect(page.locator(".badge", has_text="controller")).to_have_count(1)
    orders = page.locator("tr.topic", has_text="orders")
    playwright_api.expect(orders.locator(".cell")).to_have_count(6)
    playwright_api.expect(page.locator("#events li").first).to_be_visible()


def test_a_topic_opens_to_its_partitions_and_closes_again(page: Page) -> None:
    page.get_by_role("button", name="orders").click()

    rows = page.locator("tr.detail tbody tr")
    playwright_api.expect(rows).to_have_count(6)
    commits = [int(row.locator("td").nth(6).inner_text().replace(",", "")) for row in rows.all()]
    assert sum(commits) >= 10_000
    playwright_api.expect(rows.first).to_contain_text("in sync")

    page.get_by_role("button", name="orders").click()
    playwright_api.expect(rows).to_have_count(0)


def test_the_filter_leaves_the_topics_that_have_it_in_their_name(page: Page) -> None:
    page.get_by_label("Filter topics").fill("AUD")
    playwright_api.expect(page.locator("tr.topic")).to_have_count(1)

    page.get_by_label("Filter topics").fill("no such topic")
    playwright_api.expect(page.locator("#topics")).to_contain_text("No topic has that in its name")


def test_records_that_come_move_the_throughput(page: Page, cluster: LocalCluster) -> None:
    with sync.connect(cluster.bootstrap) as client, client.producer("orders") as producer:
        producer.append_many([b"value"] * 20_000)

    records_in = page.locator(".tile", has_text="Records in").locator(".value")
    playwright_api.expect(records_in).to_have_text(re.compile(r"^[1-9][\d.]* ?k? /s$"))
    playwright_api.expect(page.locator("#chart polyline.in")).to_be_attached()


def test_a_page_fits_a_telephone(browser: Browser, cluster: LocalCluster) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(f"http://{cluster.brokers[0].http_address}/")
    page.wait_for_selector("[data-broker]")

    width = page.evaluate("document.documentElement.scrollWidth")

    page.close()
    assert width == 390


def test_a_broker_that_dies_is_shown_and_its_return_too(page: Page, cluster: LocalCluster) -> None:
    cluster.kill(NodeId(3))

    playwright_api.expect(page.locator("#state")).to_have_text("degraded", timeout=PATIENCE_MS)
    playwright_api.expect(page.locator("#problems")).to_contain_text("is not alive")
    playwright_api.expect(page.locator("[data-broker='3']")).to_contain_text("Not alive")
    playwright_api.expect(page.locator("#events")).to_contain_text("lost broker 3")

    cluster.start(NodeId(3))

    playwright_api.expect(page.locator("#state")).to_have_text("healthy", timeout=PATIENCE_MS)
    playwright_api.expect(page.locator("#problems")).to_be_hidden()


def test_a_broker_that_goes_away_under_the_page_is_said_to(
    browser: Browser, cluster: LocalCluster
) -> None:
    page = browser.new_page()
    page.goto(f"http://{cluster.brokers[1].http_address}/")
    page.wait_for_selector("[data-broker]")
    cluster.kill(NodeId(2))

    playwright_api.expect(page.locator("#live")).to_have_text(
        "this broker does not answer", timeout=PATIENCE_MS
    )

    cluster.start(NodeId(2))
    playwright_api.expect(page.locator("#live")).to_contain_text("live", timeout=PATIENCE_MS)
    page.close()
