"""POST /segment: an image in, its mask out."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from service.admission import GiveUp
from service.logs import request_id
from service.models import ModelSlot
from service.problems import HUNG_UP, ProblemError, declare
from service.queue import InferenceError, Queue
from service.telemetry import Notes
from service.upload import openapi, read_upload
from unet import Predictor, imaging
from unet.imaging import Limits, Picture
from unet.outputs import KINDS
from unet.predictor import Array, Prediction

PATH = "/segment"

HEADERS = {
    "X-Model-Id": "the model that answered",
    "X-Request-Id": "the client's, or a new one",
    "Server-Timing": "milliseconds of queue, decode, infer, encode",
}

router = APIRouter()

Decoded = tuple[Picture, list[Prediction]]


def _known(output: str) -> str:
    if output not in KINDS:
        raise ValueError(f"expected {' or '.join(KINDS)}")
    return output


class SegmentOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")  # a misspelt option is an error, not silence

    output: Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": list(KINDS)})] = Field(
        "mask", description=" ".join(f"{kind.name}: {kind.description}." for kind in KINDS.values())
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="foreground is above it; binary models only (default: the model's own)"
    )
    tta: bool = Field(
        False,
        description="test-time augmentation: average over eight rotations and flips; better, and eight times slower",
    )

    def updated(self, fields: Mapping[str, object]) -> "SegmentOptions":
        """These options with those of a form, which win. Raises RequestValidationError."""
        try:
            return SegmentOptions.model_validate({**self.model_dump(exclude_unset=True), **fields})
        except ValidationError as error:
            raise RequestValidationError([e | {"loc": ("form", *e["loc"])} for e in error.errors()]) from error


@router.post(
    PATH,
    response_class=Response,
    responses={
        200: {
            "description": "The size of the upload (EXIF orientation applied); TIFF for a TIFF of several pages",
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/png", "image/tiff")
            },
            "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()},
        },
        **declare(400, 401, 408, 415, 422, 503, 504),
    },
    openapi_extra=openapi(SegmentOptions.model_json_schema()["properties"]),
)
async def segment(request: Request, query: Annotated[SegmentOptions, Query()]) -> Response:
    """The mask of an image: PNG, JPEG, TIFF (of several pages, too), BMP or WebP, sent as the multipart field `file` or
    as the body itself. The options may be fields of the form, too."""
    state = request.app.state
    slot: ModelSlot = state.slot
    notes: Notes = request.state.notes
    if (model := slot.current) is None:
        raise ProblemError(503, slot.refusal or "no model yet: the service waits for its file", retry_after=5)
    async with state.admission.admit() as give_up:
        data, options = await _read(request, query, model.predictor)
        notes.begin(model.id)
        async with ended_by_hang_up(request, give_up):
            pixels = await notes.run("decode", state.codecs, imaging.measure, data, state.limits)
            # the mean over views is kept for each class
            async with state.budget.room(pixels * (model.predictor.n_classes if options.tta else 1)):
                decoded = notes.run("decode", state.codecs, decode, data, state.limits, model.predictor, options)
                del data  # large, and not needed while the prediction waits for its turn
                picture, predictions = await decoded
                masks = [await _compute(state.queue, prediction, notes) for prediction in predictions]
                answer = await notes.run("encode", state.codecs, KINDS[options.output].encode, masks, picture)
    notes.pixels = pixels
    headers = {"X-Model-Id": model.id, "Server-Timing": notes.server_timing()}
    return Response(answer.body, media_type=answer.media_type, headers=headers)


async def _read(request: Request, query: SegmentOptions, predictor: Predictor) -> tuple[bytes, SegmentOptions]:
    """The file and the options of a request. Raises ProblemError and RequestValidationError."""
    upload = await read_upload(request, request.app.state.settings.max_parts)
    options = query.updated(upload.fields) if upload.fields else query
    if options.threshold is not None and not predictor.binary:
        raise ProblemError(422, f"threshold: is for binary models; this one has {predictor.n_classes} classes")
    return upload.image, options


def decode(data: bytes, limits: Limits, predictor: Predictor, options: SegmentOptions) -> Decoded:
    """A file -> its picture, and a prediction for each page. Raises ImageError or PixelError."""
    picture = imaging.read(data, limits)
    start = partial(predictor.start, wanted=KINDS[options.output].wants, threshold=options.threshold, tta=options.tta)
    return picture, [start(page) for page in picture.pages]


async def _compute(queue: Queue, prediction: Prediction, notes: Notes) -> Array:
    job = queue.submit(prediction, request_id.get())
    try:
        return await asyncio.wrap_future(job)
    except InferenceError as error:
        raise ProblemError(503, str(error), retry_after=5) from error
    finally:
        notes.stages["infer"] += job.seconds


@asynccontextmanager
async def ended_by_hang_up(request: Request, give_up: GiveUp) -> AsyncIterator[None]:
    """Ends the request as soon as the client is gone; its body must have been read."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        give_up(ProblemError(HUNG_UP, "the client hung up"))

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
