"""The image in a request: a multipart field `file`, or the body itself."""

import mmap
from collections.abc import Iterator
from typing import Any, NamedTuple

from fastapi import Request
from python_multipart.multipart import parse_options_header

from service.problems import ProblemError
from unet.headers import SEARCH

_FORM = "multipart/form-data"
# curl --data-binary calls everything a form
_RAW = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")
_MAX_BOUNDARY = 70  # RFC 2046
_MAX_HEADERS = 4096  # of a part

LARGE = 2**20
"""Bytes of a body."""

_BINARY = {"type": "string", "format": "binary"}
OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            _FORM: {
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


class Upload(NamedTuple):
    body: bytes
    content_type: str

    def image(self, max_parts: int) -> bytes:
        """The image's file, in which the whole form is searched: not for the event loop. Raises ProblemError 400, 413
        or 422."""
        return _file(self.body, self.content_type, max_parts) if _media_type(self.content_type) == _FORM else self.body


async def read_upload(request: Request, max_bytes: int) -> Upload:
    """Raises ProblemError 413 or 415."""
    encoding = request.headers.get("content-encoding") or "identity"
    if encoding.lower() != "identity":
        raise ProblemError(415, f"expected a body as it is, found Content-Encoding {encoding}")
    content_type = request.headers.get("content-type") or "application/octet-stream"
    media_type = _media_type(content_type)
    if media_type != _FORM and not media_type.startswith(_RAW):
        raise ProblemError(415, f"expected {_FORM}, an image type or application/octet-stream, found {media_type}")
    return Upload(await _body(request, max_bytes), content_type)


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


async def _body(request: Request, max_bytes: int) -> bytes:
    """Large ones are put together in memory of their own, which the system gives as it is filled and gets back: joined
    from pieces that lie between those of others, they would take twice as much, and the heap would keep it."""
    announced = request.headers.get("content-length", "")
    length = int(announced) if announced.isdecimal() else max_bytes
    if length <= LARGE:
        return await request.body()
    with mmap.mmap(-1, length) as block:
        async for piece in request.stream():
            block.write(piece)
        return block[: block.tell()]


def _file(form: bytes, content_type: str, max_parts: int) -> bytes:
    """The field `file`. Searched in the whole form, in memory: nothing is written to disk."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= _MAX_BOUNDARY:
        raise ProblemError(400, f"expected {_FORM} with a boundary of 1 to {_MAX_BOUNDARY} bytes")
    files = []
    for i, (start, end) in enumerate(_parts(form, b"--" + boundary)):
        if i == max_parts:
            raise ProblemError(413, f"expected at most {max_parts} parts in the form, found more")
        blank = form.find(b"\r\n\r\n", start, min(end, start + _MAX_HEADERS))
        if blank < 0:
            raise _broken("a part has no headers, or too long ones")
        name, is_file = _name(form[start:blank])
        if name == b"file" and is_file:
            files.append((blank + 4, end))
    if not files:
        raise ProblemError(422, "file: expected a multipart field `file` that holds an image, found none")
    if len(files) > 1:
        raise ProblemError(422, f"file: expected one multipart field `file`, found {len(files)}")
    ((start, end),) = files
    return form[start:end]


def _parts(form: bytes, delimiter: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of what is between the delimiters (RFC 2046, section 5.1.1)."""
    at = _find(form, delimiter, 0)
    if at < 0:
        raise _broken("its boundary is not in it")
    while not form.startswith(b"--", at + len(delimiter)):
        start = at + len(delimiter)
        end = _find(form, b"\r\n" + delimiter, start)
        if end < 0:
            raise _broken("its end is missing")
        yield start, end
        at = end + 2


def _find(form: bytes, wanted: bytes, start: int) -> int:
    """As `bytes.find`, but in steps, between which other threads may run: -1, or where it begins."""
    steps = (form.find(wanted, at, at + SEARCH + len(wanted)) for at in range(start, len(form), SEARCH))
    return next((found for found in steps if found >= 0), -1)


def _name(headers: bytes) -> tuple[bytes, bool]:
    """Of the field, and whether it is a file."""
    for line in headers.split(b"\r\n"):
        header, _, value = line.partition(b":")
        if header.strip().lower() == b"content-disposition":
            options = parse_options_header(value)[1]
            return options.get(b"name", b""), b"filename" in value.lower()  # the options lack `filename*`
    raise _broken("a part has no name")


def _broken(reason: str) -> ProblemError:
    return ProblemError(400, f"the form is empty or truncated: {reason}; expected a field `file` that holds an image")
