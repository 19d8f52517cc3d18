"""`unet-serve`, or `python -m service`."""

import os
import signal
import socket
import sys


def run() -> int:
    """The program. A signal ends it quietly also while it is being imported."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # no exception, which an import may catch; process 1 of a container has no default action
        signal.signal(number, lambda *_: os._exit(0))
    return main()


def main(argv: list[str] | None = None) -> int:
    from service.settings import ServeSettings
    from unet.device import describe_choice, resolve_device, resolve_precision
    from unet.errors import UserError
    from unet.settings import fail, parse

    settings = parse(ServeSettings, argv)
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)  # read on import; several workers get a folder of their own
    try:
        from service.server import BACKLOG, serve
    except ModuleNotFoundError as error:
        fail("unet-serve", f"{error.name} is not installed; expected the extra: pip install '.[serve]', in the clone")
    try:
        device = resolve_device(settings.device)
        resolve_precision(settings.precision, device)
    except UserError as error:
        fail("unet-serve", str(error))
    try:
        listener = _listen(settings.host, settings.port, BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", None) or "not a name").partition(" (")[0].lower()
        place = f"{settings.host}:{settings.port}"
        fail("unet-serve", f"cannot listen on {place}: {reason}; expected an address of this machine and a free port")
    print(f"device    {describe_choice(settings.device, device)}", file=sys.stderr)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"listening on http://{host}:{listener.getsockname()[1]}{settings.root_path}", file=sys.stderr, flush=True)
    return serve(settings, listener)


def _listen(host: str, port: int, backlog: int) -> socket.socket:
    """A listening socket, bound before anything is loaded, so that a taken port is a clear error."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.create_server(address[:2], family=family, backlog=backlog)
    # inherited by connections; without it the body of an answer waits 40 ms for the client to acknowledge its head
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


if __name__ == "__main__":
    sys.exit(run())
