"""Middleware: request ids, limits of a request's size and speed, and load shedding."""

import asyncio
import re
import uuid
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs, problems
from service.problems import ProblemError

LINGER_S = 1.0
_ACCEPTABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")


def route_path(scope: Scope) -> str:
    """The path of a request without the prefix that the server puts before it (`--root-path`)."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


class RequestId:
    """`X-Request-Id` on every answer and in every log entry: the client's own, or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ACCEPTABLE_ID.fullmatch(given) else uuid.uuid4().hex
        logs.request_id.set(request_id)  # until the end of the server's task for this request

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


class RequestLimits:
    """Refuses requests that are too large or too slow:

    - 413 for a body above `max_bytes`: at once if its Content-Length says so, else as soon as too much has arrived;
    - 431 for headers above `max_header_bytes`;
    - 408 for a body of which less than a KiB arrives in `idle_s` seconds.

    Where the connection closes after the answer, what is left of a body is read first, for `LINGER_S` at most: a client
    that still sends would see a reset connection instead of its answer.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_header_bytes: int, idle_s: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.max_header_bytes = max_header_bytes
        self.idle_s = idle_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        now = asyncio.get_running_loop().time
        received, in_time, deadline = 0, 0, now() + self.idle_s
        complete = False

        async def limited() -> Message:
            nonlocal received, in_time, deadline, complete
            try:
                async with asyncio.timeout_at(None if complete else deadline):
                    message = await receive()
            except TimeoutError:
                detail = f"expected a KiB of the body in {self.idle_s:g} s (--idle-s), found less"
                raise ProblemError(408, detail, close=True) from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self.max_bytes:
                raise ProblemError(413, self._detail("more"))
            if received - in_time >= 1024:
                in_time, deadline = received, now() + self.idle_s
            return message

        closing = scope.get("http_version") == "1.0" or Headers(scope=scope).get("connection", "").lower() == "close"

        async def lingering(message: Message) -> None:
            nonlocal closing
            if message["type"] == "http.response.start":
                closing = closing or Headers(raw=message["headers"]).get("connection") == "close"
            if message.get("more_body") or complete or not closing or message["type"] == "http.response.start":
                await send(message)
                return
            await send(message | {"more_body": True})
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    while (await receive()).get("more_body"):
                        pass
            await send({"type": "http.response.body"})

        await (self._refusal(scope) or self.app)(scope, limited, lingering)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        if _header_bytes(scope) > self.max_header_bytes:
            detail = f"expected at most {self.max_header_bytes} bytes of headers (--max-header-bytes), found more"
            return problems.response(431, detail)
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self.max_bytes:
            return problems.response(413, self._detail(announced))
        return None

    def _detail(self, found: str) -> str:
        return f"expected at most {self.max_bytes} bytes (--max-bytes), found {found}"


def _header_bytes(scope: Scope) -> int:
    """As sent, without the protocol's name; `: ` and the end of a line count."""
    target = len(scope["method"]) + len(scope.get("raw_path") or b"") + len(scope["query_string"])
    return target + sum(len(name) + len(value) + 4 for name, value in scope["headers"])


class LoadShedding:
    """503 for a POST to `path` when all places are taken, before the request is parsed: refusing takes the same cores
    as computing, and happens most when they are needed most."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self.app = app
        self.path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and route_path(scope) == self.path:
            try:
                scope["app"].state.admission.check()
            except ProblemError as error:
                await problems.response(error.status, error.detail, error.headers)(scope, receive, send)
                return
        await self.app(scope, receive, send)
