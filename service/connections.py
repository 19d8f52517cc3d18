"""What a connection may do before and after its requests: uvicorn limits neither."""

import asyncio
import socket
import sys

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service import problems

LINGER_S = 2.0
"""What a client goes on sending after its answer is thrown away for so long: it may not read before it has sent."""

READ_SIZE = 2**16
"""Bytes that are taken from a connection at once. asyncio's 256 KiB of each take much memory when many come together,
and make the last of them wait."""

SEND_BUFFER = 2**18
"""Bytes. The kernel's own may be megabytes, and its reader would seem to take nothing for as long as they last."""

HEADERS = {"Connection": "close", "X-Content-Type-Options": "nosniff"}
"""Of an answer that no middleware sees."""


def limited(idle_s: float, max_connections: int) -> type[H11Protocol]:
    """A protocol for `uvicorn.Config(http=...)` that ends a connection

    - at once, when there are `max_connections` already: each takes a file descriptor;
    - when the headers of a request are not complete after `idle_s` to twice of it, the first request's after `idle_s`;
    - when the client takes nothing of its answer for as long;
    - when it still sends its request `LINGER_S` after the answer.
    """

    class Limited(H11Protocol):
        _looks: asyncio.TimerHandle | None = None
        _seen: object = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            transport.max_size = READ_SIZE  # type: ignore[attr-defined]  # of asyncio's own transport
            if len(self.connections) > max_connections:
                transport.abort()
            else:
                self._look()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._looks:
                self._looks.cancel()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.SEND_BODY:
                self.loop.call_later(LINGER_S, self._end, self.cycle)

        def _end(self, answered: object) -> None:
            """Unless the body of the request that was answered has come to its end."""
            if self.cycle is answered and self.conn.their_state is h11.SEND_BODY:
                self.transport.abort()

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP never gets to the application; its answer is a problem all the same. 431 for headers
            without end, 501 for an unknown transfer encoding."""
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # in the middle of an answer
                self.transport.abort()
                return
            error = sys.exception()  # this is called where it is caught
            status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
            answer = problems.response(status, f"expected an HTTP/1.1 request, found: {error or msg}", HEADERS)
            for event in (
                h11.Response(status_code=status, headers=answer.raw_headers),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _look(self) -> None:
            """Whether anything has changed since the last look, when something should."""
            unsent = self.transport.get_write_buffer_size()
            # the request before the one that is waited for tells it from others
            awaited = ("headers", self.cycle) if self.conn.their_state is h11.IDLE else None
            seen = ("answer", unsent) if unsent else awaited
            if seen and seen == self._seen:
                self.transport.abort()
            else:
                self._seen = seen
                self._looks = self.loop.call_later(idle_s, self._look)

    return Limited
