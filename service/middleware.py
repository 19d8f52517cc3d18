"""Middleware: headers of answers, limits of requests, load shedding, and answers to bugs."""

import asyncio
import logging
import re
import uuid
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs, problems
from service.problems import ProblemError
from service.settings import ServeSettings

log = logging.getLogger(__name__)

LINGER_S = 1.0
_CDN = "https://cdn.jsdelivr.net"
PAGE_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "img-src 'self' blob: data:"
)
DOCS_POLICY = (
    f"{PAGE_POLICY} https://fastapi.tiangolo.com; "
    f"script-src 'self' 'unsafe-inline' {_CDN}; style-src 'self' 'unsafe-inline' {_CDN}"
)
"""FastAPI's /docs has an inline script and loads the rest from a CDN."""
_ACCEPTABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")


def route_path(scope: Scope) -> str:
    """The path of a request without the prefix that the server puts before it (`--root-path`)."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


class Middleware:
    """Base class: `handle` gets HTTP requests; everything else passes through."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.handle if scope["type"] == "http" else self.app)(scope, receive, send)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError


class AnswerHeaders(Middleware):
    """Headers of every answer: `X-Request-Id`, the client's own or a new one, which is also in every log entry; for
    browsers no sniffing of media types, and pages that load nothing foreign and cannot be framed."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ACCEPTABLE_ID.fullmatch(given) else uuid.uuid4().hex
        logs.request_id.set(request_id)  # until the end of the server's task for this request

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                if headers.get("content-type", "").startswith("text/html"):
                    docs = route_path(scope).startswith("/docs")
                    headers.setdefault("Content-Security-Policy", DOCS_POLICY if docs else PAGE_POLICY)
                    headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, send_with_headers)


class RequestLimits(Middleware):
    """Refuses requests that are too large, too slow or too many:

    - 503 for a POST to `path` when all places are taken, before it is parsed: refusing takes the same cores as
      computing, and happens most when they are needed most;
    - 413 for a body above `max_bytes`: at once if its Content-Length says so, else as soon as too much has arrived;
    - 431 for headers above `max_header_bytes`;
    - 408 for a body of which less than a KiB arrives in `idle_s` seconds.

    What has arrived of the body of a refused request is discarded, which uvicorn would keep. Where the connection
    closes after the answer, the rest is read, too, for `LINGER_S` at most: a client that still sends would see a reset
    connection instead of its answer.
    """

    def __init__(self, app: ASGIApp, path: str, settings: ServeSettings) -> None:
        super().__init__(app)
        self.path = path
        self.settings = settings

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        now = asyncio.get_running_loop().time
        received, in_time, deadline = 0, 0, now() + self.settings.idle_s
        complete = False
        closing = scope.get("http_version") == "1.0" or Headers(scope=scope).get("connection", "").lower() == "close"

        async def limited() -> Message:
            nonlocal received, in_time, deadline, complete
            try:
                async with asyncio.timeout_at(None if complete else deadline):
                    message = await receive()
            except TimeoutError:
                detail = f"expected a KiB of the body in {self.settings.idle_s:g} s (--idle-s), found less"
                raise ProblemError(408, detail, close=True) from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self.settings.max_bytes:
                raise ProblemError(413, self._detail("more"))
            if received - in_time >= 1024:
                in_time, deadline = received, now() + self.settings.idle_s
            return message

        async def lingering(message: Message) -> None:
            nonlocal closing
            if message["type"] == "http.response.start":
                closing = closing or Headers(raw=message["headers"]).get("connection") == "close"
            if complete or message["type"] != "http.response.body" or message.get("more_body"):
                await send(message)
                return
            await send({**message, "more_body": True})
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S if closing else 0):
                    while (await receive()).get("more_body"):
                        pass
            await send({"type": "http.response.body"})

        await (self._refusal(scope) or self.app)(scope, limited, lingering)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        # as sent, without the protocol's name; `: ` and the end of a line count
        n_bytes = len(scope["method"]) + len(scope.get("raw_path") or b"") + len(scope["query_string"])
        n_bytes += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if n_bytes > self.settings.max_header_bytes:
            detail = (
                f"expected at most {self.settings.max_header_bytes} bytes of headers (--max-header-bytes), found more"
            )
            return problems.response(431, detail)
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self.settings.max_bytes:
            return problems.response(413, self._detail(announced))
        if scope["method"] == "POST" and route_path(scope) == self.path:
            try:
                scope["app"].state.admission.check()
            except ProblemError as error:
                return problems.answer(error)
        return None

    def _detail(self, found: str) -> str:
        return f"expected at most {self.settings.max_bytes} bytes (--max-bytes), found {found}"


class UnexpectedErrors(Middleware):
    """500 for a bug in the service. The client gets the request's id, under which the log has the traceback."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except ClientDisconnect:
            pass  # during the upload: nobody waits for an answer
        except Exception:
            log.exception("a bug in the service")
            scope["app"].state.metrics.bugs.inc()
            detail = f"a bug in the service; its log has the traceback of request {logs.request_id.get()}"
            await problems.response(500, detail)(scope, receive, send)
