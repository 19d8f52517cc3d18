"""What gives the answers for images: a model in this process (`batch.local`) or a service (`batch.remote`)."""

import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from unet.errors import UserError
from unet.outputs import Answer


class FileError(UserError):
    """An image that gets no answer: damaged, too large, or none for this model. The run goes on with the others."""


class LargeImage(BaseException):
    """An image that is not computed by one process of a cluster; no Exception, as it is neither a mistake nor a bug."""


class Stopped(BaseException):
    """The run is over: what is in work is given up."""


class Stop(threading.Event):
    """Set at the end of the run."""

    def sleep(self, seconds: float = 0) -> None:
        """Raises Stopped when it is set, or as soon as it is."""
        if self.wait(seconds):
            raise Stopped


class Answers(NamedTuple):
    """For one image."""

    by_kind: Mapping[str, Answer]
    warning: str  # why the image may not fit the model
    model: str  # id


class Engine(Protocol):
    """Several threads call it at a time."""

    concurrency: int
    """Images in work at a time."""
    max_bytes: int
    """Largest image file."""

    def model(self) -> str:
        """Id of the model that answers from now on. Raises UserError."""

    def segment(self, name: str, data: bytes, kinds: Sequence[str]) -> Answers:
        """Answers for an image file. Raises FileError, UserError for what ends the run, and Stopped."""
