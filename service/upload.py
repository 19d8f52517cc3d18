"""The image and the options in a request: a multipart form with a field `file`, or the image as the body."""

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

FORM = "multipart/form-data"
# curl --data-binary calls everything a form
RAW = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")
BINARY = {"schema": {"type": "string", "format": "binary"}}
DECLARED = (*(f"image/{kind}" for kind in ("png", "jpeg", "tiff", "bmp", "webp", "gif")), "application/octet-stream")


def openapi(fields: dict[str, Any]) -> dict[str, Any]:
    """The request body in the OpenAPI document; `fields`: schemas of the form's other fields, by name."""
    form = {"type": "object", "required": ["file"], "properties": {"file": BINARY["schema"], **fields}}
    return {"requestBody": {"required": True, "content": {FORM: {"schema": form}, **dict.fromkeys(DECLARED, BINARY)}}}


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
        return image, name, {field: value for field, value in parts if field != "file"}
    finally:
        await form.close()
