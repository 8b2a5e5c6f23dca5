"""What is where: metrics, health, the status page and its document."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from logd.ops.health import unreadiness
from logd.ops.http_server import Answer
from logd.ops.metrics import CONTENT_TYPE, Traffic, render, take_samples

if TYPE_CHECKING:
    from logd.broker.broker import Broker
    from logd.ops.status import StatusBoard

_PAGES: Final = {
    "/": ("status.html", "text/html; charset=utf-8"),
    "/status.css": ("status.css", "text/css; charset=utf-8"),
    "/status.js": ("status.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

PATHS: Final = (*_PAGES, "/api/status", "/metrics", "/livez", "/readyz")


class Site:
    """Answers GET requests about one broker and its cluster."""

    def __init__(self, broker: Broker, board: StatusBoard) -> None:
        self._broker = broker
        self._board = board
        self._traffic = Traffic()

    async def respond(self, path: str) -> Answer:
        """The answer for a path."""
        if path in _PAGES:
            name, content_type = _PAGES[path]
            return Answer(content_type=content_type, body=_page(name))
        match path:
            case "/metrics":
                samples = await take_samples(self._broker, self._traffic)
                text = await self._broker.env.run_computing(render, samples)
                return Answer(content_type=CONTENT_TYPE, body=text)
            case "/api/status":
                document = await self._board.document()
                return Answer(content_type="application/json", body=document)
            case "/livez":
                return Answer(body=b"ok\n")
            case "/readyz":
                reason = unreadiness(self._broker)
                if reason is None:
                    return Answer(body=b"ok\n")
                return Answer(status=503, body=f"not ready: {reason}\n".encode())
            case _:
                return Answer(status=404, body=f"here are {', '.join(PATHS)}\n".encode())


@cache
def _page(name: str) -> bytes:
    return files("logd.ops").joinpath("pages", name).read_bytes()
