"""POST /segment: an image in, its mask out."""

import asyncio
import gzip
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field, field_validator
from starlette.exceptions import HTTPException

from service.accept import choose, takes_gzip
from service.logs import request_id
from service.models import Model
from service.problems import declare
from service.queue import Queue
from service.telemetry import Notes
from service.upload import BINARY, BODY, BYTES, Options, admitted
from unet import Predictor, imaging
from unet.imaging import Limits, Picture
from unet.listing import stem
from unet.outputs import KINDS, SUFFIXES, Answer, Kind, Legend, Results, file_name
from unet.prediction import Array, Prediction
from unet.predictor import joined

PATH = "/segment"
HEADERS = {
    "X-Model-Id": "the model that answered",
    "X-Request-Id": "the client's, or a new one",
    "Server-Timing": "milliseconds of queue, decode, infer, encode",
    "Content-Disposition": "a name for the answer, as cell_mask.png, where the upload's file has one",
    "Vary": "Accept, by which an answer is chosen, and Accept-Encoding, for gzip",
    "X-Input-Warning": "how the image differs from those that the model was trained on; missing where it does not",
}

CONTENT = BYTES | dict.fromkeys(SUFFIXES, BINARY) | {"application/geo+json": {"schema": {"type": "object"}}}
COMPRESSED = ("application/geo+json", "text/csv")

router = APIRouter()


class SegmentOptions(Options):
    output: str = Field(
        "mask",
        description=" ".join(f"{kind.name}: {kind.description}." for kind in KINDS.values())
        + " Without it, `Accept` may ask for geojson (application/json), table (text/csv) or rois (application/zip).",
        json_schema_extra={"enum": list(KINDS)},
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="foreground is above it; binary models only (default: the model's own)"
    )
    tta: bool = Field(
        False,
        description="test-time augmentation: average over eight rotations and flips; better, and eight times slower",
    )
    class_name: str | None = Field(None, alias="class", description="name of a class, for output=probability")
    page: int | None = Field(
        None, ge=1, description="only this page of a TIFF, from 1: images are PNGs, objects keep the page's number"
    )

    @field_validator("output")
    @classmethod
    def _known(cls, output: str) -> str:
        if output not in KINDS:
            raise ValueError(f"expected {' or '.join(KINDS)}")
        return output


@router.post(
    PATH,
    response_class=Response,
    responses={
        200: {
            "description": "Images have the size of the upload (EXIF orientation applied), and are TIFFs for a TIFF",
            "content": CONTENT,
            "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()},
        },
        **declare(400, 401, 406, 408, 415, 422, 503, 504),
    },
    openapi_extra={"requestBody": BODY},
)
async def segment(request: Request, query: Annotated[SegmentOptions, Query()]) -> Response:
    """The answer for an image: PNG, JPEG, TIFF (of several pages, too), BMP, WebP or GIF, sent as the multipart field
    `file` or as the body itself. The options may be fields of the form, too."""
    state = request.app.state
    notes: Notes = request.state.notes
    model: Model | None = state.slot.current
    if model is None:
        detail = state.slot.refusal or "no model yet: the service waits for its file"
        raise HTTPException(503, detail, {"Retry-After": "5"})
    predictor = model.predictor
    async with admitted(request, query, model.id) as upload:
        options = upload.options
        output = options.output if "output" in options.model_fields_set else None
        kind, tiff = choose(",".join(request.headers.getlist("accept")), output)
        if options.threshold is not None and not predictor.binary:
            raise HTTPException(422, f"threshold: is for binary models; this one has {predictor.n_classes} classes")
        pixels = await notes.run("decode", state.codecs, imaging.measure, upload.data, state.limits, options.page)
        planes = predictor.planes_kept(kind.wants, options.tta) + kind.draws
        async with state.budget.room(pixels * planes):
            decoded = notes.run("decode", state.codecs, decode, upload.data, state.limits, predictor, kind, options)
            upload.data = b""  # large, and not needed while the prediction waits for its turn
            picture, predictions, warning = await decoded
            results: list[Array] = []
            said = [warning]
            while predictions:  # each is freed when it is computed
                result, doubt = await compute(state.queue, predictions.pop(0), notes)
                results.append(result)
                said.append(doubt)
            warning = joined(said)
            legend = Legend.of(predictor, options.threshold)
            picture = picture if tiff is None else replace(picture, tiff=tiff)
            told = Results(results, picture, legend, upload.name, warning, state.settings.max_objects)
            gzipped = kind.media_types[0] in COMPRESSED and takes_gzip(request.headers.get("accept-encoding", ""))
            answer = await notes.run("encode", state.codecs, encode, kind, told, gzipped)
    notes.pixels = pixels
    headers = {"X-Model-Id": model.id, "Server-Timing": notes.server_timing(), "Vary": "Accept, Accept-Encoding"}
    if gzipped:
        headers["Content-Encoding"] = "gzip"
    if name := answer_name(upload.name, kind, answer, picture.part):
        headers["Content-Disposition"] = disposition(name)
    if warning:
        headers["X-Input-Warning"] = warning
    return Response(answer.body, media_type=answer.media_type, headers=headers)


def decode(
    data: bytes, limits: Limits, predictor: Predictor, kind: Kind, options: SegmentOptions
) -> tuple[Picture, list[Prediction], str]:
    """A file -> what it says of its pixels, a prediction for each page, and how the pages differ from the training
    images. Raises ImageError or PixelError."""
    picture = imaging.read(data, limits, page=options.page)
    how: dict[str, Any] = {"threshold": options.threshold, "tta": options.tta, "class_name": options.class_name}
    predictions = [predictor.start(page, kind.wants, **how) for page in picture.pages]
    warning = predictor.warning(picture.pages)
    return picture if kind.draws else replace(picture, pages=[]), predictions, warning  # pages may be large


async def compute(queue: Queue, prediction: Prediction, notes: Notes) -> tuple[Array, str]:
    """The result of a prediction, computed by turns with those of other requests, and whether the model is unsure of
    it. Raises HTTPException, 503."""
    job = queue.submit(prediction, request_id.get())
    try:
        return await asyncio.wrap_future(job), prediction.doubt
    finally:
        notes.stages["infer"] += job.seconds


def encode(kind: Kind, results: Results, gzipped: bool) -> Answer:
    """The answer, compressed or not. Raises TooManyObjectsError."""
    answer = kind.encode(results)
    # level 5: 0.03 s for each second that outlines take, and a fifth of the size; 9 saves another hundredth of that
    return answer._replace(body=gzip.compress(answer.body, 5, mtime=0)) if gzipped else answer


def answer_name(upload: str, kind: Kind, answer: Answer, part: tuple[int, int] | None) -> str:
    """The name that `unet-segment` gives an answer, with the page that was asked for of several; empty for an upload
    without a name, which may be any text."""
    name = "".join(c if c.isprintable() else "_" for c in stem(Path(re.split(r"[/\\]", upload)[-1])))[:200]
    name += f"_page{part[0]}" if name and part and part[1] > 1 else ""
    return name and file_name(name, kind.name, SUFFIXES[answer.media_type])


def disposition(name: str) -> str:
    """`Content-Disposition` (RFC 6266) with a name: in ASCII, and in full where that is not all of it."""
    plain = re.sub(r'[^ -~]|["\\%]', "_", name)
    return f'inline; filename="{plain}"' + (f"; filename*=UTF-8''{quote(name, safe='')}" if plain != name else "")
