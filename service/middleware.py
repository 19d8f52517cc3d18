"""Middleware: prefixes of proxies, compression, limits of requests, load shedding, and answers to bugs."""

import asyncio
import logging
import re
from collections.abc import Callable, Container
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs, problems
from service.settings import PREFIX, ServeSettings

log = logging.getLogger(__name__)

MAX_BODIES = 2**30  # bytes of bodies in memory, those that still arrive as well
LINGER_S = 1.0


def route_path(scope: Scope) -> str:
    """The path of a request without the prefix of a proxy: what the router compares, and so every check."""
    return _without(scope.get("root_path", ""), scope["path"])


def _without(prefix: str, path: str) -> str:
    return path[len(prefix) :] if f"{path}/".startswith(f"{prefix}/") else path


def take_off_prefix(scope: Scope) -> None:
    """Makes `route_path` the path of a route, without a slash at its end, whether or not the proxy in front has taken
    its prefix off: the one of `X-Forwarded-Prefix`, else of `--root-path`. Raises HTTPException: 400 for a header that
    is no prefix, 307 where the relative addresses of a page need another path."""
    given = unquote(Headers(scope=scope).get("x-forwarded-prefix", "").rstrip("/"))
    if not re.fullmatch(PREFIX, given, re.ASCII):
        raise HTTPException(400, f"X-Forwarded-Prefix: expected a path like /unet, found {given[:99]!r}")
    prefix, path = given or scope.get("root_path", ""), route_path(scope)
    shorter = _without(prefix, path)
    if shorter != path and not problems.methods_of(scope["app"], path):  # a prefix may be called as a route is
        path = shorter
    if scope["method"] in ("GET", "HEAD") and path in ("", "/docs/"):
        place = "../docs" if path else quote(prefix.rpartition("/")[2]) + "/"
        raise HTTPException(307, f"this page is at {place}", {"Location": place})
    path = path.removesuffix("/") or "/"
    # a line end: the router's `$` would match before it
    scope["root_path"], scope["path"] = prefix, prefix + path.replace("\n", "%0A")


@dataclass
class Middleware:
    """Base class: `handle` gets HTTP requests; everything else passes through."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.handle if scope["type"] == "http" else self.app)(scope, receive, send)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError


@dataclass
class Check(Middleware):
    """Refuses requests for which `check` raises HTTPException, before the body is read."""

    check: Callable[[Scope], None]

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self.check(scope)
        except HTTPException as error:
            await problems.response(error)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


@dataclass
class Compression(Middleware):
    """Compresses answers with gzip where the client takes it, but for the paths that are `left`: most of those answers
    are images, and the others are compressed where they are encoded, in a thread."""

    left: Container[str]

    def __post_init__(self) -> None:
        self.compressed = GZipMiddleware(self.app, compresslevel=6)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.app if route_path(scope) in self.left else self.compressed)(scope, receive, send)


@dataclass
class RequestLimits(Middleware):
    """Refuses requests that are too large, too slow or too many, and answers those that meet a bug:

    - 503 for a POST to one of `paths` when all places are taken, before it is parsed: refusing takes the same cores as
      computing, and happens most when they are needed most;
    - 413 for a body above `max_bytes`: at once if its Content-Length says so, else as soon as too much has arrived;
    - 503 for a body with which those of all requests have more than `MAX_BODIES` bytes, and more than two may have;
    - 431 for headers above `max_header_bytes`;
    - 408 for a body of which less than a KiB arrives in `idle_s` seconds;
    - 500 for a bug in the service, with the request's id, under which the log has the traceback.

    What has arrived of the body of a refused request is discarded, which uvicorn would keep. Where the connection
    closes after the answer, the rest is read, too, for `LINGER_S` at most: a client that still sends would see a reset
    connection instead of its answer.
    """

    paths: Container[str]
    settings: ServeSettings
    n_bytes: int = field(default=0, init=False)  # of the bodies of all requests that are not answered yet

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
                raise HTTPException(408, detail, {"Connection": "close"}) from None
            received += len(message.get("body", b""))
            self.n_bytes += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self.settings.max_bytes:
                raise HTTPException(413, f"expected at most {self.settings.max_bytes} bytes (--max-bytes), found more")
            if self.n_bytes > max(MAX_BODIES, 2 * self.settings.max_bytes):
                raise HTTPException(503, "many large uploads are being processed; try again", {"Retry-After": "5"})
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

        try:
            self._check(scope)
            await self.app(scope, limited, lingering)
        except ClientDisconnect:
            pass  # during the upload: nobody waits for an answer
        except HTTPException as error:
            await problems.response(error)(scope, limited, lingering)
        except Exception:
            log.exception("a bug in the service")
            scope["app"].state.metrics.bugs.inc()
            detail = f"a bug in the service; its log has the traceback of request {logs.request_id.get()}"
            await problems.response(HTTPException(500, detail))(scope, limited, lingering)
        finally:
            self.n_bytes -= received

    def _check(self, scope: Scope) -> None:
        """Raises HTTPException for what can be refused before the body is read."""
        # as sent, without the protocol's name; `: ` and the end of a line count
        n_bytes = len(scope["method"]) + len(scope.get("raw_path") or b"") + len(scope["query_string"])
        n_bytes += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if n_bytes > self.settings.max_header_bytes:
            most = f"{self.settings.max_header_bytes} bytes of headers (--max-header-bytes)"
            raise HTTPException(431, f"expected at most {most}, found more")
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self.settings.max_bytes:
            most = f"{self.settings.max_bytes} bytes (--max-bytes)"
            raise HTTPException(413, f"expected at most {most}, found {announced}")
        if scope["method"] == "POST" and route_path(scope) in self.paths:
            scope["app"].state.admission.check()
