"""`--curve`: whether more images would help."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import png
from trainer_runs import contents, train

from trainer import curve
from trainer.curve import Point
from trainer.data import Sample
from trainer.inputs import Division
from trainer.settings import TrainSettings
from unet.errors import UserError


def points(*scores: float, first: int = 8, noise: float = 0.01) -> list[Point]:
    """Runs with twice as many images each, on four held-out images that gain the same but for noise."""
    spread = noise * np.array([1, -1, 1, -1])
    return [
        Point(first * 2**i, score, [score + float(each) * (i % 2) for each in spread]) for i, score in enumerate(scores)
    ]


def samples(n: int, *empty: int) -> list[Sample]:
    """Samples with two classes each, but for those that have one."""
    label = np.arange(4, dtype=np.uint8).reshape(2, 2) % 2
    return [Sample(str(i), np.zeros((2, 2), np.uint8), label * (i not in empty)) for i in range(n)]


@pytest.mark.parametrize(("a", "b", "c"), [(0.95, 0.4, 0.5), (0.9, 1.0, 1.0), (0.99, 0.3, 0.25)])
def test_a_power_law_is_found(a: float, b: float, c: float) -> None:
    scores = [a - b * n**-c for n in (8, 16, 32)]
    assert curve.fit(points(*scores)) == pytest.approx((a, b, c), abs=1e-6)
    assert curve.forecast(points(*scores)) == pytest.approx(a - b * 64**-c)


def test_two_points_forecast_less_than_they_gained() -> None:
    assert curve.forecast(points(0.86, 0.90)) == pytest.approx(0.90 + 0.04 / np.sqrt(2))
    assert curve.forecast(points(0.5, 0.95)) < 1  # no score is above 1


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (points(0.80, 0.86, 0.90), "8 images: 0.80; 16: 0.86; 32: 0.90; 64 would give about 0.93"),
        (points(0.86, 0.90), "8 images: 0.86; 16: 0.90; 32 would give about 0.93"),
        (
            points(0.86, 0.90, 0.901),
            "8 images: 0.86; 16: 0.90; 32: 0.90. The last step gained 0.001 ± 0.006 on the held-out images: more "
            "images of the same kind will hardly help",
        ),
        (
            points(0.86, 0.88, noise=0.1),
            "8 images: 0.86; 16: 0.88. The last step gained 0.020 ± 0.058 on the held-out images: they differ too "
            "much to tell whether more images would help",
        ),
        (
            [Point(1, 0.8, [0.8]), Point(2, 0.9, [0.9])],
            "1 image: 0.80; 2: 0.90. That is on a single held-out image: too little to tell whether more images "
            "would help",
        ),
    ],
)
def test_no_more_is_said_than_the_runs_support(runs: list[Point], said: str) -> None:
    assert curve.sentence(runs) == said


def test_each_part_of_the_images_is_in_the_next_and_is_spread() -> None:
    names = [[each.name for each in part] for part in curve.subsets(samples(8))]
    assert names == [["0", "4"], ["0", "2", "4", "6"], [str(i) for i in range(8)]]
    assert [len(part) for part in curve.subsets(samples(2))] == [1, 2]
    few = [[each.name for each in part] for part in curve.subsets(samples(4, 0, 1, 2))]
    assert few == [["3"], ["1", "3"], ["0", "1", "2", "3"]]  # the first one has something to learn


def test_the_same_images_are_held_out_in_all_runs() -> None:
    held_out = samples(2)
    division = Division(samples(8), held_out, "spread", held_out_until=0.6)
    runs = curve.parts(TrainSettings(out=Path("model")), division)
    assert [str(settings.out) for settings, _ in runs] == ["model/curve/2", "model/curve/4", "model"]
    assert all(part.validation is held_out and part.held_out_until == 1 for _, part in runs)
    with pytest.raises(UserError, match="expected at least 2 images to train on"):
        curve.parts(TrainSettings(), Division(samples(1), held_out, "spread", held_out_until=0.6))


@pytest.mark.slow
def test_a_curve_is_written_beside_the_model_of_all_images(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for i in (0, 1):  # with these, three images to train on and two to validate on
        for part in ("Training_Images", "Training_Labels"):
            (data / part / f"{i + 4}.png").write_bytes((data / part / f"{i}.png").read_bytes())
    (data / "Training_Images" / "3.png").write_bytes(png(np.full((40, 48), 9, np.uint8)))
    run = {"data": data, "out": out, "val_fraction": 0.5}
    assert train("--curve", **run) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    report = json.loads((out / "report.json").read_text())
    assert said == f"curve     {report['curve']['says']}"
    assert [point["images"] for point in report["curve"]["points"]] == [1, 2, 3]
    assert report["curve"]["points"][-1]["score"] == report["score"]
    rows = (out / "curve.csv").read_text().splitlines()
    assert rows[0] == "images,score,score_error"
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2", "3"]
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    for folder in (out / "curve" / "1", out / "curve" / "2", out):
        assert {"best_model.pth", "last.pth", "report.json"} <= contents(folder).keys()

    before = contents(out)
    assert train("--curve", **run) == 0  # a finished one is left as it is
    assert capsys.readouterr().out.splitlines()[-1] == said
    assert contents(out) == before
    (out / "report.json").unlink()
    (out / "last.pth").unlink()
    (out / "best_model.pth").unlink()
    assert train("--curve", **run) == 0  # only the last run is repeated
    printed = capsys.readouterr().out
    assert printed.count("already finished") == 2
    assert printed.splitlines()[-1] == said
