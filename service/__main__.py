"""`unet-serve`, or `python -m service`."""

import os
import signal
import socket
import sys
import tempfile


def run() -> int:
    """The program: `main`, in a process that may have to be started again for it."""
    for stop in (signal.SIGTERM, signal.SIGINT):  # from here on: to process 1 of a container nothing happens by itself
        # no exception: one that is raised in the middle of an import may be caught there, and the service would start
        signal.signal(stop, lambda *_: os._exit(0))
    from service import malloc

    malloc.restart()
    return main()


def main(argv: list[str] | None = None) -> int:
    from service import logs
    from service.settings import ServeSettings
    from unet.device import DeviceError, device_name, resolve_device, resolve_precision
    from unet.settings import parse

    settings = parse(ServeSettings, argv)
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)  # `workers` has one of its own; read when it is imported
    try:
        from service.server import BACKLOG, serve
        from service.workers import supervise
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed; expected the extra: pip install '.[serve]', in the clone")
    try:
        if settings.workers > 1:
            tempfile.gettempdir()  # where they count
    except FileNotFoundError:
        return _fail("--workers: no folder for temporary files; expected one that can be written, such as TMPDIR names")
    try:
        device = resolve_device(settings.device)
        resolve_precision(settings.precision, device)
        listener = _listen(settings.host, settings.port, BACKLOG)
    except DeviceError as error:
        return _fail(str(error))
    except (OSError, UnicodeError) as error:  # a name that is none has no reason of the system's
        reason = str(getattr(error, "strerror", "not a name")).partition(" (")[0].lower()
        place = f"{settings.host}:{settings.port}"
        return _fail(f"cannot listen on {place}: {reason}; expected an address of this machine and a free port")
    fallback = " (no CUDA GPU can be used here)" if settings.device == "auto" and device.type == "cpu" else ""
    print(f"device    {device_name(device)}{fallback}", file=sys.stderr)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"listening on http://{host}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    logs.configure(settings.log_format)
    return supervise(settings, listener) if settings.workers > 1 else serve(settings, listener)


def _listen(host: str, port: int, backlog: int) -> socket.socket:
    """Bound here, before anything is loaded, so that a taken port is a clear error."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.create_server(address[:2], family=family, backlog=backlog)
    # asyncio does so only for sockets that it has made itself: without it an answer's body waits 40 ms for the client
    # to acknowledge its head
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _fail(message: str) -> int:
    print(f"unet-serve: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(run())
