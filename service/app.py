"""The application: settings in, FastAPI app out."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

import unet
from service import access, health, metrics, problems, segment
from service.engine import Engine
from service.metrics import Metrics
from service.middleware import RequestId, RequestLimits
from service.models import ModelSlot
from service.settings import ServeSettings
from service.telemetry import Telemetry
from unet.device import resolve_device


def create_app(settings: ServeSettings) -> FastAPI:
    """Everything that lives as long as the app is made in its lifespan and kept in `app.state`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.started = time.monotonic()
        app.state.settings = settings
        device = resolve_device(settings.device)
        counts = app.state.metrics = Metrics()
        engine = app.state.engine = Engine(
            settings.max_in_flight,
            settings.timeout_s,
            device,
            on_batch=counts.batch_size.observe,
            workers=settings.workers,
        )
        app.state.slot = ModelSlot(
            settings.model,
            settings.device,
            settings.precision,
            settings.input_range,
            warm_up=lambda prediction: engine.submit(prediction).result(),
            on_outcome=lambda outcome: counts.reloads.labels(outcome).inc(),
        )
        counts.watch(engine, app.state.slot, device)
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
        redoc_url=None,  # one page of documentation is enough
        redirect_slashes=False,  # curl would save the redirection as the mask
        responses=problems.declare(413, 431),
    )
    app.add_middleware(segment.LoadShedding)  # the innermost: behind limits and keys
    problems.install(app)
    app.add_middleware(
        RequestLimits, max_bytes=settings.max_bytes, max_header_bytes=settings.max_header_bytes, idle_s=settings.idle_s
    )
    access.install(app, settings)
    needs_key = access.declared(settings)
    app.include_router(segment.router, **needs_key)
    for router in (health.router, metrics.router):
        app.include_router(router, **(needs_key if settings.keys_everywhere else {}))
    app.include_router(health.live_router)
    app.add_middleware(Telemetry, routes=frozenset(app.openapi()["paths"]))
    app.add_middleware(RequestId)
    return app
