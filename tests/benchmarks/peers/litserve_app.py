"""LitServe:  python litserve_app.py MODEL PORT"""

import sys

import litserve
from fastapi import Request, Response
from segmenter import WORKERS, Segmenter


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.segmenter = Segmenter(sys.argv[1])

    def decode_request(self, request: Request) -> bytes:
        return request["file"].file.read()  # LitServe has read the form

    def predict(self, upload: bytes) -> bytes:
        return self.segmenter(upload)

    def encode_response(self, mask: bytes) -> Response:
        return Response(mask, media_type="image/png")


if __name__ == "__main__":
    server = litserve.LitServer(Api(api_path="/segment"), accelerator="cpu", workers_per_device=WORKERS, timeout=False)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
