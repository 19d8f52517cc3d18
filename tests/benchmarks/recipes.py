"""Recipes against each other at equal time and width:  python tests/benchmarks/recipes.py DATA --minutes 10 --out DIR

Trains each on all but the last fifth of the images and prints the scores on that fifth, as accuracy.py does.
`no-elastic` is `default` without the elastic deformation, `flips` is `default` with the tutorials' augmentation. What
is trained already in DIR is not trained again.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from accuracy import measure

from trainer.augment import Augmentation
from trainer.dataset import read_folder, split
from trainer.recipes import RECIPES
from trainer.run import run
from trainer.settings import TrainSettings
from unet import Predictor

DEFAULT = RECIPES["default"]
VARIANTS = {
    "default": DEFAULT,
    "no-elastic": replace(DEFAULT, augmentation=replace(DEFAULT.augmentation, elastic=0.0)),
    "flips": replace(DEFAULT, augmentation=Augmentation()),
    "tutorial": RECIPES["tutorial"],
    "paper": RECIPES["paper"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--base-channels", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    samples = read_folder(arguments.data).samples
    _, val = split(len(samples), 0.2, "contiguous", 0)

    found = {}
    for name in arguments.variants:
        out = arguments.out / name
        # more epochs than the time has: it is the time that ends a run
        RECIPES["default"] = replace(VARIANTS[name], name="default", epochs=max(200, VARIANTS[name].epochs))
        run(
            TrainSettings(
                data=str(arguments.data),
                out=out,
                max_minutes=arguments.minutes,
                base_channels=arguments.base_channels,
                seed=arguments.seed,
            )
        )
        predictor = Predictor.load(out / "best_model.pth")
        held_out = [samples[i] for i in val]
        found[name] = {tta: measure(predictor, held_out, tta == "averaged") for tta in ("plain", "averaged")}

    columns = ("pixel error", "dice", "auc", "v_rand")
    print(f"\n| {arguments.data.name}, {arguments.minutes:g} minutes | " + " | ".join(columns) + " | v_rand averaged |")
    print("|---" * (len(columns) + 2) + "|")
    for name, scores in found.items():
        cells = [f"{scores['plain'][column]:.4f}" for column in columns] + [f"{scores['averaged']['v_rand']:.4f}"]
        print(f"| {name} | " + " | ".join(cells) + " |")
    (arguments.out / "recipes.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
