"""The image in a request: a multipart field `file`, or the body itself."""

from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from service.problems import ProblemError

# curl --data-binary calls everything a form
_RAW = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")

_BINARY = {"type": "string", "format": "binary"}
OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file"], "properties": {"file": _BINARY}},
            },
            **{
                media_type: {"schema": _BINARY}
                for media_type in (
                    "image/png",
                    "image/jpeg",
                    "image/tiff",
                    "image/bmp",
                    "image/webp",
                    "application/octet-stream",
                )
            },
        },
    }
}


async def read_upload(request: Request) -> bytes:
    """The bytes of the image. Raises ProblemError 400, 415 or 422."""
    media_type = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        async with request.form(max_files=1, max_fields=8) as form:
            if not form:
                raise ProblemError(400, "the form is empty or truncated: expected a field `file` that holds an image")
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise ProblemError(422, "file: expected a multipart field `file` that holds an image, found none")
            return await file.read()
    if media_type.startswith(_RAW):
        return await request.body()
    raise ProblemError(
        415, f"expected multipart/form-data, an image type or application/octet-stream, found {media_type}"
    )
