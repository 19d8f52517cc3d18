"""The checkpoint file: its contents, atomic writing, and refusal of damaged or unsuitable files."""

import os
import pickle
import resource
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unet import checkpoint as checkpoints
from unet.checkpoint import CheckpointError
from unet.files import replace_atomically

Make = Callable[..., Path]


def test_a_saved_checkpoint_is_loaded_unchanged(make_checkpoint: Make) -> None:
    path = make_checkpoint(n_channels=3, n_classes=4, bilinear=False)
    checkpoint = checkpoints.load(path)
    assert checkpoint.network.n_classes == 4
    assert checkpoint.class_values == (10, 11, 12, 13)
    assert checkpoint.training == {"epoch": 7, "score": 0.5}
    assert len(checkpoint.id) == 12
    network = checkpoint.build()
    assert not network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, checkpoint.state_dict[name])


def test_safe_loading_finds_the_documented_entries(make_checkpoint: Make) -> None:
    content = torch.load(make_checkpoint(), weights_only=True)
    assert content["format"] == 2
    assert content["network"]["base_channels"] == 4
    preprocessing = {
        "input_range": "0-1",
        "standardise": False,
        "size_multiple": 16,
        "scale": 1.0,
        "upright": False,
        "channel": None,
    }
    assert content["preprocessing"] == preprocessing
    assert content["class_values"] == [0, 255]
    assert content["class_names"] == ["background", "foreground"]
    assert content["class_colours"] == [[0, 0, 0], [255, 138, 0]]
    assert (content["objects"], content["min_area"]) == (False, 1)
    assert content["threshold"] == 0.5
    assert set(content) == {
        "format",
        "network",
        "preprocessing",
        "class_values",
        "class_names",
        "class_colours",
        "threshold",
        "objects",
        "min_area",
        "training",
        "likeness",
        "state_dict",
    }


def test_a_file_of_format_1_is_loaded(make_checkpoint: Make) -> None:
    path = make_checkpoint(n_classes=3)
    content = torch.load(path, weights_only=True) | {"format": 1}
    for name in ("class_names", "class_colours", "objects", "min_area"):
        del content[name]
    del content["preprocessing"]["scale"]
    torch.save(content, path)
    checkpoint = checkpoints.load(path)
    assert checkpoint.class_names == ("10", "11", "12")
    assert checkpoint.class_colours[0] == (0, 0, 0)
    assert (checkpoint.objects, checkpoint.min_area, checkpoint.preprocessing.scale) == (False, 1, 1)


