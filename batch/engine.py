"""What gives the answers for images: a model in this process (`batch.local`) or a service (`batch.remote`); and who
has them given: threads of this process, or the actors of a cluster (`batch.cluster`)."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from batch.settings import SegmentSettings
from unet.errors import UserError
from unet.outputs import Answer

if TYPE_CHECKING:
    from batch.cluster import Cluster


class FileError(UserError):
    """An image that gets no answer: damaged, too large, or none for this model. The run goes on with the others."""


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


@runtime_checkable
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


@contextmanager
def opened(settings: SegmentSettings, stop: Stop) -> "Iterator[Engine | Cluster]":
    """The engine that the settings ask for. Raises UserError."""
    if settings.engine == "ray":
        from batch.cluster import Cluster

        with closing(Cluster(settings)) as cluster:
            yield cluster
    elif settings.url:
        from batch.remote import Remote

        with closing(Remote(settings, settings.url, stop)) as engine:
            yield engine
    else:
        from batch.local import Local

        yield Local(settings, stop)
