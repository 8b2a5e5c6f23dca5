"""The vocabulary of this package's log (see ``replication/log_events.py``)."""

from __future__ import annotations

from typing import Final

HTTP_LISTENING: Final = "http_listening"
HTTP_ACCEPT_FAILED: Final = "http_accept_failed"
HTTP_CLIENT_CLOSED: Final = "http_client_closed"
HTTP_REQUEST_FAILED: Final = "http_request_failed"
