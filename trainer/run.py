"""A training run, from settings to files: read, build, loop, save, account."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import torch

from trainer import curve, folds, initial, pictures, report, suggest, world
from trainer import plan as planning
from trainer.check import check
from trainer.data import Batches, DataSet, Sample
from trainer.data.scale import scale_for
from trainer.data.split import bounded
from trainer.data.upright import are_upright
from trainer.fit import train_epoch, validate
from trainer.folder import CURVES, LAST, SAMPLES, Progress, RunFolder, claim
from trainer.heartbeat import Heartbeat
from trainer.inputs import Division, divide, ignored_share, read, read_unlabelled, smallest_object
from trainer.learner import Learner
from trainer.pace import VALIDATION, Pace
from trainer.recipes import Recipe
from trainer.schedule import Schedule
from trainer.settings import TrainSettings
from trainer.stop import Stop
from unet import Predictor, UNet, files
from unet import checkpoint as checkpoints
from unet.checkpoint import Checkpoint
from unet.device import out_of_memory
from unet.errors import UserError
from unet.likeness import Likeness
from unet.outputs import Legend
from unet.pixels import Preprocessing

SAVING_SHARE = 0.2  # largest share of the time that saving takes


def run(settings: TrainSettings, stop: Stop | None = None) -> None:
    """Train as the settings say. Raises UserError, OSError for a file that cannot be written, and Stopped."""
    stop, recipe = stop or Stop(), settings.resolved_recipe()
    if settings.check:
        check(read(settings), settings.data, settings.out)
        return
    if settings.force and world.restarts():
        raise UserError("--force: every restart would start over; expected it without torchrun's --max-restarts")
    if settings.engine == "ray":
        from trainer import cluster  # here, as it needs the extra `cluster`

        cluster.run(settings, recipe, stop)
        return
    with (
        world.join(settings.device) as device,
        claim(settings.out) if world.is_first() else nullcontext(),
        memory_advice(recipe, device),
        Heartbeat(settings.out) as heartbeat,
    ):
        train(settings, recipe, device, stop, heartbeat)


def train(settings: TrainSettings, recipe: Recipe, device: torch.device, stop: Stop, heartbeat: Heartbeat) -> None:
    """Read the data, and train once, or once for each fold or each point of a learning curve; in a function of its own,
    which frees DDP before the process group ends."""
    parts, points = prepare(settings, recipe, device), []
    for i, part in enumerate(parts):
        if len(parts) > 1:
            print(f"run       {i + 1} of {len(parts)}, in {part.settings.out}")
        heartbeat.runs = i, [Schedule(part.recipe, later.settings.max_minutes).seconds for later in parts[i + 1 :]]
        points.append(train_part(part, device, stop, heartbeat))
    if world.is_first():
        conclude(settings, points)


@dataclass(frozen=True)
class Part:
    """One of the runs of --curve or --fold all, or the only run: what it is trained with."""

    settings: TrainSettings  # with the folder of this run as --out
    recipe: Recipe
    source: Checkpoint | None  # the model to start with
    data: DataSet
    division: Division
    plan: planning.Plan | None  # what chose the recipe's width and --max-minutes
    is_inner: bool  # its folder is below that of the command


def prepare(settings: TrainSettings, recipe: Recipe, device: torch.device) -> list[Part]:
    """Read and divide the data, and choose what the flags leave open, the same for all runs. One after another they
    share the minutes; on a cluster each has all of them."""
    data = world.first_alone(lambda: read(settings))
    if settings.fold == "all":
        divided = folds.parts(settings, data.samples)
    else:
        division = divide(data.samples, settings)
        divided = curve.parts(settings, division) if settings.curve else [(settings, division)]
    # one that has begun, as its plan and optimiser are kept
    one = next((each for each, _ in divided if (each.out / LAST).exists()), divided[0][0])
    upright = are_upright(data.samples, len(data.class_values))
    recipe = planning.optimizer(one, recipe, device).suited(
        data.n_classes, ignored_share(data.samples), len(data.samples), instances=data.instances, upright=upright
    )
    source, recipe = initial.load(settings, recipe.override(epochs=settings.epochs))
    if len(divided) > 1 and world.is_first():
        for name in (curve.CSV, curve.PICTURE, folds.CSV):  # `conclude` writes them when all runs are there
            (settings.out / name).unlink(missing_ok=True)
    minutes = planning.minutes(settings, device)
    if minutes and len(divided) > 1 and settings.engine == "local":
        one = one.model_copy(update={"max_minutes": minutes / len(divided)})
    plan = planning.plan(one, recipe, data, divided[-1][1].training, device)
    recipe = replace(recipe, base_channels=plan.base_channels) if plan else recipe
    limit = {"max_minutes": plan.max_minutes if plan else one.max_minutes}
    return [
        Part(each.model_copy(update=limit), recipe, source, data, division, plan, each.out != settings.out)
        for each, division in divided
    ]


def train_part(part: Part, device: torch.device, stop: Stop, heartbeat: Heartbeat) -> curve.Point:
    """Train one run to its end, unless it is there already."""
    with claim(part.settings.out) if world.is_first() and part.is_inner else nullcontext():
        trainer = Trainer(part, device)
        finished = trainer.already_finished()
        if not finished:
            with stop.defer():
                trainer.loop(stop, heartbeat)
        point = trainer.point(stop)
        if world.is_first() and not finished:
            ranked = {} if part.is_inner else suggest_next(trainer)
            report.account(trainer.folder, trainer.summary() | ranked, trainer.progress, len(trainer.val), device)
    return point


def suggest_next(trainer: "Trainer") -> dict[str, Any]:
    """Rank the images of --unlabelled by what to annotate next: an entry of report.json, with next.* in --out."""
    settings = trainer.settings
    if not settings.unlabelled:
        return {}
    predictor = Predictor.load(trainer.folder.best, str(trainer.learner.device), "fp32")
    annotated = [sample.image for sample in trainer.data.samples]
    seconds = max(60.0, 0.2 * trainer.progress.elapsed)
    ranked = suggest.suggest(predictor, settings.unlabelled, settings.out, annotated, settings.channel, seconds)
    return {"next": suggest.summary(ranked)}


def conclude(settings: TrainSettings, points: list[curve.Point]) -> None:
    """Write and print what the runs of a curve, or the folds, say together."""
    if settings.curve:
        files.replace_atomically(settings.out / curve.CSV, curve.table(points))
        files.replace_atomically(settings.out / curve.PICTURE, curve.picture(points))
        report.add(settings.out, {"curve": curve.summary(points)})
        print(f"curve     {curve.sentence(points)}")
    elif settings.fold == "all":
        files.replace_atomically(settings.out / folds.CSV, folds.table(points))
        print(f"folds     {folds.sentence(points)}")


class Trainer:
    """State of a run: everything that the loop needs, built before it starts."""

    next_save = 0.0  # on the clock of time.monotonic(); only the last epoch is saved earlier

    def __init__(self, part: Part, device: torch.device) -> None:
        settings, recipe, source, data, division = part.settings, part.recipe, part.source, part.data, part.division
        report.print_start(settings, recipe, data, division, device)
        self.settings, self.recipe, self.data, self.division = settings, recipe, data, division
        self.val = bounded(division.validation)
        self.schedule = Schedule(recipe, settings.max_minutes)
        torch.manual_seed(settings.seed)
        network = recipe.build(data.n_channels, data.n_classes).to(device)
        taken = initial.transfer(network, source, settings.init_from) if source else None
        self.learner = Learner(network, recipe)
        self.predictor = self._predictor()
        self.folder = RunFolder(settings.out, self._identity(source, part.plan))
        self.progress = Progress() if settings.force else self.folder.restore(self.learner)
        start = crc32(repr((self.folder.identity, self.progress.epoch)).encode())
        if world.any_of(start != world.broadcast(start)):
            raise UserError("--data, --out: expected the same files on all nodes, found others on one of them")
        self.predictor.threshold = self.progress.scored.get("threshold", self.predictor.threshold)
        self.batches = self._batches(data.samples if self.progress.joined else division.training, settings.seed)
        self.unlabelled = self._unlabelled(settings.unlabelled) if settings.unlabelled else None
        if taken and not self.progress.epoch:
            print(f"start     {taken}", flush=True)
        validated = sum(sample.label.size for sample in self.val)
        learned = len(self.batches) * recipe.batch_size * recipe.image_size**2 / world.size()
        self.pace = Pace(self.schedule, self.progress, VALIDATION * validated / learned)
        self.says_length = not part.plan and world.is_first()  # a plan has said it

    def _predictor(self) -> Predictor:
        """Answers of the learner's weights, which change with each step."""
        preprocessing = Preprocessing(
            input_range=self.recipe.input_range,
            standardise=self.recipe.standardise,
            scale=scale_for(self.division.training),
            upright=self.recipe.augmentation.upright,
            channel=self.settings.channel,
        )
        return Predictor(
            cast(UNet, self.learner.result),
            preprocessing,
            class_values=self.data.class_values,
            class_names=self.data.class_names,
            class_colours=self.data.class_colours,
            objects=self.data.instances,
            min_area=smallest_object(self.data.samples),
            likeness=Likeness.of([sample.image for sample in self.data.samples], self.recipe.standardise),
        )

    def _identity(self, source: Checkpoint | None, plan: planning.Plan | None) -> dict[str, Any]:
        """Settings by which an interrupted run is recognised; the device is not one of them."""
        names = ("val_split", "folds", "fold", "seed", "curve", "max_minutes")
        return {name: getattr(self.settings, name) for name in names} | {
            "recipe": asdict(self.recipe),
            "val_fraction": self.settings.val_fraction if self.division.held_out_until == 1 else None,
            "plan": asdict(plan) if plan else None,
            "data": self.data.files,
            "reading": asdict(self.settings.reading()),
            "unlabelled": str(self.settings.unlabelled),
            "init_from": source.id if source else None,
        }

    def _batches(self, samples: list[Sample], seed: int) -> Batches:
        return Batches(samples, self.predictor.network, self.predictor.preprocessing, self.recipe, seed)

    def _unlabelled(self, folder: Path) -> Batches:
        """Batches of --unlabelled. Raises UserError."""
        if not self.learner.averaged:
            raise UserError(f"--unlabelled: expected a recipe with averaged weights, not {self.recipe.name}")
        samples = read_unlabelled(folder, self.predictor.n_channels, self.settings.channel)
        return self._batches(samples, self.settings.seed + 1)

    def already_finished(self) -> bool:
        """Whether an earlier process has finished this run; prints that it has."""
        if finished := self.progress.finished and self.folder.report.exists():
            print(f"already finished: {report.outcome(self.progress, self.folder)}. To train again: --force")
        return finished

    def loop(self, stop: Stop, heartbeat: Heartbeat) -> None:
        """Train, validate and save, an epoch at a time, to the end of the schedule."""
        progress = self.progress
        if progress.epoch:
            print(f"going on after epoch {progress.epoch}, where an earlier run was interrupted")
        if world.is_first():
            self.folder.begin(progress, self.learner)
        heartbeat.start(self.pace.position(), dict(zip(self.data.class_values, self.data.class_names, strict=True)))
        stop.epoch = progress.epoch
        started = time.monotonic()
        while not progress.finished:
            until = self.schedule.seconds * (1 if progress.joined else self.division.held_out_until)
            elapsed = progress.elapsed + world.broadcast(time.monotonic() - started)
            others, tell = self.unlabelled, partial(self.tell, heartbeat)
            row = train_epoch(
                self.learner, self.batches, progress.epoch + 1, self.schedule, elapsed, until, stop, others, tell
            )
            if not progress.joined:
                row |= validate(self.predictor, self.val, stop, self.learner.mixed)
                self.predictor.threshold = row.get("threshold", self.predictor.threshold)
            validated = time.monotonic()
            row["seconds"] = world.broadcast(validated - started)  # saving the epoch before included
            started = validated

            progress.add(row)
            done = self.schedule.done(progress.epoch, progress.elapsed)
            progress.finished = done >= 1
            heartbeat.at(self.pace.position())
            report.print_epoch(row, self.recipe.epochs, self.schedule.remaining(progress.epoch, progress.elapsed))
            if not progress.joined and done >= self.division.held_out_until:
                self.examine()
                if not progress.finished:
                    self.join()
            if world.is_first() and (progress.finished or time.monotonic() >= self.next_save):
                self.save()
                heartbeat.beat()
                stop.epoch = progress.epoch
            stop.epoch = int(world.broadcast(stop.epoch))
        heartbeat.finish(self.pace.position())

    def tell(self, heartbeat: Heartbeat, share: float, seconds: float) -> None:
        """Tell how far the run is after a step, and once how long it takes; see `train_epoch`."""
        position = self.pace.step(share, seconds)
        heartbeat.at(position)
        if self.pace.steady and self.says_length:
            self.says_length = False
            report.print_length(self.settings, self.recipe, self.learner.device, position)

    def examine(self) -> None:
        """Write samples.png and score objects, on images that no epoch has learned from."""
        if world.is_first():
            self.progress.objects = report.objects(self.predictor, self.val)
            self.folder.save_file(SAMPLES, pictures.samples(self.predictor, self.val))

    def point(self, stop: Stop) -> curve.Point:
        """The score of this run; of a learning curve, also of each image."""
        val, mixed = self.val if self.settings.curve else [], self.learner.mixed
        each = [validate(self.predictor, [sample], stop, mixed)["score"] for sample in val]
        return curve.Point(len(self.division.training), self.progress.scored["score"], each)

    def join(self) -> None:
        """From now on, learn from the images to validate on as well."""
        self.progress.joined = True
        del self.batches  # first: both would take twice the memory
        self.batches = self._batches(self.data.samples, self.settings.seed)
        report.print_join(self.val)

    def model(self) -> Checkpoint:
        """The model as it is now."""
        predictor = self.predictor
        return Checkpoint(
            network=predictor.network.config,
            preprocessing=predictor.preprocessing,
            state_dict=predictor.network.state_dict(),
            training=self.summary(),
            likeness=predictor.likeness,
            **asdict(Legend.of(predictor)),
        )

    def summary(self) -> dict[str, Any]:
        """Provenance of the model, see `report.summary`."""
        return report.summary(self.recipe, self.data, self.division, self.progress)

    def save(self) -> None:
        """Write the files of the epochs so far."""
        started = time.monotonic()
        checkpoints.save(self.model(), self.folder.best)
        rows = self.progress.history
        self.folder.save_history(rows)
        self.folder.save_file(CURVES, pictures.curves(rows, self.predictor))
        self.folder.save_last(self.progress, self.learner)  # at the end: a run killed earlier repeats the epoch
        self.next_save = started + (time.monotonic() - started) / SAVING_SHARE


@contextmanager
def memory_advice(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Turn running out of memory into a UserError that names the flags to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            f"{device} ran out of memory: lower --batch-size ({recipe.batch_size}), --image-size "
            f"({recipe.image_size}) or --base-channels ({recipe.base_channels})"
        ) from error
