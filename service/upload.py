"""The image and the options in a request: a multipart form with a field `file`, or the image as the body."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError, model_validator
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from service.admission import GiveUp
from service.problems import HUNG_UP

FORM = "multipart/form-data"
# curl --data-binary calls everything a form
RAW = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")
BINARY = {"schema": {"type": "string", "format": "binary"}}
BYTES = {"application/octet-stream": BINARY}
"""Content that generators of clients read as bytes; they know no images."""
BODY = {
    "required": True,
    "description": "an image, as the field `file` of a form, or as it is: of an image type or as octet-stream",
    "content": {
        FORM: {"schema": {"type": "object", "required": ["file"], "properties": {"file": BINARY["schema"]}}},
        **BYTES,
    },
}
"""The request body in the OpenAPI document. The options are in the query there, though a form may have them."""


class Options(BaseModel):
    """Base class of a route's options, which are in the query or are fields of a form."""

    @model_validator(mode="before")
    @classmethod
    def _are_known(cls, given: dict[str, object]) -> dict[str, object]:
        """A misspelt option is an error, not silence."""
        *known, last = (field.alias or name for name, field in cls.model_fields.items())
        for name in given:
            if name not in (*known, last):
                expected = f"{', '.join(known)} or {last}" if known else last
                raise ValueError(f"{name[:99]}: expected {expected}, found an unknown option")
        return given

    def updated(self, fields: Mapping[str, object]) -> Self:
        """Options of the query, overridden by those of a form. Raises RequestValidationError."""
        try:
            return self.model_validate({**self.model_dump(exclude_unset=True, by_alias=True), **fields})
        except ValidationError as error:
            raise RequestValidationError([e | {"loc": ("form", *e["loc"])} for e in error.errors()]) from error


O = TypeVar("O", bound=Options)  # noqa: E741
T = TypeVar("T")


@dataclass
class Upload(Generic[O]):
    """What a request brings."""

    data: bytes
    name: str  # of the image's file; empty where nothing says it
    options: O


@asynccontextmanager
async def admitted(request: Request, query: O, model_id: str | None = None) -> AsyncIterator[Upload[O]]:
    """The upload of a request that has a place among those in flight, and that ends as soon as the client is gone.
    Raises HTTPException."""
    state = request.app.state
    async with state.admission.admit() as give_up:
        _once(request.query_params.multi_items())
        data, name, fields = await read_upload(request, state.settings.max_parts)
        upload = Upload(data, name, query.updated(fields))
        del data  # large, and the route may have done with it before its answer
        request.state.notes.begin(model_id)
        async with _ended_by_hang_up(request, give_up):
            yield upload


def _once(options: list[tuple[str, T]]) -> dict[str, T]:
    """Options by name. Raises HTTPException, 422, for one that is given twice, as only one would count."""
    found: dict[str, T] = {}
    for name, value in options:
        if name in found:
            raise HTTPException(422, f"{name[:99]}: expected once, found twice")
        found[name] = value
    return found


@asynccontextmanager
async def _ended_by_hang_up(request: Request, give_up: GiveUp) -> AsyncIterator[None]:
    """Ends the request as soon as the client is gone; its body must have been read."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        give_up(HTTPException(HUNG_UP, "the client hung up"))

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()


class FormParser(MultiPartParser):
    spool_max_size = 2**32
    """Never on disk, which may be read-only, full, or memory anyway: RequestLimits bounds the whole body."""
    complete = False

    def on_end(self) -> None:
        self.complete = True


async def read_upload(request: Request, max_parts: int) -> tuple[bytes, str, dict[str, str | UploadFile]]:
    """The image, the name of its file, and the other parts of a form. Raises HTTPException 400, 413, 415 or 422."""
    encoding = request.headers.get("content-encoding") or "identity"
    if encoding.lower() != "identity":
        raise HTTPException(415, f"expected a body as it is, found Content-Encoding {encoding}")
    content_type = request.headers.get("content-type") or "application/octet-stream"
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != FORM and not media_type.startswith(RAW):
        raise HTTPException(415, f"expected {FORM}, an image type or application/octet-stream, found {media_type}")
    if media_type != FORM:
        return b"".join([piece async for piece in request.stream()]), "", {}  # `request.body()` would keep a copy

    async def stream() -> AsyncGenerator[bytes, None]:
        async for piece in request.stream():
            yield piece
        if not parser.complete:
            raise MultiPartException("Its end is missing.")

    # names of files, and bytes of a part without one, come as text: in Latin-1, which every byte is a character of
    headers = Headers({"content-type": f"{content_type}; charset=latin-1"})
    parser = FormParser(headers, stream(), max_files=max_parts, max_fields=max_parts, max_part_size=2**32)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many"):
            raise HTTPException(413, f"expected at most {max_parts} parts (--max-parts), found more") from error
        raise HTTPException(400, f"expected a form with a field `file` that holds an image: {error.message}") from error
    try:
        parts = form.multi_items()
        if len(parts) > max_parts:
            raise HTTPException(413, f"expected at most {max_parts} parts (--max-parts), found {len(parts)}")
        files = form.getlist("file")
        if len(files) != 1:
            detail = f"file: expected one multipart field `file` that holds an image, found {len(files)}"
            raise HTTPException(422, detail)
        # (a quote that is missing in the header hides the charset)
        image = files[0].encode("latin-1", "replace") if isinstance(files[0], str) else await files[0].read()
        name = "" if isinstance(files[0], str) else files[0].filename or ""
        name = name.encode("latin-1", "replace").decode(errors="replace")  # browsers and curl send UTF-8
        return image, name, _once([part for part in parts if part[0] != "file"])
    finally:
        await form.close()
