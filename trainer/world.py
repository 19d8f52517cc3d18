"""Data-parallel training (DDP): the processes that `torchrun -m trainer ...` starts, or the only one.

With `--max-restarts` torchrun starts them again when one dies, also on fewer or more nodes; the run then goes on from
`last.pth`.

Each process computes its share of every batch. DDP averages the gradients, and sums that stand in a denominator of the
loss are taken over all processes, so that N processes learn the same as one. In a single process these functions do
nothing.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from unet.device import resolve_device
from unet.errors import UserError

T = TypeVar("T")


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, 0 to `size() - 1`."""
    return dist.get_rank() if size() > 1 else 0


def is_first() -> bool:
    """True in the process that prints and writes files."""
    return rank() == 0


@contextmanager
def join(choice: str) -> Iterator[torch.device]:
    """Join the processes that torchrun's variables describe; yields the device of this one. Only the first one prints.
    `choice`: --device. Raises UserError if there are too few GPUs, or when another process has ended."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield resolve_device(choice)
        return
    if choice != "cpu":
        claim_gpu(choice)
    device = resolve_device(choice)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        with nullcontext() if is_first() else redirect_stdout(None):
            yield device
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            raise
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise UserError(f"another process of this run has ended; its own message may say why ({reason})") from error
    finally:
        gc.collect()  # threads of a DDP that is still alive would abort the process
        if dist.is_initialized():
            dist.destroy_process_group()


def claim_gpu(choice: str) -> None:
    """Select one GPU for each process of this machine. Raises UserError if there are not as many."""
    if not torch.cuda.is_available():
        return
    rank = int(os.environ["LOCAL_RANK"])
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", rank + 1)), torch.cuda.device_count()
    if ":" in choice:
        raise UserError(f"--device {choice}: expected cuda or cpu: each of the {processes} processes takes its own GPU")
    if processes > gpus:
        raise UserError(f"found {gpus} GPUs for {processes} processes: expected --nproc_per_node={gpus} or less")
    torch.cuda.set_device(rank)


def synchronise(network: nn.Module) -> nn.Module:
    """Batch norm over the batches of all GPUs. On CPUs torch has none: there it sees the batch of one process."""
    if size() == 1 or not next(network.parameters()).is_cuda:
        return network
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-any-return, no-untyped-call]


def average_gradients(network: nn.Module) -> nn.Module:
    """The same network, with gradients that DDP averages over all processes (all-reduce) in each backward pass."""
    if size() == 1:
        return network
    device = next(network.parameters()).device
    return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)


def sum(x: Tensor) -> Tensor:
    """Sum over all processes (all-reduce); gradients flow through it."""
    return x if size() == 1 else all_reduce(x)  # type: ignore[no-untyped-call]


def any_of(flag: bool) -> bool:
    """True in all processes if `flag` is true in one of them."""
    return bool(sum(_scalar(float(flag))))


def broadcast(value: float) -> float:
    """The value of the first process, in all of them."""
    tensor = _scalar(value)
    if size() > 1:
        dist.broadcast(tensor, src=0)
    return float(tensor)


def restarts() -> bool:
    """Whether torchrun restarts the processes when one dies (`--max-restarts`)."""
    return os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def first_alone(prepare: Callable[[], T]) -> T:
    """Call `prepare` in the first process, then in the others, which find the files that it wrote."""
    if is_first():
        prepared = prepare()
    broadcast(0)  # barrier
    return prepared if is_first() else prepare()


def _scalar(value: float) -> Tensor:
    on_gpu = size() > 1 and dist.get_backend() == "nccl"
    return torch.tensor(value, dtype=torch.float64, device="cuda" if on_gpu else "cpu")
