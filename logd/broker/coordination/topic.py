"""The topic that the coordination log lies in is made when somebody first asks where it is.

Not with the cluster: most clusters never need it, and a cluster that starts with one broker and
grows to three minutes later would keep it on the first for ever.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from logd.errors import TopicExistsError
from logd.metadata.commands import CreateInternalTopic
from logd.wire.coordination import COORDINATION_TOPIC

if TYPE_CHECKING:
    from logd.broker.broker import Broker

CREATE_TIMEOUT_MS: Final = 10_000


async def ensure_topic(broker: Broker) -> None:
    """Return once the topic exists and this broker knows it.

    Several may ask at once, on several brokers: all but one find that it is there.

    Raises:
        RequestError: the command could not be committed in time, or refused.
    """
    if broker.metadata.state.topic(COORDINATION_TOPIC) is not None:
        return
    command = CreateInternalTopic(
        name=COORDINATION_TOPIC,
        partitions=broker.config.coordination_partitions,
        now_ms=broker.env.wall_clock_ms(),
    )
    with suppress(TopicExistsError):
        await broker.metadata.execute(command, timeout_ms=CREATE_TIMEOUT_MS, safe_to_repeat=True)
