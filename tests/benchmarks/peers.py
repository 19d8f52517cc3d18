"""Other programs on the benchmark of few images:  python tests/benchmarks/peers.py DATA --out DIR

Trains nnU-Net v2 and the Unet of segmentation-models-pytorch on the images that few.py trains on, each for `--minutes`
of CPU time (start it with OMP_NUM_THREADS=1), and scores them with its functions. Needs packages that the project does
not: nnunetv2, segmentation-models-pytorch.

nnunet: the 2d configuration as nnU-Net plans it for `--gpu-memory-target` GB (its own flag; for its default of 8 GB it
plans pairs of 1024 x 1024 for vnc, which take a core more than half a minute a step), fold "all", its trainer,
augmentation, and sliding window with mirroring; but 20 epochs of as many iterations as the time allows, with one
validation batch each, and the last weights. Planning and preprocessing come on top of the time.
smp: Unet with a resnet34 encoder, no pretrained weights; images to mean 0 and deviation 1, crops of 256 x 256 in
batches of 4, flips and quarter turns; Dice loss + cross-entropy, AdamW at 1e-3 falling to 0 by a cosine.
Both learn foreground / background where there are object ids. Objects are the components of the foreground; in a second
row they are cut at necks, this project's way for such models. In both, specks are left out as this project does.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import few
import numpy as np
import torch
from skimage.io import imsave
from torch.nn import functional

from trainer.data import DataSet, read_folder
from trainer.data.labels import Reading
from trainer.inputs import smallest_object
from unet import imaging
from unet.pixels import match_channels

Array = few.Array
Learned = tuple[Callable[[Array], Array], int]  # what gives an image's probabilities (classes, H, W); training steps
PACKAGES = {"nnunet": "nnunetv2", "smp": "segmentation-models-pytorch"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=["nuclei", "fluorescence", "vnc"], default=["fluorescence", "vnc"])
    parser.add_argument("--peers", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--gpu-memory-target", type=float, default=0.5, help="GB that nnU-Net plans for")
    arguments = parser.parse_args()
    for name in arguments.sets:
        chosen = few.SETS[name]
        print(f"\n| {name}, {arguments.minutes:g} min | n | steps | " + " | ".join(chosen.scores) + " |")
        print("|---" * (len(chosen.scores) + 3) + "|")
        for peer in arguments.peers:
            found = one_run(arguments, name, peer)
            for row, scores in found["scores"].items():
                cells = [f"{PACKAGES[peer]} {found['version']}{row}", str(arguments.n), str(found["steps"])]
                cells += [f"{scores[score]:.3f}" for score in chosen.scores]
                print("| " + " | ".join(cells) + " |", flush=True)


def one_run(arguments: argparse.Namespace, name: str, peer: str) -> dict[str, Any]:
    """Version, steps and scores (by row) of a peer; trained unless its folder has them already."""
    chosen = few.SETS[name]
    out = arguments.out.absolute() / f"{name}-{arguments.n}-{arguments.seed}-{arguments.minutes:g}min-{peer}"
    result = out / "peers.json"
    if not result.exists():
        folder = arguments.data / chosen.folder
        drawn, _, held_out = few.draw(folder, chosen, arguments.n, arguments.seed)
        few.link(folder, chosen.labels, drawn, out / "data")
        few.link(folder, chosen.labels, held_out, out / "held_out")
        objects = "ap50" in chosen.scores
        data = read_folder(out / "data", Reading(labels="instances" if objects else "auto"))
        torch.manual_seed(arguments.seed)
        np.random.seed(arguments.seed)
        probabilities, steps = (nnunet if peer == "nnunet" else smp_unet)(data, out, arguments)
        found = {"version": version(PACKAGES[peer]), "steps": steps, "scores": {}}
        unseen = [imaging.read(path).pages[0] for path in (out / "held_out" / "Training_Images").iterdir()]
        answers = {image.tobytes(): probabilities(image) for image in unseen}
        for row in (", components", ", cut at necks") if objects else ("",):
            peer_answers = Answers(answers, data.class_values, smallest_object(data.samples), row == ", components")
            with mock.patch("unet.Predictor.load", return_value=peer_answers):
                found["scores"][row] = few.score(out, out / "held_out", chosen)
        result.write_text(json.dumps(found, indent=2) + "\n")
    return dict(json.loads(result.read_text()))


@dataclass(frozen=True)
class Answers:
    """What few.score asks of a Predictor, from probabilities (classes, H, W)."""

    probabilities: dict[bytes, Array]  # by the pixels of the image
    class_values: tuple[int, ...]
    min_area: int
    objects: bool  # True: components of the foreground are the objects; False: they are cut at necks
    threshold: float = 0.5

    @property
    def binary(self) -> bool:
        return len(self.class_values) == 2

    def mask(self, image: Array) -> Array:
        return np.array(self.class_values)[self.probabilities[image.tobytes()].argmax(axis=0)]

    def predict(self, image: Array, kind: str) -> Array:
        """Probabilities of the foreground (H, W); with `objects`, (2, H, W): of the insides, too, here the same."""
        foreground = self.probabilities[image.tobytes()][1]
        return np.stack([foreground, foreground]) if self.objects else foreground


def planes(image: Array, n_channels: int) -> Array:
    """Image -> (C, H, W) float32 with the channels that this project's networks get: one if it is grey saved as RGB."""
    return match_channels(np.atleast_3d(image), n_channels).transpose(2, 0, 1).astype(np.float32)


