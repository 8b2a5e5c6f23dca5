"""May this broker be left alone, and may it be given work.

*Live* means that the event loop answers, and nothing else: a broker that has lost its quorum,
its peers or its disk is not helped by a restart, and one that is restarted for such a reason
takes a copy away from those who need it.  *Ready* means that it knows the cluster, is part of
it and has opened all its replicas but those that are damaged: a restart has come to its end.
Whether the next broker may be stopped depends on the others, too: `logd cluster status`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from logd.errors import UnavailableError

if TYPE_CHECKING:
    from logd.broker.broker import Broker

_OR_REFUSED: Final = "or it is refused by the others: its log says why"


def unreadiness(broker: Broker) -> str | None:
    """Why the broker is not ready; None if it is."""
    if broker.is_stopping:
        return "it is stopping"
    try:
        broker.check_known()
    except UnavailableError as error:
        return str(error)
    state, node = broker.metadata.state, broker.node
    registered = state.broker(node.node)
    if registered is None or registered.incarnation != node.incarnation:
        return f"it has not registered yet: there may be no controller, {_OR_REFUSED}"
    if broker.controller is None:
        return f"it knows no controller: there may be no majority, {_OR_REFUSED}"
    unopened = sum(
        placement.group not in node.groups and placement.group not in node.shut
        for placement in state.partitions_on(node.node)
    )
    return f"{unopened} of its replicas are not open yet" if unopened else None
