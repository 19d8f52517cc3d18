"""A service: one request for each kind of answer of each image."""

import itertools
import random
import time
from collections.abc import Sequence
from typing import Any

import httpx

from batch.engine import Answers, FileError, Stop
from batch.progress import say
from batch.settings import SegmentSettings
from unet.errors import UserError
from unet.outputs import Answer

CONCURRENCY = 8
MAX_BYTES = 2**32  # the largest upload that a service may allow
TIMEOUT = httpx.Timeout(60, connect=10, read=600)  # seconds; a service gives up after --timeout-s, usually 300
BUSY = (408, 429, 502, 503)  # of the service, or of a proxy before it: ask again
LONGEST_PAUSE_S = 5.0  # between two tries to reach a service that is not there
TRIES = 5  # to get all answers for an image from one model, or one over a connection that breaks
OPTIONS = ("output", "threshold", "tta", "class")
PROBLEM = "application/problem+json"


class Remote:
    max_bytes = MAX_BYTES

    def __init__(self, settings: SegmentSettings, url: str, stop: Stop) -> None:
        key = settings.api_key.get_secret_value() if settings.api_key else ""
        self.concurrency = settings.concurrency or CONCURRENCY
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        self._client = httpx.Client(headers={"X-API-Key": key} if key else {}, timeout=TIMEOUT, limits=limits)
        self._url, self._wait_s, self._stop = url, settings.wait_s, stop
        self._threshold, self._tta, self._class = settings.threshold, settings.tta, settings.class_
        self._id = ""
        self._changed = True  # the model, as far as answers tell
        self._waiting_since: float | None = None  # without an answer to any request

    def close(self) -> None:
        self._client.close()

    def model(self) -> str:
        """Asks again when an answer was another model's."""
        if self._changed:
            self._changed = False
            response = self._ask("GET", "/health")
            try:
                found: str = response.json()["model"]["id"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self._url}: expected a unet-serve, found {_reason(response)}") from error
            after = f", after {self._id}: what that one has answered is done again" if self._id else ""
            say(f"model     {found} of {self._url}{after}")
            self._id = found
        return self._id

    def segment(self, name: str, data: bytes, kinds: Sequence[str]) -> Answers:
        for _ in range(TRIES):
            responses = {kind: self._post(kind, name, data) for kind in kinds}
            models = {response.headers["x-model-id"] for response in responses.values()}
            self._changed |= models != {self._id}
            if len(models) == 1:
                break
        else:
            raise FileError("the service has another model for each answer")
        answers = {
            kind: Answer(response.content, response.headers["content-type"].partition(";")[0])
            for kind, response in responses.items()
        }
        warning = next(iter(responses.values())).headers.get("x-input-warning", "")
        return Answers(answers, warning, models.pop())

    def _post(self, kind: str, name: str, data: bytes) -> httpx.Response:
        """An answer of the service. Raises FileError; UserError for what will be the same for every image."""
        class_name = self._class if kind == "probability" else None
        options = {"output": kind, "threshold": self._threshold, "tta": self._tta, "class": class_name}
        given = {name: value for name, value in options.items() if value is not None}
        response = self._ask("POST", "/segment", params=given, files={"file": (name, data)})
        if response.status_code == 200 and "x-model-id" in response.headers:
            return response
        reason, of_service = _reason(response), response.headers.get("content-type") == PROBLEM
        if of_service and response.status_code == 422 and reason.partition(":")[0] in OPTIONS:
            raise UserError(f"--{reason}")
        if of_service and response.status_code != 404:
            raise FileError(reason)
        if response.status_code >= 500 or response.status_code == 413:  # of a proxy
            raise FileError(reason)
        raise UserError(f"{self._url}: expected a unet-serve, found {reason}")

    def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The answer to a request. Asks again while the service is busy, starts, or is not there. Raises FileError for
        an image that ends it again and again; UserError when it takes too long, or if a key is wanted."""
        n_broken = 0
        for attempt in itertools.count():
            try:
                response = self._client.request(method, self._url + path, **request)
            except httpx.TransportError as error:
                reason, pause = str(error) or type(error).__name__, min(LONGEST_PAUSE_S, 0.2 * 2 ** min(attempt, 9))
                if method == "POST" and not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                    n_broken += 1
                    if n_broken == TRIES:  # such as an image that the service has too little memory for
                        raise FileError(f"the service broke the connection {TRIES} times: {reason}") from error
                    self._ask("GET", "/health")  # until it is back: a restart counts once
            except httpx.InvalidURL as error:
                raise UserError(f"--url: {error}") from error
            else:
                of_proxy = response.headers.get("content-type") != PROBLEM
                if response.status_code in (401, 403):
                    detail = f"{_reason(response)}: expected --api-key (or SEGMENT_API_KEY) to be one"
                    raise UserError(f"{self._url}: {detail}")
                if response.status_code not in BUSY and not (response.status_code == 504 and of_proxy):
                    self._waiting_since = None
                    return response
                reason, pause = _reason(response), _retry_after(response)
            self._wait(reason, pause)
        raise AssertionError

    def _wait(self, reason: str, pause: float) -> None:
        """Sleeps, unless nothing was answered for too long: a service that is healthy is only busy with others."""
        since = self._waiting_since
        if since is None:
            self._waiting_since = time.monotonic()
            say(f"waiting for {self._url}: {reason}")
        elif time.monotonic() - since > self._wait_s:
            if not self._healthy():
                raise UserError(f"{self._url}: no answer for {self._wait_s:g} s (--wait-s): {reason}")
            self._waiting_since = time.monotonic()
        self._stop.sleep(pause * random.uniform(1, 1.5))  # noqa: S311

    def _healthy(self) -> bool:
        try:
            return self._client.get(f"{self._url}/health").status_code == 200
        except httpx.TransportError:
            return False


def _reason(response: httpx.Response) -> str:
    """What an answer other than the one that was hoped for says: the detail of a problem, or of the health."""
    try:
        content = response.json()
        return str(content.get("detail") or content.get("refused") or f"status {content['status']}")
    except (ValueError, AttributeError, KeyError):
        where = f" to {response.headers['location']}" if "location" in response.headers else ""
        return f"HTTP {response.status_code}{where}"


def _retry_after(response: httpx.Response) -> float:
    """Seconds; one if the answer does not say."""
    text = response.headers.get("retry-after", "")
    return min(60.0, float(text)) if text.isdecimal() else 1.0
