"""Accuracy from few images:  python tests/benchmarks/few.py DATA --out DIR --sets nuclei vnc --n 2 8 --minutes 2

DATA holds folders such as those of SETS. For each set, each number of images and each seed, a model is trained with
`unet-train` on that many images, drawn at random (seed 0: the first ones by name), on `--threads` cores, and scored on
the images that were not drawn. Prints a table of means and standard deviations over the seeds. Models that the output
folder holds already are not trained again; `--variants` compares changed recipes (VARIANTS).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Set:
    """A data set: its folder, the flags that it is trained with, and its scores."""

    folder: str
    scores: tuple[str, ...]
    flags: tuple[str, ...] = ()
    labels: str = "Training_Labels"
    chosen: Callable[[Array], bool] = lambda image: True  # images of the folder that belong to the set
    truth: str = ""  # folder of the labels to score with, if it is another one than `labels`
    most: int = 16  # images to score
    spare: int = 0  # images neither trained on nor scored: the variant `unlabelled` learns from them without labels
    labelled: float = 1.0  # share of the pixels of the training labels, in random strokes; the others are ignored


def small(image: Array) -> bool:
    """Whether an image of nuclei is one of those in fluorescence with 256 x 256 pixels."""
    return image.shape[:2] == (256, 256)


NUCLEI = Set("nuclei", ("ap50", "pq", "dice"), ("--labels", "instances"), labels="instances", most=32)
FLUORESCENCE = replace(NUCLEI, chosen=small, most=16)
MASKS = replace(FLUORESCENCE, flags=(), labels="Training_Labels", truth="instances")
STROKES = ("--ignore-value", "254")
SETS = {
    "isbi2012": Set("isbi2012", ("dice", "v_rand", "pixel error")),
    "drive": Set("drive", ("f1",)),
    "chase": Set("chase", ("f1",)),
    "nuclei": NUCLEI,
    "fluorescence": FLUORESCENCE,
    "fluorescence-masks": MASKS,
    "fluorescence-spare": replace(FLUORESCENCE, spare=7),
    "chase-spare": Set("chase", ("f1",), spare=5),
    "isbi2012-masks": Set("isbi2012", ("dice",), most=8),
    "isbi2012-strokes": Set("isbi2012", ("dice",), STROKES, most=8, labelled=0.05),
    "fluorescence-strokes": replace(MASKS, scores=("dice",), flags=STROKES, truth="", labelled=0.05),
    "vnc": Set("vnc", ("dice", "dice of the worst class")),
    "camvid": Set("camvid", ("dice", "dice of the worst class"), ("--ignore-value", "11")),
}


def variants() -> dict[str, Any]:
    """Changes of the default recipe, each to be compared with it."""
    from trainer.recipes import RECIPES

    default = RECIPES["default"]

    def augmented(**changes: float) -> Any:
        return replace(default, augmentation=replace(default.augmentation, **changes))

    return {
        "default": default,
        "adamw": replace(default, optimizer="adamw"),
        "no-balance": replace(default, balance=0.0),
        "no-dropout": replace(default, dropout=0.0),
        "no-cldice": replace(default, loss="ce+dice"),
        "ce": replace(default, loss="ce"),
        "crops-256": replace(default, image_size=256),
        "crops-64": replace(default, image_size=64, batch_size=8),
        "batch-8": replace(default, batch_size=8),
        "gamma": augmented(gamma=0.7, contrast=0.5, brightness=0.5),
        "brightness": augmented(brightness=1.0),
        "blur": augmented(blur=3),
        "gamma-blur": augmented(gamma=0.7, contrast=0.5, brightness=0.5, blur=3),
        "contrast": augmented(contrast=1.5),
        "scale": augmented(scale=0.5),
        "sizes": augmented(scale=1.0),
        "sizes-adamw": replace(augmented(scale=1.0), optimizer="adamw"),
        "unlabelled": default,
        "tutorial": RECIPES["tutorial"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--n", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--base-channels", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="+", default=["default"])
    parser.add_argument("--init-from", type=Path, help="start from this model, as `unet-train --init-from` does")
    parser.add_argument("--run", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)  # VARIANT and flags of unet-train
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    if arguments.run:
        train(*arguments.run)
        return
    for name in arguments.sets:
        chosen = SETS[name]
        print(f"\n| {name}, {arguments.minutes:g} min | n | " + " | ".join(chosen.scores) + " |")
        print("|---" * (len(chosen.scores) + 2) + "|")
        for n in arguments.n:
            for variant in arguments.variants:
                found = [one_run(arguments, name, n, seed, variant) for seed in arguments.seeds]
                cells = [_cell([run[score] for run in found if run]) for score in chosen.scores]
                print(f"| {variant} | {n} | " + " | ".join(cells) + " |", flush=True)


def one_run(arguments: argparse.Namespace, name: str, n: int, seed: int, variant: str) -> dict[str, float]:
    """Scores of one model, trained unless its folder has them already. Empty if the set has not enough images."""
    chosen = SETS[name]
    started = f"-from-{arguments.init_from.parent.name}" if arguments.init_from else ""
    out = arguments.out / f"{name}-{n}-{seed}-{arguments.minutes:g}min-{variant}{started}"
    result = out / "few.json"
    if not result.exists():
        drawn, spare, held_out = draw(arguments.data / chosen.folder, chosen, n, seed)
        if not held_out:
            return {}
        link(arguments.data / chosen.folder, chosen.labels, drawn, out / "data")
        if chosen.labelled < 1:
            keep_strokes(out / "data" / "Training_Labels", chosen.labelled)
        link(arguments.data / chosen.folder, chosen.truth or chosen.labels, held_out, out / "held_out")
        command = [sys.executable, __file__, str(arguments.data), "--out", str(out), "--threads"]
        command += [str(arguments.threads), "--run", variant, "--data", str(out / "data"), "--out", str(out), "--force"]
        command += ["--max-minutes", f"{arguments.minutes:g}", "--seed", str(seed)]
        command += ["--epochs", "100000"] if variant == "tutorial" else []  # as much time as the others
        command += ["--base-channels", str(arguments.base_channels), "--device", arguments.device, *chosen.flags]
        if arguments.init_from:
            command += ["--init-from", str(arguments.init_from)]
        if variant == "unlabelled":
            link(arguments.data / chosen.folder, chosen.labels, spare, out / "spare")
            command += ["--unlabelled", str(out / "spare" / "Training_Images")]
        with (out / "log.txt").open("w") as log:
            subprocess.run(command, stdout=log, stderr=log, check=True)
        result.write_text(json.dumps(score(out / "best_model.pth", out / "held_out", chosen), indent=2) + "\n")
    return dict(json.loads(result.read_text()))


def train(variant: str, *flags: str) -> None:
    """`unet-train` with a variant of the default recipe."""
    from trainer.__main__ import main
    from trainer.recipes import RECIPES

    RECIPES["default"] = replace(variants()[variant], name="default")
    sys.exit(main(list(flags)))


def draw(folder: Path, chosen: Set, n: int, seed: int) -> tuple[list[str], list[str], list[str]]:
    """Names of the images to train on, to spare, and, at most `most` of them, to score."""
    files = sorted((folder / "Training_Images").iterdir())
    names = [path.name for path in files if chosen.chosen(cv2.imread(str(path)))]
    order = np.random.default_rng(seed).permutation(len(names)) if seed else np.arange(len(names))
    names = [names[i] for i in order]
    return names[:n], names[n:][: chosen.spare], names[n + chosen.spare :][: chosen.most]


def link(folder: Path, labels: str, names: list[str], to: Path) -> None:
    """A training folder of links to these images and their labels."""
    for part, source in (("Training_Images", "Training_Images"), ("Training_Labels", labels)):
        (to / part).mkdir(parents=True, exist_ok=True)
        for path in (folder / source).iterdir():
            target = to / part / path.name
            if path.stem in {Path(name).stem for name in names} and not target.exists():
                target.symlink_to(path.resolve())


def keep_strokes(labels: Path, share: float) -> None:
    """Replace labels by copies in which only this share of the pixels is known, under random strokes; 254 elsewhere."""
    for path in sorted(labels.iterdir()):
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        rng = np.random.default_rng(int.from_bytes(path.stem.encode(), "big"))
        known = np.zeros(label.shape, np.uint8)
        while known.mean() < share:
            start = rng.integers(0, label.shape[::-1])
            steps = rng.normal(0, 6, (20, 2)).cumsum(axis=0).cumsum(axis=0) / 4
            cv2.polylines(known, [(start + steps).astype(np.int32)], False, 1, thickness=3)
        path.unlink()
        cv2.imwrite(str(path), np.where(known > 0, label, 254))


def score(model: Path, data: Path, chosen: Set) -> dict[str, float]:
    """Scores of a model on a folder of images and labels: `dice` is the mean over the classes, of a binary problem that
    of the foreground; f1 the same inside the field of view; v_rand at the best threshold, as in accuracy.py."""
    from accuracy import RAND_THRESHOLDS, field_of_view

    from trainer.metrics import confusion, object_scores, scores
    from trainer.objects import ObjectCounts
    from unet import Predictor, imaging

    predictor = Predictor.load(model, device="cpu", precision="fp32")
    values, objects = np.array(predictor.class_values), ObjectCounts()
    rand: dict[float, list[float]] = {threshold: [] for threshold in RAND_THRESHOLDS}
    matrix = np.zeros((len(values), len(values)), np.int64)
    labels = {path.stem: path for path in (data / "Training_Labels").iterdir()}
    for path in sorted((data / "Training_Images").iterdir()):
        image = imaging.read(path).pages[0]
        label = cv2.imread(str(labels[path.stem]), cv2.IMREAD_UNCHANGED)
        mask = predictor.mask(image)
        if "ap50" in chosen.scores:
            objects.add(separated(predictor, image), label)
            label = np.where(label > 0, 255, 0)
        inside = field_of_view(image) if "f1" in chosen.scores else np.isin(label, values)
        truth, found = (np.searchsorted(values, each[inside]) for each in (label, mask))
        matrix += confusion(found, truth, len(values))
        if "v_rand" in chosen.scores:
            probabilities = predictor(image)
            for threshold in RAND_THRESHOLDS:
                if each := object_scores(probabilities, label > 0, threshold):
                    rand[threshold].append(each["rand"])
    result = scores(matrix)
    dice = float(result.dice[1] if predictor.binary else np.nanmean(result.dice))
    found = {"dice": dice, "f1": dice, "pixel error": result.pixel_error, "threshold": predictor.threshold}
    found |= {"v_rand": max(float(np.mean(each)) for each in rand.values())} if "v_rand" in chosen.scores else {}
    found |= {f"dice {value}": each for value, each in zip(values.tolist(), result.dice, strict=True)}
    found["dice of the worst class"] = float(np.nanmin(result.dice))
    if "ap50" in chosen.scores:
        found |= {name.replace("_", ""): each for name, each in objects.scores().items()}
    return found


def separated(predictor: Any, image: Array) -> Array:
    """Ids (H, W) of the objects in an image, as `output=labels` has them."""
    from unet.outputs.labels import separate

    planes = np.atleast_3d(predictor.predict(image, "objects").T).T
    inside = planes[1] if predictor.objects else None
    return separate(planes[0], inside, predictor.threshold, predictor.min_area)


def _cell(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


if __name__ == "__main__":
    main()
