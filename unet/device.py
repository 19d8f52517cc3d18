"""Which device computes, and in which precision."""

import platform
from pathlib import Path
from typing import Literal

import torch

DeviceChoice = Literal["auto", "cpu", "cuda"]
PrecisionChoice = Literal["auto", "fp32", "bf16"]
Precision = Literal["fp32", "bf16"]


class DeviceError(ValueError):
    """The device that was asked for is not there."""


def resolve_device(choice: DeviceChoice) -> torch.device:
    """`auto` is the GPU if there is one. Raises DeviceError for `cuda` without one."""
    if choice == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if choice == "cuda":
        raise DeviceError("device cuda: no CUDA GPU can be used here; expected one, or device auto or cpu")
    return torch.device("cpu")


def resolve_precision(choice: PrecisionChoice, device: torch.device) -> Precision:
    """`auto` is bfloat16 on a GPU that computes it, else float32."""
    if choice != "auto":
        return choice
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def device_name(device: torch.device) -> str:
    """What the maker calls it, such as "NVIDIA H200" or "AMD EPYC 9575F 64-Core Processor"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
