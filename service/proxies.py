"""Middleware of Ray's proxies: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=service.proxies.middleware.

Imports nothing of the service: a proxy that needs seconds to start is taken for a broken one.
"""

from itertools import cycle

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def middleware() -> list[Middleware]:
    """The middleware of a proxy, in the form that Ray expects."""
    return [Middleware(Refusals)]


class Refusals:
    """Answers 503 with Retry-After, as a problem (`service/problems.py`), where the proxy refuses a request with a
    plain text, and where it has no answer, as the replica was lost: by itself it would say 500."""

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner
        self._retry_after = cycle("123")  # seconds, staggered so that retries spread out

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # health and routes of the proxy
            await self._inner(scope, receive, send)
            return
        detail, answered = "the replica was lost before it answered; try again", False

        async def pass_on(message: Message) -> None:
            nonlocal detail, answered
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                answered = message["status"] != 503 or not headers.get("content-type", "").startswith("text/plain")
                if "X-Request-Id" in headers:
                    headers["X-Request-Id"] = headers["X-Request-Id"]  # once: the proxy has added it again
            elif not answered:
                detail = message["body"].decode()
            if answered:
                await send(message)

        await self._inner(scope, receive, pass_on)
        if not answered:
            problem = {"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": detail}
            headers = {"Retry-After": next(self._retry_after)}
            await JSONResponse(problem, 503, headers, "application/problem+json")(scope, receive, send)
