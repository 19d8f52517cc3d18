"""POST /segment: an image in, its mask out."""

import asyncio
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field, field_validator
from starlette.exceptions import HTTPException

from service.logs import request_id
from service.models import Model
from service.problems import declare
from service.queue import Queue
from service.telemetry import Notes
from service.upload import BINARY, Options, admitted, openapi
from unet import Predictor, imaging
from unet.imaging import Limits, Picture
from unet.outputs import KINDS, SUFFIXES, Answer, Legend, Results
from unet.prediction import Array, Prediction
from unet.predictor import joined

PATH = "/segment"
HEADERS = {
    "X-Model-Id": "the model that answered",
    "X-Request-Id": "the client's, or a new one",
    "Server-Timing": "milliseconds of queue, decode, infer, encode",
    "X-Input-Warning": "how the image differs from those that the model was trained on; missing where it does not",
}

router = APIRouter()


class SegmentOptions(Options):
    output: str = Field(
        "mask",
        description=" ".join(f"{kind.name}: {kind.description}." for kind in KINDS.values()),
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
            "content": dict.fromkeys(SUFFIXES, BINARY) | {"application/geo+json": {"schema": {"type": "object"}}},
            "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()},
        },
        **declare(400, 401, 408, 415, 422, 503, 504),
    },
    openapi_extra=openapi(SegmentOptions),
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
        kind = KINDS[options.output]
        if options.threshold is not None and not predictor.binary:
            raise HTTPException(422, f"threshold: is for binary models; this one has {predictor.n_classes} classes")
        pixels = await notes.run("decode", state.codecs, imaging.measure, upload.data, state.limits, options.page)
        planes = predictor.planes_kept(kind.wants, options.tta) + kind.draws
        async with state.budget.room(pixels * planes):
            decoded = notes.run("decode", state.codecs, decode, upload.data, state.limits, predictor, options)
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
            told = Results(results, picture, legend, upload.name, warning, state.settings.max_objects)
            answer: Answer = await notes.run("encode", state.codecs, kind.encode, told)
    notes.pixels = pixels
    headers = {"X-Model-Id": model.id, "Server-Timing": notes.server_timing()}
    if warning:
        headers["X-Input-Warning"] = warning
    return Response(answer.body, media_type=answer.media_type, headers=headers)


def decode(
    data: bytes, limits: Limits, predictor: Predictor, options: SegmentOptions
) -> tuple[Picture, list[Prediction], str]:
    """A file -> what it says of its pixels, a prediction for each page, and how the pages differ from the training
    images. Raises ImageError or PixelError."""
    picture = imaging.read(data, limits, page=options.page)
    kind = KINDS[options.output]
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
