"""POST /segment: an image in, its mask out."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from service.engine import Engine, InferenceError, Steps
from service.models import ModelSlot
from service.problems import HUNG_UP, ProblemError, declare, response
from service.settings import ServeSettings
from service.telemetry import Notes
from service.upload import OPENAPI, Upload, read_upload
from unet import Predictor
from unet.images import ImageError, ImageTooLargeError, count_pixels, decode, encode_png, encode_tiff
from unet.pixels import PixelError

R = TypeVar("R")

PATH = "/segment"

router = APIRouter()

Output = Literal["mask", "probability"]


class SegmentQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")  # a misspelt parameter is an error, not silence

    output: Output = Field(
        "mask",
        description="mask: 8-bit, 0 and 255 for a binary model, the class values for several classes. "
        "probability: 8-bit grey, 255 certain; of the foreground, or of each pixel's likeliest class",
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="foreground is above it; binary models only (default: the model's own)"
    )
    tta: bool = Field(
        False,
        description="test-time augmentation: average over eight rotations and flips; better, and eight times slower",
    )


@router.post(
    PATH,
    response_class=Response,
    responses={
        200: {
            "description": "The size of the upload (EXIF orientation applied); TIFF for a TIFF of several pages",
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/png", "image/tiff")
            },
            "headers": {
                "X-Model-Id": {"description": "the model that answered", "schema": {"type": "string"}},
                "X-Request-Id": {"description": "the client's, or a new one", "schema": {"type": "string"}},
                "Server-Timing": {
                    "description": "milliseconds of queue, decode, infer, encode",
                    "schema": {"type": "string"},
                },
            },
        },
        **declare(400, 401, 408, 415, 422, 503, 504),
    },
    openapi_extra=OPENAPI,
)
async def segment(request: Request, query: Annotated[SegmentQuery, Query()]) -> Response:
    """The mask of an image: PNG, JPEG, TIFF (of several pages, too), BMP or WebP, sent as the multipart field `file` or
    as the body itself."""
    settings: ServeSettings = request.app.state.settings
    slot: ModelSlot = request.app.state.slot
    engine: Engine = request.app.state.engine
    notes: Notes = request.state.notes
    model = slot.current
    if model is None:
        raise ProblemError(503, slot.refusal or "no model yet: the service waits for its file", retry_after=5)
    predictor = model.predictor
    if query.threshold is not None and not predictor.binary:
        raise ProblemError(422, f"threshold: is for binary models; this one has {predictor.n_classes} classes")

    async with engine.admit():
        upload = await read_upload(request, settings.max_bytes)
        clock = Clock()
        notes.model_id, notes.stages = model.id, clock.laps
        steps = _steps(upload, predictor, query, settings, clock, notes)
        del upload  # the steps let go of it as soon as they have the image
        body, media_type = await unless_hung_up(request, _segment(engine, steps))
    return Response(body, media_type=media_type, headers={"X-Model-Id": model.id, "Server-Timing": str(clock)})


class LoadShedding:
    """Middleware. 503 for an image that there is no place for, before the request is parsed: refusing takes the same
    cores as computing, and happens most when they are wanted most."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["method"], scope["path"]) == ("POST", PATH):
            try:
                scope["app"].state.engine.check_places()
            except ProblemError as error:
                await response(error.status, error.detail, error.headers)(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def _segment(engine: Engine, steps: Steps[R]) -> R:
    """What goes wrong on the way, as a problem."""
    try:
        return await engine.work(steps)
    except ImageTooLargeError as error:
        raise ProblemError(413, str(error)) from error
    except (ImageError, PixelError) as error:
        raise ProblemError(400, str(error)) from error
    except InferenceError as error:
        raise ProblemError(503, "the model failed on this image", retry_after=5) from error


def _steps(
    upload: Upload, predictor: Predictor, query: SegmentQuery, settings: ServeSettings, clock: "Clock", notes: Notes
) -> Steps[tuple[bytes, str]]:
    """For `Engine.work`: from a request's body to its answer's, with the media type. Raises ProblemError, ImageError or
    PixelError."""
    clock.lap("queue")
    data = upload.image(settings.max_parts)
    del upload
    n_pixels = count_pixels(data, max_pixels=settings.max_pixels, max_pages=settings.max_pages)
    clock.lap("decode")
    yield n_pixels * (predictor.n_classes if query.tta else 1)  # the mean over views is kept of every class
    clock.lap("queue")
    predictions = [
        predictor.start(page, query.output, threshold=query.threshold, tta=query.tta) for page in decode(data)
    ]
    del data  # not while they wait for their turn
    clock.lap("decode")
    masks, infer_s = [], 0.0
    for prediction in predictions:
        mask, seconds = yield prediction
        masks.append(mask)
        infer_s += seconds
    clock.lap("queue", infer=infer_s)
    if len(masks) == 1:
        answer = encode_png(masks[0], flat=query.output == "mask"), "image/png"
    else:
        answer = encode_tiff(masks), "image/tiff"
    clock.lap("encode")
    notes.pixels = sum(mask.size for mask in masks)
    return answer


async def unless_hung_up(request: Request, work: Coroutine[Any, Any, R]) -> R:
    """The work's result; its body having been read, the work is given up as soon as the client is gone."""

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, hanging_up = asyncio.create_task(work), asyncio.create_task(hang_up())
    try:
        await asyncio.wait((working, hanging_up), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ProblemError(HUNG_UP, "the client hung up")
    finally:
        working.cancel()
        hanging_up.cancel()


class Clock:
    """Laps for the `Server-Timing` header (W3C), in milliseconds."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str, **parts: float) -> None:
        """The time since the last lap, less its `parts`, which get names of their own. Laps of one name add up."""
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self.last - sum(parts.values())
        self.laps |= parts
        self.last = now

    def __str__(self) -> str:
        return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in self.laps.items())
