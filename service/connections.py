"""What a connection may do before and after its requests: uvicorn limits neither."""

import asyncio
import logging
import re
import socket
import uuid
from collections.abc import Callable
from typing import NamedTuple

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service import problems

log = logging.getLogger(__name__)

LINGER_S = 2.0
"""What a client goes on sending after its answer is thrown away for so long: it may not read before it has sent."""

READ_SIZE = 2**16
"""Bytes that are taken from a connection at once. asyncio's 256 KiB of each take much memory when many come together,
and make the last of them wait."""

DRAIN_SIZE = 2**20
"""The same of what is thrown away: what is left of a refused upload."""

PARSE_SIZE = 2**12
"""Bytes that are parsed at once, but for a body's. A request may have 20 of them, and takes 2 KiB while it waits."""

SEND_BUFFER = 2**18
"""Bytes. The kernel's own may be megabytes, and its reader would seem to take nothing for as long as they last."""

HEADERS = {"Connection": "close", "X-Content-Type-Options": "nosniff"}
"""Of an answer that no middleware sees."""


_HOST = re.compile(rb"[\w.~!$&'()*+,;=%:\[\]-]*")  # RFC 3986, section 3.2.2, and a port; empty for a target without one


class RequestError(ValueError):
    """What the parser lets pass and a server must not (RFC 9112, sections 3.2 and 3.2.3)."""


