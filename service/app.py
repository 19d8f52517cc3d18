"""The application: settings in, FastAPI app out."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from operator import attrgetter

from fastapi import FastAPI
from starlette.datastructures import State

import unet
from service import access, problems
from service.admission import Admission, PixelBudget
from service.middleware import Check, Compression, RequestLimits, take_off_prefix
from service.models import ModelSlot
from service.queue import Queue, usable_cores
from service.routes import health, metrics, page, preview, segment, training
from service.settings import ServeSettings
from service.telemetry import Metrics, Telemetry
from unet.device import resolve_device
from unet.imaging import Limits

# pixels of large images in memory at a time, for each thread that decodes; an image of 4096 x 4096, in colour or with
# `tta`, takes up to half a GiB; a larger one is alone, and takes up to 4 GiB with the pixels of `max_pixels`
PIXELS_PER_CODEC = 2**24
DESCRIPTION = """Segments images with a trained U-Net. An example, from the generated data set:

| image | `output=mask` | `output=overlay` |
|---|---|---|
| ![cells](static/example.png) | ![mask](static/example-mask.png) | ![overlay](static/example-overlay.png) |

Save the first picture ([example.png](static/example.png)) to try it out."""
TAGS = [
    {"name": "images", "description": "An image in; its mask, a table of its objects or another picture of it out."},
    {"name": "service", "description": "State of the service, of its model and of its training."},
]


def create_app(settings: ServeSettings, on_start: Callable[[State], object] = lambda state: None) -> FastAPI:
    """The app. What lives as long as it does is made in its lifespan and kept in `app.state`, for `on_start`, too."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state = app.state
        state.started = time.monotonic()
        device = state.device = resolve_device(settings.device)
        n_codecs = 2 if device.type == "cpu" else max(2, usable_cores() // 2 // settings.workers)
        state.codecs = ThreadPoolExecutor(n_codecs, "codec")
        state.budget = PixelBudget(n_codecs * PIXELS_PER_CODEC, max_waiting=max(1, settings.max_in_flight // 2))
        state.queue = Queue(device, settings.workers)
        state.queue.on_batch = counts.batch_size.observe
        state.slot = ModelSlot(
            settings.model,
            settings.device,
            settings.precision,
            settings.input_range,
            warm_up=lambda prediction: state.queue.submit(prediction).result(),
            on_outcome=lambda outcome: counts.reloads.labels(outcome).inc(),
        )
        await asyncio.to_thread(state.slot.refresh)  # a model that is there serves the first request
        on_start(state)
        watcher = asyncio.create_task(state.slot.watch(settings.watch_s))
        yield
        watcher.cancel()
        state.queue.close()
        state.codecs.shutdown(cancel_futures=True)

    app = FastAPI(
        title="unet-service",
        version=unet.__version__,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        generate_unique_id_function=attrgetter("name"),  # of generated clients, too
        lifespan=lifespan,
        docs_url=None,  # FastAPI's loads scripts from other hosts; ours is in routes/page.py
        redoc_url=None,  # one page of documentation is enough
        redirect_slashes=False,  # curl would save the redirection as the mask
        root_path_in_servers=False,  # it is what a client says it is
        servers=[{"url": "./"}],  # beside /openapi.json, whatever the prefix
        responses=problems.declare(413, 431, 500),
        exception_handlers=dict.fromkeys(problems.HANDLED, problems.answer),
    )
    app.state.settings = settings
    app.state.limits = Limits(settings.max_bytes, settings.max_pixels, settings.max_pages)
    counts = app.state.metrics = Metrics(app.state)
    app.state.admission = Admission(settings.max_in_flight, settings.timeout_s, counts.in_flight.set)
    uploads = {segment.PATH, preview.PATH}
    app.add_middleware(Compression, left=uploads | page.LARGE)
    app.add_middleware(RequestLimits, paths=uploads, settings=settings)  # behind the keys
    access.install(app, settings)
    needs_key = access.NEEDS_KEY if settings.api_keys else {}
    for router in (segment.router, preview.router):
        app.include_router(router, tags=["images"], **needs_key)
    for router in (health.router, metrics.router, training.router):
        app.include_router(router, tags=["service"], **(needs_key if settings.keys_everywhere else {}))
    app.include_router(health.live_router, tags=["service"])
    app.include_router(page.router)
    app.add_middleware(Check, check=take_off_prefix)
    app.add_middleware(Telemetry)
    # cached, as the first request should not wait for it
    app.openapi()["components"]["schemas"]["Problem"] = problems.Problem.model_json_schema()
    return app
