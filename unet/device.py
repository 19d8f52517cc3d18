"""The device and the precision that a network computes in."""

import platform
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import torch

from unet.errors import UserError

DeviceChoice = str
"""`auto`, `cpu`, `cuda`, `cuda:1`, `mps`: any device string of torch."""
PrecisionChoice = Literal["auto", "fp32", "bf16"]
Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class DeviceError(UserError):
    """A device or precision that is not available, or an unknown name."""


def resolve_device(choice: DeviceChoice = "auto") -> torch.device:
    """The named device; `auto`: the accelerator, where there is one, else the CPU. Raises DeviceError."""
    if choice == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        choice = str(accelerator) if accelerator else "cpu"
    try:
        device = torch.device(choice)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise DeviceError(
            f"--device {choice}: expected auto, cpu, or an accelerator that works here; found: {reason}"
        ) from error
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def resolve_precision(choice: PrecisionChoice, device: torch.device) -> Precision:
    """`auto`: bfloat16 where the device is fast at it, else float32. Raises DeviceError for an unknown name."""
    if choice not in get_args(PrecisionChoice):
        raise DeviceError(f"--precision: expected auto, fp32 or bf16, found {choice!r}")
    if choice != "auto":
        return choice
    return "bf16" if fast_bf16(device) else "fp32"


def fast_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 instructions, so that it is faster at it than at float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpuinfo("flags").split())


def out_of_memory(error: BaseException) -> bool:
    """Whether the device or the system ran out of memory; torch and oneDNN have no exception of their own for the
    latter."""
    messages = ("can't allocate memory", "could not create a primitive", "could not create a memory object")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in messages)


def device_name(device: torch.device) -> str:
    """The maker's name, such as "NVIDIA H200" or "AMD EPYC 9575F 64-Core Processor"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def describe_choice(choice: DeviceChoice, device: torch.device) -> str:
    """The device that a choice has led to, and that `auto` has found no accelerator."""
    fallback = " (no GPU can be used here)" if choice == "auto" and device.type == "cpu" else ""
    return f"{device_name(device)}{fallback}"


@cache
def _cpuinfo(field: str) -> str:
    """A field of the first processor in Linux' /proc/cpuinfo; empty elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