class _Unhurried:
    """A transport, as far as an answer needs it, that somebody else closes."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


class Limits(NamedTuple):
    idle_s: float
    max_connections: int
    max_header_bytes: int
    on_refused: Callable[[int | None], object]
    """Told the status of an answer that the application knows nothing of; None for a connection without one."""


class Limited(HttpToolsProtocol):
    """A protocol for `uvicorn.Config(http=...)` that ends a connection

    - at once, when there are `max_connections` already: each takes a file descriptor;
    - when the headers of a request are not complete within `idle_s` (looked at every `idle_s`, so up to twice that,
      except for the first request);
    - with 431, when there are more than `max_header_bytes` of them, or of what comes between two pieces of a body;
    - when the client takes nothing of its answer for as long as `idle_s`;
    - when it still sends its request `LINGER_S` after the answer.

    Pipelined requests are not parsed until the one before them is answered, but for a few, of `PARSE_SIZE` bytes.
    """

    limits: Limits

    _in_body = False
    """Between the headers of a request and its end."""
    _in_between = 0
    """Bytes since the last headers, the last piece of a body or its end. The parser may keep them all."""
    _unparsed = b""
    _body_left = 0
    """Bytes, as far as its headers have said."""
    _close_after_body = False
    """Its request has been answered, with the last answer of this connection."""
    _looks: asyncio.TimerHandle | None = None
    _quiet_until = 0.0
    """For all connections, on the loop's clock: one warning a second is enough."""
    _seen: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow.resume_reading = self._resume_reading  # type: ignore[method-assign]
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        transport.max_size = READ_SIZE  # type: ignore[attr-defined]  # of asyncio's own transport
        if len(self.connections) <= self.limits.max_connections:
            self._look()
            return
        transport.abort()
        self.limits.on_refused(None)
        if self.loop.time() > Limited._quiet_until:
            Limited._quiet_until = self.loop.time() + 1
            log.warning("%d connections are open, as many as may be: more are closed", self.limits.max_connections)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.cycle:
            self.cycle.transport = self.transport  # or it would know this connection, which knows it
        if self._looks:
            self._looks.cancel()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._unparsed += data
        self._go_on()

    def _go_on(self) -> None:
        """Parses what has come, up to a request that has to wait for the one before."""
        while self._unparsed and not self.pipeline and not self.transport.is_closing():
            size = max(PARSE_SIZE, self._body_left)
            piece, self._unparsed = self._unparsed[:size], self._unparsed[size:]
            self._in_between += len(piece)
            self._unparsed = self._parse(piece) + self._unparsed
            if self._in_between > self.limits.max_header_bytes and not self.transport.is_closing():
                self._refuse(431, f"expected at most {self.limits.max_header_bytes} bytes of headers, found more")
        if self.transport.is_closing():
            self._unparsed = b""

    def _resume_reading(self) -> None:
        """Replaces uvicorn's, which resumes reading after every pipelined answer, and so buffers without limit."""
        if self.pipeline:
            return
        if self._unparsed:
            self.loop.call_soon(self._parse_rest)
        else:
            FlowControl.resume_reading(self.flow)

    def _parse_rest(self) -> None:
        self._unset_keepalive_if_required()
        self._go_on()
        if len(self.cycle.body) <= HIGH_WATER_LIMIT:
            self._resume_reading()

    def _parse(self, data: bytes) -> bytes:
        """What is to be parsed after it."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            return self._declined(data[offer.args[0] :])
        except httptools.HttpParserError as error:
            found = str(error.__context__ or error)
            status = 501 if "invalid `Transfer-Encoding`" in found else 400  # RFC 9112, section 6.1
            self._refuse(status, f"expected an HTTP/1.1 request, found: {found}")
        return b""

    def _declined(self, rest: bytes) -> bytes:
        """The parser stops at an offer to speak another protocol (`Upgrade`). A new one is fed the request again,
        without the offer, and then the rest."""
        headers = b"".join(b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade")
        line = self.parser.get_method(), self.url, self.parser.get_http_version().encode()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return b"%b %b HTTP/%b\r\n" % line + headers + b"\r\n" + rest

    def on_headers_complete(self) -> None:
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise RequestError(f"{len(hosts)} Host headers")
        if hosts and not _HOST.fullmatch(hosts[0]):
            raise RequestError("a Host header that names no host")
        if self.parser.get_method() == b"CONNECT":
            raise RequestError("CONNECT, which is for proxies")
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            raise RequestError("an invalid `Transfer-Encoding`: nothing but chunked is understood")
        if not self.url.startswith(b"/") and httptools.parse_url(self.url).path is None:
            raise RequestError("a target without a path")
        self._in_between = 0
        if not self.parser.should_upgrade():
            self._in_body = True
            lengths = [int(value) for name, value in self.headers if name == b"content-length"]
            self._body_left = sum(lengths)  # one, or none: the parser has seen to it
            super().on_headers_complete()
            self.cycle.transport = _Unhurried(self.transport, self._close)  # type: ignore[assignment]
            self.headers = []  # what may follow the body is not the application's

    def on_body(self, body: bytes) -> None:
        self._in_between = 0
        self._body_left = max(0, self._body_left - len(body))
        if self.cycle.response_complete:
            self._drain()
        super().on_body(body)

    def _drain(self) -> None:
        """No more than the body, where its length is known: what comes after it is not thrown away."""
        self.transport.max_size = max(READ_SIZE, min(DRAIN_SIZE, self._body_left))  # type: ignore[attr-defined]

    def on_message_complete(self) -> None:
        self._in_between = 0
        self.transport.max_size = READ_SIZE  # type: ignore[attr-defined]
        if self._in_body:
            self._in_body = False
            super().on_message_complete()
            if self._close_after_body:
                self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.cycle.response_complete:  # it is the next one in the pipeline
            return
        self.cycle.body = bytearray()  # nobody reads it any more, and the connection may stay
        if self._in_body:
            self._drain()
            self.loop.call_later(LINGER_S, self._end, self.cycle)

    def _close(self) -> None:
        """A client that still sends would be told of a reset connection, and lose its answer (RFC 9112, section
        9.6)."""
        self._close_after_body = self._in_body and self.cycle.response_complete
        if not self._close_after_body:
            self.transport.close()

    def _end(self, answered: object) -> None:
        """Unless the body of the request that was answered has come to its end."""
        if self.cycle is answered and self._in_body:
            self.transport.abort()

    def _refuse(self, status: int, detail: str) -> None:
        """What is no HTTP never gets to the application; its answer is a problem all the same."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and (self.pipeline or self.cycle.response_started or not self._in_body):
            self.transport.abort()  # the client would take it for another request's answer, or the rest of it
            return
        request_id = uuid.uuid4().hex
        if answering:  # the application's telemetry says so
            request_id = self.scope["state"].setdefault("request_id", request_id)
            self.scope["state"]["refused"] = status
        else:
            fields = {"client": self.client[0] if self.client else "", "status": status}
            log.info("no request: %d, %s", status, detail, extra={"request_id": request_id, "fields": fields})
            self.limits.on_refused(status)
        answer = problems.response(status, detail, HEADERS | {"X-Request-Id": request_id})
        headers = self.server_state.default_headers + answer.raw_headers  # the first: Date
        head = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"".join([STATUS_LINE[status], head, b"\r\n", answer.body]))
        self.transport.close()

    def _look(self) -> None:
        """Whether anything has changed since the last look, when something should."""
        unsent = self.transport.get_write_buffer_size()
        idle = not self._in_body and (self.cycle is None or self.cycle.response_complete)
        # the request before the one that is waited for tells it from others
        awaited = ("headers", self.cycle) if idle else None
        seen = ("answer", unsent) if unsent else awaited
        if seen and seen == self._seen:
            self.transport.abort()
        else:
            self._seen = seen
            self._looks = self.loop.call_later(self.limits.idle_s, self._look)


def limited(limits: Limits) -> type[HttpToolsProtocol]:
    """`Limited` with these limits, for `uvicorn.Config(http=...)`, which wants a class."""
    return type("Limited", (Limited,), {"limits": limits})
