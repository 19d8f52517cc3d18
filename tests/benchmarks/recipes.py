"""Comparison of recipes at equal width, and equal time or epochs:

    python tests/benchmarks/recipes.py DATA --minutes 10 --out DIR
    python tests/benchmarks/recipes.py DATA --epochs 60 --folds 1 2 3 --out DIR

Each recipe is trained on all but the last fifth of the images, or, once for each of `--folds`, on all but one of six
parts. Prints its scores on the other images, as accuracy.py does, as means over the folds. Models that DIR holds
already are not trained again.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from accuracy import measure

from trainer.data import Augmentation, read_folder, split, split_fold
from trainer.recipes import RECIPES
from trainer.run import run
from trainer.settings import TrainSettings
from unet import Predictor

N_FOLDS = 6
DEFAULT = RECIPES["default"]
VARIANTS = {
    "default": DEFAULT,
    "no-elastic": replace(DEFAULT, augmentation=replace(DEFAULT.augmentation, elastic=0.0)),
    "flips": replace(DEFAULT, augmentation=Augmentation()),
    "borders": replace(DEFAULT, border_weights=True),
    "dice": replace(DEFAULT, loss="ce+dice"),
    "no-dropout": replace(DEFAULT, dropout=0.0),
    "tutorial": RECIPES["tutorial"],
    "paper": RECIPES["paper"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--folds", type=int, nargs="+", choices=range(1, N_FOLDS + 1))
    parser.add_argument("--base-channels", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    samples = read_folder(arguments.data).samples

    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in arguments.variants:
        runs = []
        for fold in arguments.folds or [None]:
            out = arguments.out / (name if fold is None else f"{name}-fold-{fold}")
            RECIPES["default"] = replace(VARIANTS[name], name="default", epochs=arguments.epochs)
            run(
                TrainSettings(
                    data=str(arguments.data),
                    out=out,
                    max_minutes=arguments.minutes,
                    base_channels=arguments.base_channels,
                    seed=arguments.seed,
                    folds=fold and N_FOLDS,
                    fold=fold or 1,
                )
            )
            _, val = (
                split(len(samples), 0.2, "contiguous", 0)
                if fold is None
                else split_fold(len(samples), N_FOLDS, fold, "contiguous", 0)
            )
            predictor = Predictor.load(out / "best_model.pth")
            held_out = [samples[i] for i in val]
            runs.append({tta: measure(predictor, held_out, tta == "averaged") for tta in ("plain", "averaged")})
        found[name] = {
            tta: {column: float(np.mean([scores[tta][column] for scores in runs])) for column in runs[0][tta]}
            for tta in ("plain", "averaged")
        }
        print(f"{name}: {found[name]}", flush=True)

    columns = ("pixel error", "dice", "auc", "v_rand")
    extent = f"{arguments.minutes:g} minutes" if arguments.minutes else f"{arguments.epochs} epochs"
    print(f"\n| {arguments.data.name}, {extent} | " + " | ".join(columns) + " | v_rand averaged |")
    print("|---" * (len(columns) + 2) + "|")
    for name, scores in found.items():
        cells = [f"{scores['plain'][column]:.4f}" for column in columns] + [f"{scores['averaged']['v_rand']:.4f}"]
        print(f"| {name} | " + " | ".join(cells) + " |")
    (arguments.out / "recipes.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
