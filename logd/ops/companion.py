"""What runs beside a broker so that it can be seen: sampling, reports, the HTTP listener.

A layer above the broker, which starts it and does not know it (``Companion``).  The broker
reports to its peers whether or not it listens itself: any one that does shows them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from logd.ops import log_events
from logd.ops.report import encode_report, make_report
from logd.ops.sampler import Sampler

if TYPE_CHECKING:
    from logd.broker.broker import Broker

log = structlog.get_logger(__name__)


async def make_visible(
    broker: Broker, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run until cancelled.

    Raises:
        OSError: ``http_listen`` cannot be listened on.
    """
    sampler = Sampler(broker)

    async def report() -> bytes:
        return encode_report(await make_report(broker, sampler))

    broker.node.reports.reporter = report
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sampler.run)
        if broker.config.http_listen is not None:
            await nursery.start(_listen, broker, sampler)
        task_status.started()


async def _listen(broker: Broker, sampler: Sampler, *, task_status: trio.TaskStatus[None]) -> None:
    # Not needed, and not paid for, by a broker that is not asked to listen.
    from logd.ops.http_server import serve_http
    from logd.ops.site import Site
    from logd.ops.status import StatusBoard

    assert broker.config.http_listen is not None
    listener = await broker.env.network.listen(broker.config.http_listen)
    try:
        log.info(log_events.HTTP_LISTENING, address=str(listener.address))
        task_status.started()
        await serve_http(listener, Site(broker, StatusBoard(broker, sampler)).respond)
    finally:
        listener.close()
