"""Ray Serve:  python ray_app.py MODEL PORT"""

import signal
import sys

import ray
from ray import serve
from segmenter import WORKERS, Segmenter
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=2, ray_actor_options={"num_cpus": 1})
class Unet:
    def __init__(self, model: str) -> None:
        self.segmenter = Segmenter(model)

    async def __call__(self, request: Request) -> Response:
        return Response(self.segmenter(await request.body()), media_type="image/png")


if __name__ == "__main__":
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(Unet.bind(sys.argv[1]), route_prefix="/segment")
    signal.pause()
