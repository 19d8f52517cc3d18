"""`unet-serve`, or `python -m service`."""

import gc
import signal
import socket
import sys

from service import logs
from service.settings import ServeSettings
from unet.device import DeviceError, device_name, resolve_device
from unet.settings import parse


def main(argv: list[str] | None = None) -> int:
    settings = parse(ServeSettings, argv)
    try:
        import uvicorn

        from service.app import create_app
        from service.connections import limited
        from service.server import Server
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
    logs.configure(settings.log_format)
    for stop in (signal.SIGTERM, signal.SIGINT):  # until the server has handlers of its own, and when it is done
        signal.signal(stop, lambda *_: sys.exit(0))
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        http=limited(settings.idle_s, settings.max_connections),
        ws="none",
        loop="asyncio",  # uvloop, where it is installed, is no faster here, and cannot be told how much to read at once
        h11_max_incomplete_event_size=settings.max_header_bytes,
        server_header=False,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = Server(config, app, settings.grace_s)
    gc.freeze()  # what is imported stays; to look through it, again and again, holds up everybody for 80 ms
    server.run(sockets=[listener])
    return 1 if server.lost else 0


def _listen(host: str, port: int) -> socket.socket:
    """Bound here, before anything is loaded, so that a taken port is a clear error."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.create_server(address[:2], family=family, backlog=2048)
    # asyncio does so only for sockets that it has made itself: without it an answer's body waits 40 ms for the client
    # to acknowledge its head
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _fail(message: str) -> int:
    print(f"unet-serve: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
