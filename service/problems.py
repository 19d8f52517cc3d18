"""Errors as `application/problem+json` (RFC 9457): the only place where an error becomes an HTTP answer."""

from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Match

from unet.errors import UserError
from unet.imaging import ImageTooLargeError, NoSuchPageError
from unet.outputs.objects import TooManyObjectsError
from unet.pixels import PixelError
from unet.settings import plain

MEDIA_TYPE = "application/problem+json"
HUNG_UP = 499  # nginx's status for a client that went away before its answer: no success in logs and metrics


class Problem(BaseModel):
    """Why a request was refused (RFC 9457, section 3)."""

    type: str = Field("about:blank", description="a URI for the kind of problem; about:blank: the status says it all")
    title: str = Field(description="the HTTP status in words")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what was expected and what was found")


def response(error: HTTPException) -> Response:
    """The answer to a request that has ended with this error."""
    title = "Client Closed Request" if error.status_code == HUNG_UP else HTTPStatus(error.status_code).phrase
    problem = Problem(type="about:blank", title=title, status=error.status_code, detail=error.detail)
    return Response(problem.model_dump_json(), error.status_code, error.headers, MEDIA_TYPE)


def declare(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI declarations of these statuses, for a route's `responses`."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def methods_of(app: Starlette, path: str) -> list[str]:
    """The methods of all routes with this path."""
    scopes = [{"type": "http", "method": method, "path": path} for method in ("GET", "HEAD", "POST")]
    return [scope["method"] for scope in scopes if any(route.matches(scope)[0] == Match.FULL for route in app.routes)]


async def answer(request: Request, error: Exception) -> Response:
    """The answer to a request of which a route, or the framework, has raised one of `HANDLED`."""
    match error:
        case ImageTooLargeError() | TooManyObjectsError():
            error = HTTPException(413, str(error))
        case PixelError() | NoSuchPageError():  # an image, but none for this model, or not with this page
            error = HTTPException(422, str(error))
        case UserError():
            error = HTTPException(400, str(error))
        case RequestValidationError():
            error = HTTPException(422, "; ".join(map(_explain, error.errors())))
        case HTTPException(status_code=404):
            error.detail = f"expected a path of this service, as /docs has them, found {request.url.path[:99]}"
        case HTTPException(status_code=405):
            methods = methods_of(request.app, request.scope["path"].removeprefix(request.scope["root_path"]))
            allow = {"Allow": ", ".join([*methods, "OPTIONS"])}
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=allow)
            error = HTTPException(405, f"expected {' or '.join(methods)}, found {request.method}", allow)
    assert isinstance(error, HTTPException)
    return response(error)


HANDLED = (HTTPException, RequestValidationError, UserError)


def _explain(error: Any) -> str:
    """A validation error of pydantic in one line."""
    name = ".".join(map(str, error["loc"][1:]))
    if not name:  # of all options together: begins with the name of one
        return str(error["msg"]).removeprefix("Value error, ")
    return f"{name}: {plain(error['msg'])}, found {str(error['input'])[:99]!r}"
