"""Which device computes, and in which precision."""

import platform
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import torch

DeviceChoice = Literal["auto", "cpu", "cuda"]
PrecisionChoice = Literal["auto", "fp32", "bf16", "int8"]
Precision = Literal["fp32", "bf16", "int8"]


class DeviceError(ValueError):
    """A device or precision that is not there, or none at all."""


def resolve_device(choice: DeviceChoice) -> torch.device:
    """`auto` is the GPU if there is one. Raises DeviceError for `cuda` without one."""
    _check("device", choice, get_args(DeviceChoice))
    if choice == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if choice == "cuda":
        raise DeviceError("device cuda: no CUDA GPU can be used here; expected one, or device auto or cpu")
    return torch.device("cpu")


def resolve_precision(choice: PrecisionChoice, device: torch.device) -> Precision:
    """`auto` is bfloat16 where the device is fast at it, else float32. Raises DeviceError for `int8` where it is not
    computed."""
    _check("precision", choice, get_args(PrecisionChoice))
    if choice == "int8" and not (device.type == "cpu" and _computes_int8()):
        found = device_name(device)
        raise DeviceError(f"precision int8: expected device cpu, an x86 processor with AVX2 or later; found {found}")
    if choice != "auto":
        return choice
    return "bf16" if fast_bf16(device) else "fp32"


def _check(what: str, choice: str, choices: tuple[str, ...]) -> None:
    if choice not in choices:
        raise DeviceError(f"{what}: expected {', '.join(choices[:-1])} or {choices[-1]}, found {choice!r}")


def fast_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16, so that it is faster at it than at float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpuinfo("flags").split())


def _computes_int8() -> bool:
    onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return onednn and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def has_vnni() -> bool:
    """Whether the processor adds up four products of 8 bits at once, in 32 bits."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(_cpuinfo("flags").split())


def out_of_memory(error: BaseException) -> bool:
    """Of a GPU's, or of the system's, which torch and oneDNN have no exception of their own for."""
    said = ("can't allocate memory", "could not create a primitive", "could not create a memory object")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(each in str(error) for each in said)


def device_name(device: torch.device) -> str:
    """What the maker calls it, such as "NVIDIA H200" or "AMD EPYC 9575F 64-Core Processor"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpuinfo("model name") or platform.processor() or platform.machine()


@cache
def _cpuinfo(field: str) -> str:
    """What Linux says of the first processor; empty elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
