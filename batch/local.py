"""A model in this process: files are read and written by some threads while others compute."""

import math
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from batch.engine import Answers, FileError, LargeImage, Stop
from batch.settings import SegmentSettings
from unet import Predictor, imaging
from unet import checkpoint as checkpoints
from unet.device import describe_choice, out_of_memory
from unet.imaging import Array, ImageError, Limits
from unet.network import STRIDE
from unet.outputs import KINDS, Legend, Results
from unet.pixels import PixelError
from unet.prediction import Prediction, Wanted
from unet.predictor import joined

CPU_THREADS, GPU_THREADS = 6, 8  # some compute, the others read and write, or wait to be computed together
MAX_TURNS = 4  # images that a CPU computes at a time: each takes the memory of a forward pass
CUDA_TURNS = 2  # one is fetched while the GPU computes the other
SMALLEST_TILE = 256  # side in pixels
IMAGE_BYTES, PLANE_BYTES, OBJECTS_BYTES = 16, 8, 40
"""Memory for a pixel: of the image, of each number that the network says of it, and to find objects: rounded up from
`ru_maxrss` of unet-segment for images of 6000 x 6000, RGB of 8 bits or grey of 16, half of them objects."""


class Local:
    def __init__(self, settings: SegmentSettings, stop: Stop, n_processes: int = 1, large: int | None = None) -> None:
        """Loads the model. `n_processes`: how many share the machine's memory; `large`: images of more pixels, or of
        more than memory allows, are not computed but raise LargeImage; `Large`, which computes them, has a limit of
        its own. Raises UserError."""
        checkpoint = checkpoints.load(settings.model, settings.input_range)
        self.predictor = Predictor.from_checkpoint(checkpoint, settings.device, settings.precision)
        self._settings, self._stop, self._id = settings, stop, checkpoint.id
        self.predictor.resolve_threshold(settings.threshold)
        self.predictor.resolve_class(settings.class_, "probability")
        device = self.predictor.device
        self.device = f"{describe_choice(settings.device, device)}, {self.predictor.precision}"

        self._cores = torch.get_num_threads()
        self._n_turns = {"cpu": min(self._cores, MAX_TURNS), "cuda": CUDA_TURNS}.get(device.type, 1)
        self._turns = threading.Semaphore(self._n_turns)
        self._together = device.type == "cpu" and self._n_turns == 1  # with several turns, others may have them in hand
        self._waiting: set[Prediction] = set()
        self.concurrency = settings.concurrency or (CPU_THREADS if device.type == "cpu" else GPU_THREADS)
        self.max_bytes = memory() // n_processes // 4
        planes = self.predictor.planes_kept(_for_all(settings.output), settings.tta)
        objects = any(KINDS[kind].wants == "objects" for kind in settings.output)
        bytes_per_pixel = IMAGE_BYTES + PLANE_BYTES * planes + OBJECTS_BYTES * objects
        most = settings.max_pixels or memory() // n_processes // bytes_per_pixel
        self._limits = Limits(max_pixels=settings.max_pixels if large else most)
        self._large = min(large, most) if large else most
        self._most_together = most // (2 * self.concurrency)
        self._alone = threading.Lock()

    def model(self) -> str:
        return self._id

    def segment(self, name: str, data: bytes, kinds: Sequence[str]) -> Answers:
        try:
            n_pixels = imaging.measure(data, self._limits)
            if n_pixels > self._large:
                raise LargeImage
            # one large image at a time, so that all in work together fit into memory
            with self._alone if n_pixels > self._most_together else nullcontext():
                picture = imaging.read(data, self._limits)
                del data  # large
                return self._answers(name, picture, kinds)
        except (ImageError, PixelError) as error:
            raise FileError(str(error)) from error
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise FileError("not enough memory to compute this image") from error

    def _answers(self, name: str, picture: imaging.Picture, kinds: Sequence[str]) -> Answers:
        """One pass of each page through the network, for all kinds."""
        settings, predictor = self._settings, self.predictor
        said = [predictor.warning(picture.pages)]
        legend = Legend.of(predictor, settings.threshold)
        results: dict[Wanted, list[Array]] = {KINDS[kind].wants: [] for kind in kinds}
        computed = _for_all(kinds)
        for page in picture.pages:
            result, doubt = self.predict(page, computed)
            said.append(doubt)
            for wanted, of_pages in results.items():
                of_pages.append(result if wanted == computed else predictor.derive(result, wanted, **self._how(wanted)))
        warning = joined(said)
        answers = {
            kind: KINDS[kind].encode(Results(results[KINDS[kind].wants], picture, legend, name, warning))
            for kind in kinds
        }
        return Answers(answers, warning, self._id)

    def _how(self, wanted: Wanted) -> dict[str, Any]:
        class_name = self._settings.class_ if wanted == "probability" else None
        return {"threshold": self._settings.threshold, "class_name": class_name}

    def predict(self, page: Array, wanted: Wanted) -> tuple[Array, str]:
        """As `Predictor.predict`, and what the model doubts. Images by turns, which share the cores."""
        prediction = self.start(page, wanted)
        self._waiting.add(prediction)
        finished = False  # is seen in a turn only: without one, the last piece may still be in another's hand
        try:
            while not finished:
                self._stop.sleep()
                with self._turns:
                    if not prediction.finished:
                        self._compute([prediction, *self._alike(prediction)])
                    finished = prediction.finished
            return prediction.result, prediction.doubt
        finally:
            self._waiting.discard(prediction)

    def start(self, page: Array, wanted: Wanted) -> Prediction:
        """A page on its way, with the options of the run. Raises PixelError."""
        return self.predictor.start(page, wanted, tta=self._settings.tta, **self._how(wanted))

    def _alike(self, prediction: Prediction) -> list[Prediction]:
        """Others whose next piece has the same shape, to compute with this one's: a core takes less time for small ones
        together."""
        if not self._together:
            return []
        others = (each for each in list(self._waiting) if each is not prediction and not each.finished)
        n_fitting = self.predictor.tile**2 // math.prod(prediction.next_shape)
        return [each for each in others if each.next_shape == prediction.next_shape][: max(0, n_fitting - 1)]

    def _compute(self, predictions: Sequence[Prediction]) -> None:
        """The next piece of each. If that fails, of the first alone, so that none fails for another."""
        torch.get_num_threads()  # initialises torch in this thread; later it would undo the next line
        torch.set_num_threads(max(1, self._cores // min(self._n_turns, len(self._waiting))))
        first, side = predictions[0], max(predictions[0].next_shape)
        try:
            self.predictor.compute([each.next() for each in predictions])
        except Exception as error:
            if len(predictions) == 1:
                return self.restart(first, side, error)
            self._together = False  # else those of many pieces would start again and again
            for each in predictions:
                each.restart()
            self._compute([first])

    def restart(self, prediction: Prediction, side: int, error: Exception) -> None:
        """Out of memory: from now on pieces are half as large, unless that is too little; else raises the error."""
        if not out_of_memory(error) or side // 2 < SMALLEST_TILE:
            raise error
        self.predictor.tile = side // 2 // STRIDE * STRIDE
        prediction.restart()


def _for_all(kinds: Iterable[str]) -> Wanted:
    """The result to compute, from which those of all kinds derive."""
    wants = {KINDS[kind].wants for kind in kinds}
    return wants.pop() if len(wants) == 1 else "objects"


def memory() -> int:
    """Bytes of memory that this process may use: of the machine, or of its container."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups, version 2 and 1
        path = Path("/sys/fs/cgroup") / name
        if path.exists() and (text := path.read_text().strip()).isdecimal():
            limits.append(int(text))
    return min(limits)
