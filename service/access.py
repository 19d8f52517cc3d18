"""Access: API keys, host names, CORS, and what browsers may do with answers."""

import hmac
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Scope

from service.middleware import Check, route_path
from service.problems import declare
from service.settings import ServeSettings

LIVE = {"/health/live"}
PROBES = LIVE | {"/health", "/metrics"}  # polled by machines that know the service by its address only
POLLED = PROBES | {"/training"}  # again and again: not worth a line of the log each
FILES = "/static/"
PAGE = LIVE | {"/", "/docs", "/favicon.ico"}
"""Paths that never need a key, with those that begin with `FILES`: a browser has none yet, and the page asks for it."""
OPEN = PAGE | PROBES | {"/training", "/openapi.json"}
"""Paths that need no key, unless `--keys-everywhere`: they compute nothing and tell nothing of images."""
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self' blob:; "
    "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of pages: nothing inline, nothing from other hosts."""

NEEDS_KEY: dict[str, Any] = {
    "dependencies": [Depends(HTTPBearer(auto_error=False)), Depends(APIKeyHeader(name="X-API-Key", auto_error=False))],
    "responses": declare(401),
}
"""Arguments of `include_router` by which OpenAPI declares the two ways to send the key that `check_key` wants."""


def install(app: FastAPI, settings: ServeSettings) -> None:
    """Adds the middleware, the innermost first: the host is checked before the key."""
    if settings.api_keys:
        keys = [key.get_secret_value().encode() for key in settings.api_keys]
        app.add_middleware(Check, check=partial(check_key, keys, PAGE if settings.keys_everywhere else OPEN))
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", "X-Request-Id"],
            expose_headers=[
                *("X-Model-Id", "X-Request-Id", "Server-Timing", "X-Input-Warning", "Retry-After"),
                *("X-Pages", "Content-Disposition"),
            ],
        )
    if "*" not in settings.allowed_hosts:
        app.add_middleware(Check, check=partial(check_host, settings.allowed_hosts))


def check_key(keys: Sequence[bytes], open_paths: set[str], scope: Scope) -> None:
    """401 without one of the keys, as `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
    headers = Headers(scope=scope)
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = [token.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "")]
    # all are compared, each in constant time
    known = sum(hmac.compare_digest(each.encode(), key) for each in given for key in keys)
    path = route_path(scope)
    if not (known or path in open_paths or path.startswith(FILES)):
        found = "another" if any(given) else "none"
        detail = f"expected a key of this service as `Authorization: Bearer KEY` or `X-API-Key: KEY`, found {found}"
        raise HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})


def check_host(hosts: Sequence[str], scope: Scope) -> None:
    """400 for a foreign `Host` header, against DNS rebinding."""
    host = re.sub(r":\d*$", "", Headers(scope=scope).get("host", "")).lower()
    known = any(host == each or (each.startswith("*") and host.endswith(each[1:])) for each in hosts)
    if not known and route_path(scope) not in PROBES:
        raise HTTPException(400, "Host: expected a name of this service, found another")


def protect_browsers(headers: MutableHeaders) -> None:
    """Adds headers to an answer: no sniffing of media types; pages cannot be framed, and load nothing foreign."""
    headers["X-Content-Type-Options"] = "nosniff"
    if headers.get("content-type", "").startswith("text/html"):
        headers["Content-Security-Policy"] = PAGE_POLICY
        headers["Referrer-Policy"] = "no-referrer"
