"""Errors as `application/problem+json` (RFC 9457): the only place where an error becomes an HTTP answer."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from unet.errors import UserError
from unet.imaging import ImageTooLargeError

MEDIA_TYPE = "application/problem+json"
HUNG_UP = (
    499  # nginx's status for a client that closed the connection before its answer: no success in logs and metrics
)


class Problem(BaseModel):
    """Why a request was refused (RFC 9457, section 3)."""

    type: str = Field("about:blank", description="a URI for the kind of problem; about:blank: the status says it all")
    title: str = Field(description="the HTTP status in words")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what was expected and what was found")


class ProblemError(Exception):
    """Ends a request with this status, explanation and headers."""

    def __init__(
        self,
        status: int,
        detail: str,
        headers: Mapping[str, str] | None = None,
        *,
        retry_after: int | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)
        if close:
            self.headers["Connection"] = "close"

    def response(self) -> Response:
        """The answer to the request."""
        title = "Client Closed Request" if self.status == HUNG_UP else HTTPStatus(self.status).phrase
        problem = Problem(type="about:blank", title=title, status=self.status, detail=str(self))
        return Response(problem.model_dump_json(), self.status, headers=self.headers, media_type=MEDIA_TYPE)


def declare(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI declarations of these statuses, for a route's `responses`."""
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


async def answer(request: Request, error: Exception) -> Response:
    """The answer to a request of which a route, or the framework, has raised one of `HANDLED`."""
    match error:
        case UserError():
            error = ProblemError(413 if isinstance(error, ImageTooLargeError) else 400, str(error))
        case RequestValidationError():
            error = ProblemError(422, "; ".join(map(_explain, error.errors())))
        case HTTPException(status_code=404):
            found = request.url.path[:99]
            error = ProblemError(404, f"expected a path of this service, as /docs has them, found {found}")
        case HTTPException(status_code=405, headers={"Allow": allowed} as headers):
            error = ProblemError(405, f"expected {allowed}, found {request.method}", headers)
        case HTTPException():
            error = ProblemError(error.status_code, error.detail, error.headers)
    assert isinstance(error, ProblemError)
    return error.response()


HANDLED = (ProblemError, UserError, RequestValidationError, HTTPException)


def _explain(error: Any) -> str:
    """A validation error of pydantic in one line."""
    name = ".".join(map(str, error["loc"][1:]))
    if error["type"] == "extra_forbidden":
        return f"{name}: expected output, threshold or tta, found an unknown option"
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{name}: {message}, found {str(error['input'])[:99]!r}"
