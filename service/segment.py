"""POST /segment: an image in, its mask out."""

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.engine import Engine, InferenceError
from service.models import ModelSlot
from service.problems import ProblemError, declare
from service.settings import ServeSettings
from service.upload import OPENAPI, read_upload
from unet.images import ImageError, ImageTooLargeError, decode, encode_png, encode_tiff
from unet.pixels import PixelError

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
    "/segment",
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
                    "description": "milliseconds of decode, queue, infer, encode",
                    "schema": {"type": "string"},
                },
            },
        },
        **declare(400, 408, 413, 415, 422, 431, 503, 504),
    },
    openapi_extra=OPENAPI,
)
async def segment(request: Request, query: Annotated[SegmentQuery, Query()]) -> Response:
    """The mask of an image: PNG, JPEG, TIFF (of several pages, too), BMP or WebP, sent as the multipart field `file` or
    as the body itself."""
    settings: ServeSettings = request.app.state.settings
    slot: ModelSlot = request.app.state.slot
    engine: Engine = request.app.state.engine
    model = slot.current
    if model is None:
        raise ProblemError(503, slot.refusal or "no model yet: it is still being trained", retry_after=5)
    predictor = model.predictor
    if query.threshold is not None and not predictor.binary:
        raise ProblemError(422, f"threshold: is for binary models; this one has {predictor.n_classes} classes")

    async with engine.admit():
        data = await read_upload(request, settings.max_parts)
        clock = Clock()
        try:
            pages = await engine.codec(decode, data, max_pixels=settings.max_pixels, max_pages=settings.max_pages)
            clock.lap("decode")
            masks, infer_s = [], 0.0
            for page in pages:
                prediction = await engine.codec(
                    predictor.start, page, query.output, threshold=query.threshold, tta=query.tta
                )
                mask, seconds = await engine.infer(prediction)
                masks.append(mask)
                infer_s += seconds
            clock.lap("queue", infer=infer_s)
        except ImageTooLargeError as error:
            raise ProblemError(413, str(error)) from error
        except (ImageError, PixelError) as error:
            raise ProblemError(400, str(error)) from error
        except InferenceError as error:
            raise ProblemError(503, "the model failed on this image", retry_after=5) from error
        if len(masks) == 1:
            body = await engine.codec(encode_png, masks[0], flat=query.output == "mask")
        else:
            body = await engine.codec(encode_tiff, masks)
        clock.lap("encode")
    return Response(
        body,
        media_type="image/png" if len(masks) == 1 else "image/tiff",
        headers={"X-Model-Id": model.id, "Server-Timing": str(clock)},
    )


class Clock:
    """Laps for the `Server-Timing` header (W3C), in milliseconds."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str, **parts: float) -> None:
        """The time since the last lap, less its `parts`, which get names of their own."""
        now = time.perf_counter()
        self.laps[name] = now - self.last - sum(parts.values())
        self.laps |= parts
        self.last = now

    def __str__(self) -> str:
        return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in self.laps.items())
