"""Devices and precisions: the choice of each, and refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unet import Predictor
from unet.device import DeviceError, device_name, fast_bf16, resolve_device, resolve_precision

CPU = torch.device("cpu")


def test_auto_is_the_accelerator_or_the_cpu() -> None:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    assert resolve_device("auto").type == (accelerator.type if accelerator else "cpu")


@pytest.mark.parametrize("choice", ["cuda:99", "tpu", ""])
def test_a_device_that_is_not_there_is_refused(choice: str) -> None:
    with pytest.raises(DeviceError, match=f"--device {choice}: expected auto, cpu, or an accelerator that works here"):
        resolve_device(choice)


def test_auto_precision_is_bfloat16_where_the_device_is_fast_at_it() -> None:
    assert resolve_precision("auto", CPU) == ("bf16" if fast_bf16(CPU) else "fp32")
    assert resolve_precision("bf16", CPU) == "bf16"


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(DeviceError, match="expected auto, fp32 or bf16, found 'fp16'"):
        resolve_precision("fp16", CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("choice", [{"device": "cuda:99"}, {"precision": "fp16"}])
def test_loading_a_predictor_refuses_them_too(make_checkpoint: Callable[..., Path], choice: dict[str, Any]) -> None:
    with pytest.raises(DeviceError):
        Predictor.load(make_checkpoint(), **choice)


def test_the_cpu_has_a_name() -> None:
    assert device_name(CPU)
