"""What to annotate next: uncertain images unlike those that are annotated come first."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import picture, png
from trainer_runs import train

from trainer import suggest
from unet import Predictor, imaging
from unet.pixels import Preprocessing

Make = Callable[..., Path]


class Answers(Predictor):
    """A predictor that takes the image, 0..255, for its answer of the foreground, whatever way up it is."""

    def __call__(self, image: Any, *, tta: bool = False) -> Any:
        return np.asarray(image, np.float32) / 255


@pytest.fixture
def network(make_checkpoint: Make) -> Predictor:
    return Predictor.load(make_checkpoint(), device="cpu", precision="fp32")


def test_views_that_agree_leave_no_doubt(network: Predictor, rng: np.random.Generator) -> None:
    same = Answers(network.network, Preprocessing())
    image = rng.integers(0, 256, (20, 30), np.uint8)  # undecided pixels are no disagreement
    assert suggest.disagreement(same, image).shape == (20, 30)
    assert suggest.disagreement(same, image) == pytest.approx(0, abs=1e-6)


def test_views_that_contradict_each_other_are_a_doubt_of_one_bit(network: Predictor) -> None:
    class Contradicts(Predictor):
        """Certain of foreground and of background by turns; elsewhere than in the middle of background always."""

        calls = 0

        def __call__(self, image: Any, *, tta: bool = False) -> Any:
            self.calls += 1
            answer = np.zeros(image.shape[:2], np.float32)
            answer[8:12, 8:12] = self.calls % 2
            return answer

    found = suggest.disagreement(Contradicts(network.network, Preprocessing()), np.zeros((20, 20), np.uint8))
    assert found[8:12, 8:12] == pytest.approx(1)
    assert found.sum() == pytest.approx(16)


def test_one_uncertain_region_counts_and_one_uncertain_pixel_does_not() -> None:
    pixel, region = np.zeros((2, 400, 400), np.float32)
    pixel[200, 200] = 1
    region[:64, -64:] = 0.5
    assert suggest.average_by_region(pixel).max() == pytest.approx(1 / 64**2)
    assert suggest.average_by_region(region).max() == pytest.approx(0.5)


def test_like_images_are_suggested_one_after_the_other() -> None:
    a, b = np.array([0.0, 1.0]), np.array([9.0, -3.0])
    uncertainty = [0.50, 0.49, 0.10, 0.60]
    order = suggest.rank(uncertainty, [a, a, b, b * 3], known=[b * 3])
    assert [i for i, _ in order] == [0, 2, 1, 3]  # 1 is the same as 0, and 3 is annotated already
    assert dict(order)[1] == dict(order)[3] == 1
    assert suggest.rank([0.1], [a], known=[]) == [(0, 0)]
    assert suggest.rank([], [], known=[a]) == []


@pytest.mark.parametrize(
    ("network_kind", "side"), [({}, 3), ({"n_classes": 3}, 70), ({"variant": "paper", "bilinear": False}, 20)]
)
def test_images_of_any_size_are_described_by_any_network(
    make_checkpoint: Make, rng: np.random.Generator, network_kind: dict[str, Any], side: int
) -> None:
    predictor = Predictor.load(make_checkpoint(**network_kind), device="cpu", precision="fp32")
    image = rng.integers(0, 256, (side, side + 7), np.uint8)
    features = suggest.bottom_features(predictor, image)
    assert features.shape == (2 * predictor.network.down4.maxpool_conv[1].double_conv[0].out_channels,)
    assert np.isfinite(features).all()
    found = suggest.disagreement(predictor, image)
    assert found.shape == image.shape
    assert 0 < found.max() <= 1


def test_unusable_and_large_images_are_named(
    network: Predictor, rng: np.random.Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "unlabelled", tmp_path / "out"
    (folder / "more").mkdir(parents=True)
    out.mkdir()
    pages = rng.integers(0, 256, (2, 32, 40), np.uint8)
    (folder / "stack.tif").write_bytes(imaging.write_tiff(list(pages)))
    (folder / "more" / "large.png").write_bytes(png(rng.integers(0, 256, (16, 600), np.uint8)))
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    found = suggest.suggest(network, folder, out, [pages[0]])
    assert {each.file for each in found} == {"stack.tif page 1", "stack.tif page 2", "more/large.png"}
    assert found[-1].file == "stack.tif page 1"  # it is annotated
    assert found[-1].similarity == pytest.approx(1)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    said = capsys.readouterr().out
    assert "of 1 large ones among 3 images only the middle was looked at" in said
    assert "left out: broken.png: " in said

    rows = [line.split(",") for line in (out / "next.csv").read_text().splitlines()]
    assert rows[0] == ["rank", "file", "score", "uncertainty", "similarity"]
    assert [row[:2] for row in rows[1:]] == [[str(i), each.file] for i, each in enumerate(found, 1)]
    assert picture((out / "next.png").read_bytes()).ndim == 3

    assert len(suggest.suggest(network, folder, out, [], seconds=0)) == 0
    assert "3 of 3 files, chosen at random, were not looked at" in capsys.readouterr().out


def test_a_run_with_unlabelled_images_says_which_to_annotate(
    data: Path, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    unlabelled, out = tmp_path / "unlabelled", tmp_path / "out"
    unlabelled.mkdir()
    (unlabelled / "known.png").write_bytes((data / "Training_Images" / "0.png").read_bytes())
    (unlabelled / "other.png").write_bytes(png(rng.integers(0, 256, (40, 48), np.uint8)))
    assert train(data=data, out=out, unlabelled=unlabelled) == 0
    assert "next      annotate first: other.png, known.png (see " in capsys.readouterr().out
    first, second = json.loads((out / "report.json").read_text())["next"]
    assert first["file"] == "other.png"
    assert first["score"] == pytest.approx(first["uncertainty"] * (1 - first["similarity"]))
    assert second["similarity"] == pytest.approx(1)
    assert (out / "next.csv").exists()
    assert (out / "next.png").exists()
