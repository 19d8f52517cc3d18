"""The application: settings in, FastAPI app out."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

import unet
from service import health, problems, segment
from service.engine import Engine
from service.middleware import RequestId, RequestLimits
from service.models import ModelSlot
from service.settings import ServeSettings
from unet.device import resolve_device


def create_app(settings: ServeSettings) -> FastAPI:
    """Everything that lives as long as the app is made in its lifespan and kept in `app.state`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.started = time.monotonic()
        app.state.settings = settings
        engine = app.state.engine = Engine(settings.max_in_flight, settings.timeout_s, resolve_device(settings.device))
        app.state.slot = ModelSlot(
            settings.model,
            settings.device,
            settings.precision,
            settings.input_range,
            warm_up=lambda prediction: engine.submit(prediction).result(),
        )
        await asyncio.to_thread(app.state.slot.refresh)  # a model that is there serves the first request
        watcher = asyncio.create_task(app.state.slot.watch(settings.watch_s))
        yield
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
        engine.close()

    app = FastAPI(
        title="unet-service",
        version=unet.__version__,
        description="Segments images with a trained U-Net.",
        lifespan=lifespan,
    )
    problems.install(app)
    app.add_middleware(
        RequestLimits, max_bytes=settings.max_bytes, max_header_bytes=settings.max_header_bytes, idle_s=settings.idle_s
    )
    app.add_middleware(RequestId)
    app.include_router(segment.router)
    app.include_router(health.router)
    return app
