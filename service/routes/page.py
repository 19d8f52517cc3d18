"""GET / and /docs: the page for people, and the API to try out, with the files that they need."""

from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles

router = APIRouter()
get = partial(router.api_route, methods=["GET", "HEAD"], include_in_schema=False)


class Files(StaticFiles):
    """Files that browsers ask for again each time, with their ETag, so that a new version is seen at once."""

    def file_response(self, full_path: str | PathLike[str], *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(full_path, *args, **kwargs)
        if response.status_code == 200:
            # FileResponse reads the request meanwhile, and a body that is refused would be an error in mid-answer
            headers = {name: value for name, value in response.headers.items() if name != "accept-ranges"}
            response = Response(Path(full_path).read_bytes(), headers=headers)
        response.headers["Cache-Control"] = "no-cache"
        return response


FILES = Files(directory=Path(__file__).parent.parent / "static", packages=[("fastapi_offline", "static")])
"""Our own, and Swagger UI."""
LARGE = {"/static/swagger-ui-bundle.js"}
"""Paths of files that would take long to compress for each request."""


@get("/static/{name}")
async def file(request: Request, name: str) -> Response:
    return await FILES.get_response(name, request.scope)


@get("/")
async def page(request: Request) -> Response:
    return await file(request, "index.html")


@get("/docs")
async def docs(request: Request) -> Response:
    return await file(request, "docs.html")


@get("/favicon.ico")
async def icon(request: Request) -> Response:
    return await file(request, "icon.svg")
