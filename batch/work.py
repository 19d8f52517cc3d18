"""What is done with one image, and who does it: threads of this process, or the nodes of a cluster."""

import os
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from batch.engine import Engine, FileError, Stop
from batch.folder import Staging
from batch.inputs import Item
from batch.progress import say
from batch.settings import SegmentSettings
from unet.errors import UserError

LONGEST_NAME = 239
"""Bytes of an image's name: those of its answers are up to 16 longer, and 255 is the limit of file systems."""


class Job(NamedTuple):
    item: Item
    kinds: list[str]  # of answers that are missing


@dataclass(frozen=True)
class Outcome:
    item: Item
    staged: dict[str, tuple[str, Path]] = field(default_factory=dict)  # answers by kind, for `OutFolder.commit`
    model: str = ""  # id
    warning: str = ""
    failure: str = ""  # why there are no answers
    bug: str = ""  # its traceback


@dataclass(frozen=True)
class Worker:
    """Reads an image, gets its answers, and writes them to where they wait to be put in place."""

    engine: Engine
    folder: Staging

    def __call__(self, job: Job) -> Outcome:
        """Raises UserError and OSError for what ends the run, and Stopped."""
        item = job.item
        name = os.fsencode(item.name).decode(errors="replace")
        try:
            answers = self.engine.segment(name, _read(item, self.engine.max_bytes), job.kinds)
        except FileError as error:
            return Outcome(item, failure=str(error))
        except UserError:
            raise
        except Exception as error:
            said = f"a bug of unet-segment, {type(error).__name__}: see above"
            return Outcome(item, failure=said, bug=traceback.format_exc())
        staged = {kind: self.folder.stage(item, kind, answer) for kind, answer in answers.by_kind.items()}
        return Outcome(item, staged, answers.model, answers.warning)


def _read(item: Item, max_bytes: int) -> bytes:
    """The bytes of an image file. Raises FileError, also if it is not the one any more that was found."""
    if len(os.fsencode(item.path.name)) > LONGEST_NAME:
        raise FileError(f"expected a name of at most {LONGEST_NAME} bytes, as those of answers are longer")
    if item.size > max_bytes:
        raise FileError(f"expected at most {max_bytes} bytes, found {item.size}")
    try:
        with item.path.open("rb") as file:
            data = file.read()
            now = os.fstat(file.fileno())
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror}") from error
    if (now.st_size, now.st_mtime_ns) != (item.size, item.mtime_ns):
        raise FileError("has changed since it was found: the same command segments it")
    return data


def in_threads(work: Callable[[Job], Outcome], jobs: Iterable[Job], n_threads: int, stop: Stop) -> Generator[Outcome]:
    """Outcomes as they come. The first exception, also one of the caller, ends the others' work and is raised."""
    waiting: set[Future[Outcome]] = set()
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            for job in jobs:
                waiting.add(pool.submit(work, job))
                if len(waiting) > 2 * n_threads:  # no more are held in memory
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in as_completed(waiting))
        except BaseException:
            stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


class Runner(Protocol):
    """Does jobs: `Threads`, or `batch.cluster.Cluster`."""

    def model(self) -> str:
        """Id of the model that answers from now on. Raises UserError."""

    def outcomes(self, jobs: Sequence[Job], folder: Staging) -> Generator[Outcome]:
        """Outcomes as they come. Raises UserError, OSError and Stopped for what ends the run."""


@dataclass(frozen=True)
class Threads:
    """Threads of this process, which share an engine."""

    engine: Engine
    stop: Stop

    def model(self) -> str:
        return self.engine.model()

    def outcomes(self, jobs: Sequence[Job], folder: Staging) -> Generator[Outcome]:
        return in_threads(Worker(self.engine, folder), jobs, self.engine.concurrency, self.stop)


@contextmanager
def opened(settings: SegmentSettings, stop: Stop) -> Iterator[Runner]:
    """The runner that the settings ask for. Raises UserError."""
    if settings.engine == "ray":
        from batch.cluster import Cluster

        with closing(Cluster(settings)) as cluster:
            yield cluster
    elif settings.url:
        from batch.remote import Remote

        with closing(Remote(settings, settings.url, stop)) as engine:
            yield Threads(engine, stop)
    else:
        from batch.local import Local

        local = Local(settings, stop)
        say(f"device    {local.device}")
        say(f"model     {local.model()} of {settings.model}")
        yield Threads(local, stop)
