"""The checkpoint file: what is in it, who can read it, and what is refused."""

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

Make = Callable[..., Path]


def test_it_comes_back_as_it_was_saved(make_checkpoint: Make) -> None:
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


def test_safe_loading_reads_it_and_finds_what_the_design_promises(make_checkpoint: Make) -> None:
    content = torch.load(make_checkpoint(), weights_only=True)
    assert content["format"] == 1
    assert content["network"]["base_channels"] == 4
    assert content["preprocessing"] == {"input_range": "0-1", "standardise": False, "size_multiple": 16}
    assert content["class_values"] == [0, 255]
    assert content["threshold"] == 0.5
    assert set(content) == {
        "format",
        "network",
        "preprocessing",
        "class_values",
        "threshold",
        "training",
        "state_dict",
    }


def test_another_user_may_read_it_and_nothing_else_is_left_behind(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The system refuses to make files longer than this many bytes, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_names_the_file_and_leaves_the_old_one(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    before = path.read_bytes()
    checkpoint = checkpoints.load(path)
    with files_up_to(10_000), pytest.raises(OSError, match="cannot be written: File too large") as failed:
        checkpoints.save(checkpoint, path)
    assert failed.value.filename == str(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_new_file_is_on_the_disk_before_it_takes_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine may die between the two."""
    order: list[str] = []
    write, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: order.append("fsync") or write(file))
    monkeypatch.setattr(os, "replace", lambda *names: order.append("replace") or rename(*names))
    checkpoints.replace_atomically(tmp_path / "new", b"content")
    assert order == ["fsync", "replace"]
    assert (tmp_path / "new").read_bytes() == b"content"


@pytest.mark.slow
def test_who_reads_during_200_saves_sees_whole_files(make_checkpoint: Make) -> None:
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


class Foreign:
    """Of a module that nobody else has."""


def bare(path: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return weights


def edited_weight(path: Path, edit: Callable[[torch.Tensor], object]) -> None:
    name = "inc.double_conv.0.weight"
    weights = torch.load(path, weights_only=True)["state_dict"]
    edited(path, state_dict=weights | {name: edit(weights[name])})


def edited(path: Path, **changes: Any) -> None:
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: p.unlink(), "no such file"),
        (lambda p: p.write_bytes(b""), "damaged"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1000]), "damaged"),
        (lambda p: p.write_bytes(b"<html>not found</html>"), "damaged"),
        (lambda p: p.write_bytes(pickle.dumps(Foreign())), "something else"),
        (lambda p: torch.save(torch.nn.Conv2d(1, 1, 1), p), "something else"),
        (lambda p: torch.save([1, 2], p), "found list"),
        (lambda p: torch.save({}, p), "not a U-Net .* found 'nothing'"),
        (lambda p: torch.save({"epoch": 3}, p), "'epoch' is no tensor"),
        (lambda p: torch.save({"epoch": 3, "model": bare(p)}, p), "perhaps its entry 'model' is one: torch.save"),
        (lambda p: torch.save({f"net.{k}": v for k, v in bare(p).items()}, p), "found 'net.inc.double_conv.0.weight'"),
        (
            lambda p: torch.save(bare(p) | {"outc.conv.weight": torch.zeros(7)}, p),
            r"expected 4 dimensions, found \(7,\)",
        ),
        (lambda p: torch.save(bare(p) | {"outc.conv.weight": torch.zeros(300, 4, 1, 1)}, p), "at most 256.* found 300"),
        (lambda p: torch.save(torch.nn.Conv2d(1, 1, 1).state_dict(), p), "not a U-Net"),
        (lambda p: edited(p, format=99), "expected format 1, found 99"),
        (lambda p: edited(p, threshold=7.0), "threshold: expected 0..1"),
        (lambda p: edited(p, class_values=[1, 2, 3]), "class_values: expected 2"),
        (lambda p: edited(p, network={"base_channels": 8}), "weights do not fit"),
        (lambda p: edited(p, network={"width": 8}), "width"),
        (lambda p: edited(p, state_dict={}), "weights do not fit"),
        (lambda p: edited_weight(p, lambda _: 3), "found int"),
        (lambda p: edited_weight(p, lambda weight: weight.to_sparse()), "weight: expected .*, found .* sparse"),
        (lambda p: edited_weight(p, lambda weight: weight.long()), "found .* whole numbers"),
        (lambda p: edited_weight(p, lambda weight: weight + 0j), "found .* complex"),
        (lambda p: edited(p, threshold=torch.tensor([0.5, 0.5])), "ambiguous"),
        (lambda p: edited(p, class_values=[0.5, 255.0]), "class_values: expected whole numbers"),
        (lambda p: edited(p, training={"epoch": "three"}), "training: expected a number as epoch, found 'three'"),
        (lambda p: edited(p, training=[1]), "get"),
        (lambda p: edited(p, network={"n_channels": 4}), "expected 1 .grey. or 3 .RGB., found 4"),
        (lambda p: edited(p, network={"base_channels": 2**40}), "overflow|too large|Storage|size"),
    ],
)
def test_a_file_that_is_no_use_is_refused_with_the_reason(
    make_checkpoint: Make, damage: Callable[[Path], Any], reason: str
) -> None:
    path = make_checkpoint()
    damage(path)
    with pytest.raises(CheckpointError, match=reason) as refused:
        checkpoints.load(path)
    assert str(path) in str(refused.value)


def test_one_file_copied_over_another_is_neither(make_checkpoint: Make) -> None:
    old, new = (make_checkpoint(f"{seed}.pth", seed=seed).read_bytes() for seed in (1, 2))
    path = make_checkpoint()
    path.write_bytes(new[: len(new) // 2] + old[len(new) // 2 :])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load(path)


def test_a_flipped_bit_of_a_weight_is_damage(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    data = bytearray(path.read_bytes())
    weight = bare(path)["up1.conv.double_conv.0.weight"].numpy().tobytes()
    data[data.index(weight) + 1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load(path)


def test_files_without_check_sums_are_read(make_checkpoint: Make) -> None:
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


def test_weights_that_are_no_numbers_are_refused(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    content = torch.load(path, weights_only=True)
    content["state_dict"]["outc.conv.bias"][0] = float("nan")
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="finite"):
        checkpoints.load(path)


def test_eight_bits_and_what_is_no_real_number(make_checkpoint: Make, tmp_path: Path) -> None:
    weights = checkpoints.load(make_checkpoint()).state_dict
    for dtype in (torch.float8_e4m3fn, torch.complex64):
        changed = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
        torch.save(changed, tmp_path / f"{dtype}.pth")
    assert checkpoints.load(tmp_path / "torch.float8_e4m3fn.pth").build().outc.conv.weight.dtype == torch.float32
    with pytest.raises(CheckpointError, match="expected"):
        checkpoints.load(tmp_path / "torch.complex64.pth")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="directory"):
        checkpoints.load(tmp_path)
