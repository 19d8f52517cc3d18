"""`--init-from`: what is taken of another model, and what is new."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from trainer_runs import last_weights, train

from trainer import initial
from trainer.recipes import RECIPES
from trainer.settings import TrainSettings
from unet import NetworkConfig
from unet import checkpoint as checkpoints
from unet.errors import UserError

Make = Callable[..., Path]


def transferred(path: Path, **network: int) -> tuple[torch.nn.Module, str]:
    """A new network for other data, with what it takes from the file."""
    source = checkpoints.load(path)
    built = NetworkConfig(**{"base_channels": 4, **network}).build().eval()
    return built, initial.transfer(built, source, path.name)


def test_a_network_for_the_same_channels_and_classes_takes_all(make_checkpoint: Make) -> None:
    path = make_checkpoint(n_channels=3, n_classes=4)
    network, said = transferred(path, n_channels=3, n_classes=4)
    n = len(network.state_dict())
    assert said == f"{n} of {n} weights from best_model.pth (10, 11, 12, 13; base 4)"
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(network(x), checkpoints.load(path).build()(x))


@pytest.mark.parametrize(("then", "now"), [(1, 3), (3, 1), (3, 5)])
def test_the_first_convolution_is_adapted_so_that_grey_pictures_look_the_same(
    make_checkpoint: Make, then: int, now: int
) -> None:
    path = make_checkpoint(n_channels=then)
    network, said = transferred(path, n_channels=now)
    assert said.endswith(f"; adapted: inc, from {then} channels to {now}")
    grey = torch.rand(1, 1, 32, 32)
    before, after = checkpoints.load(path).build()(grey.expand(1, then, -1, -1)), network(grey.expand(1, now, -1, -1))
    assert torch.allclose(before, after, atol=1e-5)


def test_the_head_is_new_for_other_classes(make_checkpoint: Make) -> None:
    path = make_checkpoint(n_classes=1)
    network, said = transferred(path, n_classes=3)
    n = len(network.state_dict())
    assert said == f"{n - 2} of {n} weights from best_model.pth (background, foreground; base 4); new: outc"
    weights, source = network.state_dict(), checkpoints.load(path).state_dict
    assert all(torch.equal(weights[name], source[name]) for name in source if not name.startswith("outc"))


def test_the_architecture_is_that_of_the_file(make_checkpoint: Make) -> None:
    path = make_checkpoint(variant="pytorch-unet", bilinear=True, conv_bias=True)
    source, recipe = initial.load(TrainSettings(init_from=path), RECIPES["default"])
    assert source
    assert source.network.variant == "pytorch-unet"
    assert (recipe.variant, recipe.bilinear, recipe.base_channels, recipe.conv_bias) == ("pytorch-unet", True, 4, True)
    assert recipe.augmentation == RECIPES["default"].augmentation


def test_a_bare_state_dict_is_taken_as_well(make_checkpoint: Make, tmp_path: Path) -> None:
    bare = tmp_path / "bare.pth"
    torch.save(checkpoints.load(make_checkpoint(n_channels=3)).state_dict, bare)
    source, recipe = initial.load(TrainSettings(init_from=bare), RECIPES["default"])
    assert source
    assert source.network.n_channels == 3
    assert recipe.base_channels == 4


def test_flags_that_ask_for_another_architecture_are_refused(make_checkpoint: Make, tmp_path: Path) -> None:
    path = make_checkpoint()
    same_width = TrainSettings(init_from=path, base_channels=4)
    assert initial.load(same_width, same_width.resolved_recipe())[1].base_channels == 4
    with pytest.raises(UserError, match=r"--base-channels 8: .*best_model.pth has 4,.*leave --base-channels out"):
        initial.load(TrainSettings(init_from=path, base_channels=8), RECIPES["default"])
    with pytest.raises(UserError, match=r"--recipe paper: .*variant tutorial; expected --recipe default, quick"):
        initial.load(TrainSettings(init_from=path), RECIPES["paper"])
    with pytest.raises(UserError, match=r"expected a file outside --out"):
        initial.load(TrainSettings(init_from=path, out=tmp_path), RECIPES["default"])


def test_a_run_starts_from_the_file_and_a_resumed_one_from_its_own_weights(
    data: Path, make_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = make_checkpoint(bilinear=False, conv_bias=False), tmp_path / "out"
    run = {"data": data, "out": out, "base_channels": 4, "lr": 1e-30, "init_from": path}
    assert train(**run) == 0
    said = capsys.readouterr().out
    assert re.search(rf"^start     (\d+) of \1 weights from {path} \(background, foreground; base 4\)$", said, re.M)
    # a rate so small changes no weight, only the statistics of batch norm
    weights = last_weights(out)
    for name, weight in checkpoints.load(path).build().named_parameters():
        assert torch.allclose(weights[name], weight, rtol=0, atol=1e-20)

    assert train(**run, epochs=1) == 0
    assert "already finished" in capsys.readouterr().out
    other = make_checkpoint("other.pth", seed=1, bilinear=False, conv_bias=False)
    assert train(**{**run, "init_from": other}) == 2
    first, second = (checkpoints.load(each).id for each in (path, other))
    assert f"init_from: was {first}, is {second}" in capsys.readouterr().err
