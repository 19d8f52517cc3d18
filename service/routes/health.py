"""GET /health and /health/live: for people, load balancers and container engines."""

import os
import time
from datetime import datetime
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

import unet
from service.models import ModelSlot, Status
from unet.device import Precision, device_name, resolve_precision

router = APIRouter()
live_router = APIRouter()  # on its own, as it never needs a key


class ClassInfo(BaseModel):
    value: int = Field(description="in the labels; in the mask, too, unless the model is binary: then 0 and 255")
    name: str
    colour: tuple[int, ...] = Field(description="red, green and blue, 0..255")


class ModelInfo(BaseModel):
    id: str = Field(description="the first 12 digits of the file's SHA-256")
    path: str = Field(description="the file, as `--model` names it")
    loaded_at: datetime
    epoch: int | None = Field(description="the epoch it was saved after; null for a bare state_dict")
    score: float | None = Field(description="mean Dice of the classes on the validation images, 0..1; null likewise")
    trained_at: str | None = Field(description="when it was saved in training, ISO 8601; null likewise")
    n_images: int | None = Field(description="annotated images that it was trained and validated on; null likewise")
    threshold: float = Field(description="foreground is above it, unless a request says otherwise; binary models only")
    binary: bool = Field(description="whether it has a single foreground, so that a threshold makes sense")
    n_channels: int = Field(description="1: images are made grey; 3: RGB")
    channel: int | None = Field(description="the only one that is taken of images with several, from 1; null: all")
    smallest_object: int = Field(description="pixels; smaller ones are left out of tables, labels and outlines")
    classes: list[ClassInfo] = Field(description="background and foreground, or each class")
    objects: bool = Field(
        description="whether the model has learned borders, by which objects that touch are told apart"
    )


class Health(BaseModel):
    status: Status | Literal["stopping"] = Field(
        description="ok; waiting: no model file yet; failed: it cannot be used; stopping: finishing what is in flight"
    )
    device: str
    device_name: str
    precision: Precision
    model: ModelInfo | None
    refused: str | None = Field(description="why the newest model file is not served; null when it is")
    failure: str | None = Field(description="the last inference error and when it happened; null after a success")
    version: str
    uptime_s: float


@router.head("/health", include_in_schema=False)
@router.get("/health", responses={503: {"model": Health, "description": "no model is loaded, or stopping"}})
async def health(request: Request, response: Response) -> Health:
    """200 when a model is loaded and the service is not stopping, else 503."""
    state = request.app.state
    slot: ModelSlot = state.slot
    model = slot.current
    if model is None or state.admission.stopping:
        response.status_code = 503
        response.headers["Retry-After"] = "5"
    info = None
    if model:
        predictor = model.predictor
        classes = zip(predictor.class_values, predictor.class_names, predictor.class_colours, strict=True)
        info = ModelInfo(
            id=model.id,
            path=os.fsencode(slot.path).decode(errors="replace"),  # a file name may be any bytes
            loaded_at=model.loaded_at,
            epoch=model.training.get("epoch"),
            score=model.training.get("score"),
            trained_at=model.training.get("time"),
            n_images=model.n_images,
            threshold=predictor.threshold,
            binary=predictor.binary,
            n_channels=predictor.n_channels,
            channel=predictor.preprocessing.channel,
            smallest_object=predictor.min_area,
            classes=[ClassInfo(value=value, name=name, colour=colour) for value, name, colour in classes],
            objects=predictor.objects,
        )
    return Health(
        status="stopping" if state.admission.stopping else slot.status,
        device=str(state.device),
        device_name=device_name(state.device),
        precision=resolve_precision(slot.precision, state.device),
        model=info,
        refused=slot.refusal,
        failure=state.queue.failure,
        version=unet.__version__,
        uptime_s=round(time.monotonic() - state.started, 3),
    )


@live_router.head("/health/live", include_in_schema=False)
@live_router.get("/health/live")
async def live() -> dict[str, str]:
    """200 while the process runs."""
    return {"status": "ok"}
