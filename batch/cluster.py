"""A Ray cluster: an actor on each core or GPU holds the model and does the jobs that threads do in one process.

Ray Data distributes the images in blocks and restarts actors that die: blocks that were not returned whole are computed
once more. What has cost several actors is computed alone, so that an image that kills its process fails, and no other.
Actors stage answers, and this program alone puts them in place, so that none is lost or there twice.
"""

import logging
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, cast

import ray
from ray.data import ActorPoolStrategy, DataContext

from batch.engine import LargeImage, Stop
from batch.folder import Staging
from batch.large import Large
from batch.local import CPU_THREADS, GPU_THREADS, Local
from batch.progress import say
from batch.settings import SegmentSettings
from batch.work import Job, Outcome, Worker
from unet import checkpoint as checkpoints
from unet.cluster import join
from unet.errors import UserError
from unet.listing import plural
from unet.prediction import Input, Output

BLOCK_BYTES = 2 << 20  # of image files: what is computed again when an actor dies, and comes back at once
BLOCK_IMAGES = 32
BLOCKS = 4  # for each thread of an actor, at least, so that all end at about the same time
TRIES = 3  # of an image whose actors die
LARGE = 1 << 26  # pixels, or bytes of its file, above which an image is computed by all actors: ten seconds of a core


class Cluster:
    def __init__(self, settings: SegmentSettings) -> None:
        """Joins the cluster at RAY_ADDRESS, or one that runs here, or starts one here. Raises UserError."""
        self._settings = settings.model_copy(update={"model": settings.model.resolve()})
        self._id = checkpoints.load(settings.model, settings.input_range).id
        self._kind, self._per_node = join(settings.device)
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        context = DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = -1  # an image may take long

        gpus = self._kind == "GPU"
        self._resources: dict[str, Any] = {"num_gpus" if gpus else "num_cpus": 1}  # of an actor
        self._unit = "GPU" if gpus else "core"
        say(f"cluster   {plural(len(self._per_node), 'node')}, {plural(sum(self._per_node), self._unit)}")
        say(f"model     {self._id} of {settings.model}")

    def close(self) -> None:
        ray.shutdown()

    def model(self) -> str:
        return self._id

    def outcomes(self, jobs: Sequence[Job], folder: Staging) -> Generator[Outcome]:
        """Outcomes of jobs as they come, those of large images last. Raises UserError."""
        large = [job for job in jobs if job.item.size > LARGE]
        left = {job.item: job for job in jobs if job.item.size <= LARGE}
        for alone in (False, True):
            for found in self._each(list(left.values()), folder, alone) if left else ():
                if isinstance(found, UserError):
                    raise found
                if found is None:
                    continue
                del left[found.item]
                if isinstance(found, Job):
                    large.append(found)
                else:
                    yield found
        for item in left:
            yield Outcome(item, failure=f"its process on the cluster died {TRIES} times: Ray's logs may say why")
        if large:
            yield from self._together(large, folder)

    def _each(self, jobs: Sequence[Job], folder: Staging, alone: bool) -> Iterator[Outcome | Job | UserError | None]:
        """Outcomes of images that one actor each computes, one at a time if they are to be alone; of a large one its
        job comes back, of one that has cost `TRIES` actors None."""
        n_threads = 1 if alone else self._settings.concurrency or {"CPU": CPU_THREADS, "GPU": GPU_THREADS}[self._kind]
        n_actors = sum(self._per_node)
        n_bytes = sum(job.item.size for job in jobs)
        wanted = max(BLOCKS * n_threads * n_actors, n_bytes // BLOCK_BYTES, len(jobs) // BLOCK_IMAGES)
        n_blocks = len(jobs) if alone else min(wanted, len(jobs))
        actors = ActorPoolStrategy(
            min_size=1,
            initial_size=min(n_actors, n_blocks),
            max_concurrent_calls_per_actor=n_threads,
            enable_true_multi_threading=True,
        )
        images = ray.data.from_items([{"job": job} for job in jobs], override_num_blocks=n_blocks)
        done = images.map(
            cast(Any, Actor),  # it takes a class, too
            fn_constructor_args=self._arguments(folder),
            compute=actors,
            **self._resources,
        )
        return (row["found"] for row in done.iter_rows())

    def _together(self, jobs: Sequence[Job], folder: Staging) -> Generator[Outcome]:
        """Outcomes of images one after another, each computed by all actors."""
        actor, n_actors = cast(Any, ray.remote(Actor)).options(**self._resources), sum(self._per_node)
        new = partial(actor.remote, *self._arguments(folder))
        with closing(Large(self._settings, new, n_actors, self._kind)) as large:
            for job in jobs:
                say(f"large     {job.item.name}: on {plural(n_actors, self._unit)} together")
                yield Worker(large, folder)(job)

    def _arguments(self, folder: Staging) -> tuple[Any, ...]:
        """What an actor is made with."""
        return self._settings, Staging(folder.root, folder.new), self._id, max(self._per_node), LARGE


class Actor:
    """Holds the model and does jobs. A mistake that ends the run comes back as an outcome, for the program to raise."""

    def __init__(self, settings: SegmentSettings, staging: Staging, model: str, n_processes: int, large: int) -> None:
        self._mistake: UserError | None = None
        self._staging = staging
        try:
            self._engine = _engine(settings, staging, model, n_processes, large)
            self._worker = Worker(self._engine, staging)
        except (UserError, OSError) as error:
            self._mistake = _told(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The outcome of a job; the job itself if its image is large; None if it has cost too many actors."""
        if self._mistake:
            return {"found": self._mistake}
        try:
            with self._staging.tried(row["job"].item) as n:
                return {"found": self._worker(row["job"]) if n <= TRIES else None}
        except LargeImage:
            return {"found": row["job"]}
        except (UserError, OSError) as error:
            return {"found": _told(error)}

    def ready(self) -> UserError | None:
        """Returns as soon as the model is loaded."""
        return self._mistake

    def answer(self, piece: Input) -> Output | UserError:
        """What the network says of a piece of a large image."""
        return self._mistake or next(self._engine.predictor.answer([piece]))


def _engine(settings: SegmentSettings, staging: Staging, model: str, n_processes: int, large: int) -> Local:
    if not staging.new.is_dir():
        raise UserError(f"{staging.root}: expected the --out of the other nodes, on a shared file system; found none")
    engine = Local(settings, Stop(), n_processes, large)
    if engine.model() != model:
        raise UserError(f"{settings.model}: expected {model}, as where unet-segment runs, found {engine.model()}")
    return engine


def _told(error: UserError | OSError) -> UserError:
    """The error as a message that names the node."""
    said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
    return UserError(f"{said} (on node {socket.gethostname()})")
