"""The topic that the coordination log lies in is made when somebody first asks where it is.

Not with the cluster: most clusters never need it, and a cluster that starts with one broker and
grows to three minutes later would keep it on the first for ever.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from logd.errors import TopicExistsError, UnavailableError
from logd.metadata.commands import CreateInternalTopic
from logd.wire.coordination import COORDINATION_TOPIC
from logd.wording import count_of

if TYPE_CHECKING:
    from logd.broker.broker import Broker

CREATE_TIMEOUT_MS: Final = 10_000
REPLICAS: Final = 3
"""As many as there are brokers, up to this."""


async def ensure_topic(broker: Broker) -> None:
    """Return once the topic exists and this broker knows it.

    Several may ask at once, on several brokers: all but one find that it is there.

    Raises:
        UnavailableError: the cluster has only just been formed: it would have one replica, for
            ever, of what three are to keep.
        RequestError: the command could not be committed in time, or refused.
    """
    state = broker.metadata.state
    if state.topic(COORDINATION_TOPIC) is not None:
        return
    needed = min(REPLICAS, len(state.voters))
    if len(state.brokers) < needed:
        # They all were there when the cluster was formed, so they will be here in a moment.
        raise UnavailableError(
            f"coordination waits for {count_of(needed, 'broker')} to register, "
            f"found {len(state.brokers)}"
        )
    command = CreateInternalTopic(
        name=COORDINATION_TOPIC,
        partitions=broker.config.coordination_partitions,
        now_ms=broker.env.wall_clock_ms(),
    )
    with suppress(TopicExistsError):
        await broker.metadata.execute(command, timeout_ms=CREATE_TIMEOUT_MS, safe_to_repeat=True)
