"""The client of logd: append to and read from a replicated log, under asyncio or trio.

    async with connect("127.0.0.1:7171") as client:
        async with client.producer("orders") as producer:
            ack = await producer.append(b"value", key=b"key")
        async with client.consumer("orders", start="earliest") as consumer:
            async for record in consumer:
                ...

``logd_client.sync`` has the same verbs for programs that block.  Errors derive from
``LogdError`` and say whether the call can be repeated (``retriable``) and whether it may have
taken effect (``may_have_applied``); their classes are in ``logd.errors``.
"""

from logd.errors import LogdError, PartialAppendError, WouldBlock
from logd_client.admin import Admin
from logd_client.client import Client, connect
from logd_client.consumer import Consumer
from logd_client.consumer_options import Start, Stop
from logd_client.coordination.assignments import OwnedShard
from logd_client.coordination.elections import Leadership
from logd_client.coordination.fences import Fence
from logd_client.coordination.leases import Lease
from logd_client.coordination.members import Membership
from logd_client.coordination.queues import Claim
from logd_client.delivery import Ack, AckRange, Ticket
from logd_client.producer import Producer
from logd_client.records import Batch, Record
from logd_client.transport import Stream, TcpTransport, Transport

__all__ = [
    "Ack",
    "AckRange",
    "Admin",
    "Batch",
    "Claim",
    "Client",
    "Consumer",
    "Fence",
    "Leadership",
    "Lease",
    "LogdError",
    "Membership",
    "OwnedShard",
    "PartialAppendError",
    "Producer",
    "Record",
    "Start",
    "Stop",
    "Stream",
    "TcpTransport",
    "Ticket",
    "Transport",
    "WouldBlock",
    "connect",
]
