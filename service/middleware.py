"""Around every request: an id to find it again, and a limit to what it may send."""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs, problems
from service.problems import ProblemError

_ACCEPTABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestId:
    """`X-Request-Id` on every answer, and with all that is logged: the client's own, or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ACCEPTABLE_ID.fullmatch(given) else uuid.uuid4().hex
        logs.request_id.set(request_id)  # until the end of the server's task for this request: it may have to log, too

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


class BodyLimit:
    """413 for a body above `max_bytes`: at once if its Content-Length says so, else as soon as too much has come."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self.max_bytes:
            await problems.response(413, self._detail(announced))(scope, receive, send)
            return
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise ProblemError(413, self._detail("more"))
            return message

        await self.app(scope, count, send)

    def _detail(self, found: str) -> str:
        return f"expected at most {self.max_bytes} bytes, found {found}"
