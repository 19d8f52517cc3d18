"""BentoML:  MODEL=... bentoml serve bentoml_app:Unet --port PORT"""

import os

import bentoml
from segmenter import WORKERS, Segmenter
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class _Worker:
    """What the worker's route finds its model in. A route of its own, for a body as it is."""

    segmenter: Segmenter


async def segment(request: Request) -> Response:
    mask = await run_in_threadpool(_Worker.segmenter, await request.body())
    return Response(mask, media_type="image/png")


@bentoml.asgi_app(Starlette(routes=[Route("/segment", segment, methods=["POST"])]), path="/")
@bentoml.service(workers=WORKERS, traffic={"timeout": 600})
class Unet:
    def __init__(self) -> None:
        _Worker.segmenter = Segmenter(os.environ["MODEL"])

    @bentoml.api
    def unused(self) -> str:
        return ""