def test_a_file_without_a_channel_is_loaded(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    content = torch.load(path, weights_only=True)
    del content["preprocessing"]["channel"]
    torch.save(content, path)
    assert checkpoints.load(path).preprocessing.channel is None


def test_names_colours_and_objects_are_kept(make_checkpoint: Make) -> None:
    path = make_checkpoint(n_classes=3)
    told = {
        "class_values": (0, 255),
        "class_names": ("ground", "cell"),
        "class_colours": ((0, 0, 0), (1, 2, 3)),
        "objects": True,
        "min_area": 21,
    }
    checkpoints.save(replace(checkpoints.load(path), **told), path)
    again = checkpoints.load(path)
    assert {name: getattr(again, name) for name in told} == told


def test_the_file_is_readable_by_other_users_and_leaves_no_temporary_files(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Writing beyond this many bytes fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_names_the_file_and_keeps_the_old_one(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    before = path.read_bytes()
    checkpoint = checkpoints.load(path)
    with files_up_to(10_000), pytest.raises(OSError, match="cannot be written: File too large") as failed:
        checkpoints.save(checkpoint, path)
    assert failed.value.filename == str(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_new_file_is_synced_to_disk_before_it_replaces_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    write, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: order.append("fsync") or write(file))
    monkeypatch.setattr(os, "replace", lambda *names: order.append("replace") or rename(*names))
    replace_atomically(tmp_path / "new", b"content")
    assert order == ["fsync", "replace"]
    assert (tmp_path / "new").read_bytes() == b"content"


@pytest.mark.slow
def test_readers_during_200_saves_see_whole_files(make_checkpoint: Make) -> None:
    path = make_checkpoint(base_channels=1)
    checkpoint = checkpoints.load(path)
    saved, seen = {path.read_bytes()}, set()

    def save() -> None:
        for k in range(200):
            checkpoints.save(replace(checkpoint, threshold=k / 400), path)
            saved.add(path.read_bytes())

    with ThreadPoolExecutor() as threads:
        saving = threads.submit(save)
        while not saving.done():
            seen.add(path.read_bytes())
        saving.result()
    assert len(saved) == 201
    assert len(seen) > 10
    assert seen <= saved
    assert list(path.parent.iterdir()) == [path]


class Unknown:
    """Class that safe loading does not accept."""


def edit(path: Path, **changes: Any) -> None:
    """Replaces entries of the file."""
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)


def edit_weight(path: Path, change: Callable[[torch.Tensor], object]) -> None:
    """Replaces the first weight in the file."""
    name = "inc.double_conv.0.weight"
    weights = torch.load(path, weights_only=True)["state_dict"]
    edit(path, state_dict=weights | {name: change(weights[name])})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: p.unlink(), "no such file"),
        (lambda p: p.write_bytes(b""), "damaged"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1000]), "damaged"),
        (lambda p: p.write_bytes(b"<html>not found</html>"), "damaged"),
        (lambda p: p.write_bytes(pickle.dumps(Unknown())), "something else"),
        (lambda p: torch.save({"args": Unknown()}, p), r"holds test_checkpoint\.Unknown, .*save the weights alone"),
        (lambda p: torch.save(torch.nn.Conv2d(1, 1, 1), p), r"holds torch\.nn\S*Conv2d, .*save the weights alone"),
        (lambda p: torch.save([1, 2], p), "found list"),
        (lambda p: edit(p, format=99), "expected format 1 or 2, found 99"),
        (lambda p: edit(p, class_names=["a"]), "class_names: expected 2 texts"),
        (lambda p: edit(p, class_names=["a", 3]), "class_names: expected 2 texts"),
        (lambda p: edit(p, class_colours=[[0, 0, 0]]), "class_colours: expected 2 triples"),
        (lambda p: edit(p, class_colours=[[0, 0, 0], [0, 0, 256]]), "class_colours: expected 2 triples"),
        (lambda p: edit(p, objects=True), "objects: expected a network of 3 classes, found 1"),
        (lambda p: edit(p, min_area=0.5), "min_area: expected a whole number of pixels, found 0.5"),
        (lambda p: edit(p, threshold=7.0), "threshold: expected 0..1"),
        (lambda p: edit(p, class_values=[1, 2, 3]), "class_values: expected 2"),
        (lambda p: edit(p, network={"base_channels": 8}), "weights do not fit"),
        (lambda p: edit(p, network={"width": 8}), "width"),
        (lambda p: edit(p, state_dict={}), "weights do not fit"),
        (lambda p: edit_weight(p, lambda _: 3), "found int"),
        (lambda p: edit_weight(p, lambda weight: weight.to_sparse()), "weight: expected .*, found .* sparse"),
        (lambda p: edit_weight(p, lambda weight: weight.long()), "found .* whole numbers"),
        (lambda p: edit_weight(p, lambda weight: weight + 0j), "found .* complex"),
        (lambda p: edit(p, threshold=torch.tensor([0.5, 0.5])), "ambiguous"),
        (lambda p: edit(p, class_values=[0.5, 255.0]), "class_values: expected 2 whole numbers"),
        (lambda p: edit(p, training={"epoch": "three"}), "training: expected a number as epoch, found 'three'"),
        (lambda p: edit(p, training={"time": 3}), "training: expected text as time, found 3"),
        (lambda p: edit(p, training={"data": {"images": "4"}}), "training: expected a number of images, found '4'"),
        (lambda p: edit(p, training=[1]), "get"),
        (lambda p: edit(p, network={"base_channels": 2**40}), "overflow|too large|Storage|size"),
    ],
)
def test_an_unusable_file_is_refused_with_the_reason(
    make_checkpoint: Make, damage: Callable[[Path], Any], reason: str
) -> None:
    path = make_checkpoint()
    damage(path)
    with pytest.raises(CheckpointError, match=reason) as refused:
        checkpoints.load(path)
    assert str(path) in str(refused.value)


def test_a_file_half_overwritten_by_another_is_damaged(make_checkpoint: Make) -> None:
    old, new = (make_checkpoint(f"{seed}.pth", seed=seed).read_bytes() for seed in (1, 2))
    path = make_checkpoint()
    path.write_bytes(new[: len(new) // 2] + old[len(new) // 2 :])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load(path)


def test_a_flipped_bit_of_a_weight_is_detected(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    data = bytearray(path.read_bytes())
    weight = checkpoints.load(path).state_dict["up1.conv.double_conv.0.weight"].numpy().tobytes()
    data[data.index(weight) + 1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load(path)


def test_files_without_checksums_are_loaded(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    content = torch.load(path, weights_only=True)
    torch.save(content, path, _use_new_zipfile_serialization=False)  # as torch did before 1.6
    assert checkpoints.load(path).threshold == 0.5
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert checkpoints.load(path).threshold == 0.5


def test_weights_with_nan_are_refused(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    content = torch.load(path, weights_only=True)
    content["state_dict"]["outc.conv.bias"][0] = float("nan")
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="finite"):
        checkpoints.load(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="directory"):
        checkpoints.load(tmp_path)
