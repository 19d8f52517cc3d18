"""`unet-serve`, or `python -m service`."""

import logging
import signal
import socket
import sys

from service.settings import ServeSettings
from unet.device import DeviceError, device_name, resolve_device
from unet.settings import parse


def main(argv: list[str] | None = None) -> int:
    settings = parse(ServeSettings, argv)
    try:
        import uvicorn

        from service.app import create_app
        from service.connections import limited
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed; expected the extra: pip install 'unet-service[serve]'")
    try:
        device = resolve_device(settings.device)
        listener = _listen(settings.host, settings.port)
    except DeviceError as error:
        return _fail(str(error))
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0].lower()
        return _fail(f"cannot listen on {settings.host}:{settings.port}: {reason}; expected a free port")
    fallback = " (no CUDA GPU can be used here)" if settings.device == "auto" and device.type == "cpu" else ""
    print(f"device    {device_name(device)}{fallback}", file=sys.stderr)
    print(f"listening on http://{settings.host}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    # container engines ask every few seconds
    logging.getLogger("uvicorn.access").addFilter(lambda record: '"GET /health' not in record.getMessage())
    for stop in (signal.SIGTERM, signal.SIGINT):  # uvicorn finishes what is in flight, then raises the signal again
        signal.signal(stop, lambda *_: sys.exit(0))
    config = uvicorn.Config(
        create_app(settings),
        http=limited(settings.idle_s, settings.max_connections),
        ws="none",
        h11_max_incomplete_event_size=settings.max_header_bytes,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """Bound here, before anything is loaded, so that a taken port is a clear error."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=2048)


def _fail(message: str) -> int:
    print(f"unet-serve: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
