"""POST /preview: a picture of any image that is read, for a page to show."""

from functools import partial
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from service.problems import declare
from service.telemetry import Notes
from service.upload import BINARY, BODY, BYTES, Options, admitted
from unet import imaging
from unet.imaging import Picture
from unet.outputs.overlay import to_rgb

PATH = "/preview"
HEADERS = {"X-Pages": "number of pages in the file", "Server-Timing": "milliseconds of queue, decode, encode"}

router = APIRouter()


class PreviewOptions(Options):
    page: int = Field(1, ge=1, description="page of a TIFF, from 1")


@router.post(
    PATH,
    response_class=Response,
    responses={
        200: {
            "description": "8-bit grey, or RGB of the first three channels, as `output=overlay` shows the image",
            "content": BYTES | {"image/png": BINARY},
            "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()},
        },
        **declare(400, 401, 408, 415, 422, 503, 504),
    },
    openapi_extra={"requestBody": BODY},
)
async def preview(request: Request, query: Annotated[PreviewOptions, Query()]) -> Response:
    """A PNG to look at of one page of an image, sent as to `/segment`: TIFFs, 16 bits and floats are nothing that a
    browser shows. Needs no model."""
    state = request.app.state
    notes: Notes = request.state.notes
    async with admitted(request, query) as upload:
        page = upload.options.page
        pixels = await notes.run("decode", state.codecs, imaging.measure, upload.data, state.limits, page)
        async with state.budget.room(pixels):
            read = partial(imaging.read, upload.data, state.limits, page=page)
            picture = await notes.run("decode", state.codecs, read)
            body = await notes.run("encode", state.codecs, draw, picture)
    _, n_pages = picture.part or (1, 1)
    headers = {"X-Pages": str(n_pages), "Server-Timing": notes.server_timing()}
    return Response(body, media_type="image/png", headers=headers)


def draw(picture: Picture) -> bytes:
    """PNG of the only page: RGB for three channels or more, else grey."""
    (page,) = picture.pages
    rgb = to_rgb(page)
    return imaging.write_png(rgb if page[0, 0].size >= 3 else np.ascontiguousarray(rgb[..., 0]))