def nnunet(data: DataSet, out: Path, arguments: argparse.Namespace) -> Learned:
    """nnU-Net v2 through the Python functions behind nnUNetv2_plan_and_preprocess, _train and _predict."""
    os.environ |= {f"nnUNet_{part}": str(out / part) for part in ("raw", "preprocessed", "results")}
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
    from nnunetv2.experiment_planning import plan_and_preprocess_api as planning
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class TimedTrainer(nnUNetTrainer):  # type: ignore[misc]
        """The standard trainer, with as many iterations in each epoch as fit the time that is left."""

        steps = 0

        def on_train_epoch_start(self) -> None:
            super().on_train_epoch_start()
            now = time.process_time()
            self.began = self.began if self.steps else now
            each = (now - self.began) / self.steps if self.steps else float("inf")
            left = (self.began + 60 * arguments.minutes - now) / (self.num_epochs - self.current_epoch)
            self.num_iterations_per_epoch = max(1, round(left / each))
            self.steps += self.num_iterations_per_epoch

    name, plans = "Dataset001_few", "nnUNetPlans"
    folder, prepared = out / "raw" / name, out / "preprocessed" / name
    (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
    (folder / "labelsTr").mkdir(exist_ok=True)
    for i, sample in enumerate(data.samples):
        for k, plane in enumerate(planes(sample.image, data.n_channels).round().astype(np.uint8)):
            imsave(folder / "imagesTr" / f"{i:03}_{k:04}.png", plane, check_contrast=False)
        imsave(folder / "labelsTr" / f"{i:03}.png", sample.label, check_contrast=False)
    channels = {k: f"channel {k}" for k in range(data.n_channels)}
    classes = {"background": 0} | {f"class {k}": k for k in range(1, len(data.class_values))}
    generate_dataset_json(str(folder), channels, classes, len(data.samples), ".png", dataset_name=name)
    planning.extract_fingerprints([1], num_processes=1, check_dataset_integrity=True)
    planning.plan_experiments([1], gpu_memory_target_in_gb=arguments.gpu_memory_target, overwrite_plans_name=plans)
    planning.preprocess([1], plans, configurations=("2d",), num_processes=(1,))

    described, planned = (json.loads((prepared / f"{file}.json").read_text()) for file in ("dataset", plans))
    trainer = TimedTrainer(planned | {"continue_training": False}, "2d", "all", described, torch.device("cpu"))
    trainer.num_epochs, trainer.num_val_iterations_per_epoch = 20, 1
    trainer.disable_checkpointing = True  # the last weights are used from memory
    one_process = mock.patch.dict(os.environ, nnUNet_n_proc_DA="0")  # augmentation, too; planning refuses 0
    with one_process, mock.patch.object(trainer.logger, "plot_progress_png"):  # which takes a second of every epoch
        trainer.run_training()

    trainer.set_deep_supervision_enabled(False)
    predictor, mirrored = nnUNetPredictor(device=torch.device("cpu")), trainer.inference_allowed_mirroring_axes
    parts = trainer.network, trainer.plans_manager, trainer.configuration_manager, [trainer.network.state_dict()]
    predictor.manual_initialization(*parts, described, "TimedTrainer", mirrored)

    def probabilities(image: Array) -> Array:
        pixels = planes(image, data.n_channels)[:, None]  # (C, 1, H, W)
        found = predictor.predict_single_npy_array(pixels, {"spacing": (999, 1, 1)}, None, None, True)
        return np.asarray(found[1][:, 0])

    return probabilities, trainer.steps


def smp_unet(data: DataSet, out: Path, arguments: argparse.Namespace) -> Learned:
    """Unet of segmentation-models-pytorch in a plain training loop."""
    import segmentation_models_pytorch as smp

    def standardised(image: Array) -> Array:
        found = planes(image, data.n_channels)
        return (found - found.mean()) / max(float(found.std()), 1e-6)

    whole = [np.concatenate([standardised(each.image), each.label[None]]) for each in data.samples]  # (C + 1, H, W)
    channels, classes = data.n_channels, len(data.class_values)
    model = smp.Unet("resnet34", encoder_weights=None, in_channels=channels, classes=classes)
    optimizer, dice = torch.optim.AdamW(model.parameters(), lr=1e-3), smp.losses.DiceLoss(mode="multiclass")
    started, steps, rng, size = time.process_time(), 0, np.random.default_rng(arguments.seed), 256
    model.train()
    while (done := (time.process_time() - started) / (60 * arguments.minutes)) < 1:
        crops = []
        for i in rng.integers(len(whole), size=4):
            y, x = (rng.integers(side - size + 1) for side in whole[i].shape[1:])
            crop = np.rot90(whole[i][:, y : y + size, x : x + size], rng.integers(4), axes=(1, 2))
            crops.append(crop[:, :, ::-1] if rng.random() < 0.5 else crop)
        batch = torch.from_numpy(np.stack(crops))
        logits, truth = model(batch[:, :-1]), batch[:, -1].long()
        optimizer.zero_grad()
        (dice(logits, truth) + functional.cross_entropy(logits, truth)).backward()
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + np.cos(np.pi * done)) / 2
        optimizer.step()
        steps += 1
    model.eval()

    @torch.inference_mode()
    def probabilities(image: Array) -> Array:
        h, w = image.shape[:2]
        padded = functional.pad(torch.from_numpy(standardised(image))[None], (0, -w % 32, 0, -h % 32), "reflect")
        return np.asarray(model(padded).softmax(dim=1)[0, :, :h, :w].numpy())

    return probabilities, steps


if __name__ == "__main__":
    main()
