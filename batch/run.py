"""The run of `unet-segment`: find images, segment those that are not done, put their answers in place, join tables."""

import signal
import time
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from pathlib import Path

from batch.engine import Stop
from batch.folder import OutFolder
from batch.inputs import Item, Look, arriving, unchanged
from batch.manifest import Manifest
from batch.progress import list_some, say, shown
from batch.settings import SegmentSettings
from batch.work import Job, Outcome, Runner, opened
from unet.errors import UserError
from unet.listing import plural, some

PASSES = 3
"""How often images are segmented because the service has got another model meanwhile."""
REST = 20
"""While folders are watched, tables are joined at most in one of so many seconds."""


def run(settings: SegmentSettings) -> int:
    """Returns the exit status. Raises UserError and OSError."""
    out, stop = settings.out.resolve(), Stop()
    look = Look.at(settings.paths, out, Manifest(out).answers)
    look.check(settings.paths, settings.watch)
    items = list(look.items.values())
    say(f"images    {len(items)}{look.skipped}")
    for folder_and_reason in look.unreadable:
        say(f"failed    {folder_and_reason}")
    with opened(settings, stop) as runner, OutFolder.claim(settings) as folder:
        segmentation = Segmentation(settings, runner, folder, stop)
        if conflicts := folder.conflicts(items):
            first = some([f"{item.path}: {reason}" for item, reason in conflicts.items()])
            raise UserError(f"{first}; choose another --out, or images by a pattern, such as '*.tif'")
        try:
            if settings.watch:
                segmentation.watch()
            else:
                segmentation.segment(items)
        finally:
            segmentation.finish()
    return 1 if segmentation.failed or look.unreadable else 0


class Segmentation:
    """Images on their way, and how far they have come."""

    def __init__(self, settings: SegmentSettings, runner: Runner, folder: OutFolder, stop: Stop) -> None:
        self.failed: dict[Path, tuple[Item, str]] = {}  # with the reason
        self._settings, self._runner, self._folder, self._stop = settings, runner, folder, stop
        self._model = ""  # id
        self._done: set[Item] = set()  # in this run
        self._skipped: set[Item] = set()  # as their answers were there
        self._busy = False
        self._joined = ""  # what the table holds since the last image was done
        self._say_once = cache(say)
        self._started = time.monotonic()

    def segment(self, items: Sequence[Item]) -> None:
        """Segments what is not done, until all is done by one model."""
        for _ in range(PASSES):
            jobs = self._jobs(items)
            self._busy = bool(jobs)
            if not jobs:
                return
            with closing(self._runner.outcomes(jobs, self._folder)) as outcomes:
                for outcome in shown(outcomes, len(jobs)):
                    self._take(outcome)
        self._busy = False
        for job in self._jobs(items):
            self._fail(job.item, "is answered by a model that the service does not have any more: it has changed often")

    def watch(self) -> None:
        """Segments what is there and what comes, until Ctrl-C."""
        say("watching  until Ctrl-C")
        due = 0.0
        try:
            for items in arriving(self._look, self._stop.sleep):
                for item, reason in self._folder.conflicts(items).items():
                    self._fail(item, reason)
                n_before = len(self._done)
                self.segment(items)
                if n := len(self._done) - n_before:
                    say(f"{plural(n, 'image')} segmented, {len(self._done)} in all")
                    self._joined = ""
                if not self._joined and time.monotonic() > due:
                    started = time.monotonic()
                    self._join()
                    due = started + REST * (time.monotonic() - started)
        except KeyboardInterrupt as stopped:
            if self._busy or stopped.args != (signal.SIGINT,):
                raise

    def finish(self) -> None:
        """Joins the tables, and tells what was done, what failed, and what may be wrong."""
        if not (self._done or self._skipped or self.failed):
            return
        self._join()
        records = (self._folder.manifest.records[item.stem] for item in (*self._done, *self._skipped))
        list_some("warning", {record.path: record.warning for record in records if record.warning})
        if not self._settings.watch:  # there they were listed when they came
            list_some("failed", {str(path): reason for path, (_, reason) in self.failed.items()}, most=None)
        seconds, n = time.monotonic() - self._started, len(self._done)
        said = [f"{plural(n, 'image')} segmented in {seconds:.3g} s ({n / seconds:.3g} per second)"]
        said += [f"{len(self._skipped)} skipped as done"] if self._skipped else []
        said += [f"{len(self.failed)} failed"] if self.failed else []
        print(", ".join([*said, *filter(None, [self._joined])]), flush=True)

    def _look(self) -> Look:
        look = Look.at(self._settings.paths, self._folder.root, self._folder.manifest.answers)
        for problem in (*look.problems, *look.unreadable):
            self._say_once(f"warning   {problem}")
        return look

    def _jobs(self, items: Sequence[Item]) -> list[Job]:
        self._model = self._runner.model()
        jobs: list[Job] = []
        for item in items:
            if self.failed.get(item.path, (None,))[0] == item:
                continue
            again = self._settings.overwrite and item not in self._done
            if kinds := list(self._settings.output) if again else self._folder.missing(item, self._model):
                jobs.append(Job(item, kinds))
            elif item not in self._done:
                self._skipped.add(item)
        return jobs

    def _take(self, outcome: Outcome) -> None:
        """Puts the answers of an image in place, or notes why it has none."""
        item = outcome.item
        if outcome.bug:
            say(outcome.bug)
        if outcome.failure:
            self._fail(item, outcome.failure)
            return
        self._folder.commit(item, outcome.staged, outcome.model, outcome.warning)
        self._done.add(item)
        self._skipped.discard(item)  # when the model changed meanwhile
        self.failed.pop(item.path, None)

    def _fail(self, item: Item, reason: str) -> None:
        if self._settings.watch:
            if not unchanged(item.path, item.size, item.mtime_ns):  # it is still being written, or was taken away
                return
            if self.failed.get(item.path) != (item, reason):
                say(f"failed    {item.path}: {reason}")
        self.failed[item.path] = item, reason

    def _join(self) -> None:
        if "table" in self._settings.output:
            self._joined = self._folder.join_tables(self._model, keep_gone=self._settings.watch)
