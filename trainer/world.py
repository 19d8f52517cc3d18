"""The processes that train together: one, or those that `torchrun --nproc_per_node=N -m trainer ...` starts.

Each takes its share of every batch; gradients and the sums in the loss are shared, so that N processes do what one
would.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


class WorldError(ValueError):
    """Training cannot go on together."""


@dataclass(frozen=True)
class World:
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def check(self, batch_size: int) -> None:
        if batch_size % self.size:
            raise WorldError(
                f"batch_size: expected a multiple of the {self.size} processes that share a batch, found {batch_size}"
            )

    def synchronise(self, network: nn.Module) -> nn.Module:
        """Batch norm over the whole batch, on GPUs; each process's share on CPUs, where torch has no other."""
        on_gpu = next(network.parameters()).is_cuda
        if self.size == 1 or not on_gpu:
            return network
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-any-return, no-untyped-call]

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network to train: its gradients are the means over all processes."""
        if self.size == 1:
            return network
        device = next(network.parameters()).device
        return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes; gradients flow through it."""
        return x if self.size == 1 else _Sum.apply(x)  # type: ignore[no-untyped-call]

    def mean(self, value: float) -> float:
        """The mean over all processes."""
        if self.size == 1:
            return value
        tensor = _scalar(value)
        with self.together():
            dist.all_reduce(tensor)
        return float(tensor) / self.size

    @contextmanager
    def together(self) -> Iterator[None]:
        """For what all processes do at a time. Raises WorldError if one of them is gone."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            said = str(error).partition("\n")[0]
            raise WorldError(f"another process of this run has ended, and says why if it could ({said})") from error

    def in_turn(self, prepare: Callable[[], T]) -> T:
        """The first process prepares something in files; then the others find it there."""
        if self.first:
            prepared = prepare()
        self.agree(0)
        return prepared if self.first else prepare()

    def agree(self, value: float) -> float:
        """The first process's value, in all of them."""
        if self.size == 1:
            return value
        tensor = _scalar(value)
        with self.together():
            dist.broadcast(tensor, src=0)
        return float(tensor)


ALONE = World()


def claim_gpu() -> None:
    """A GPU of its own for each process of a machine. Raises WorldError if there are not as many."""
    if "LOCAL_RANK" not in os.environ or not torch.cuda.is_available():
        return
    rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", rank + 1))
    if processes > gpus:
        raise WorldError(f"found {gpus} GPUs for {processes} processes: expected --nproc_per_node={gpus} or less")
    torch.cuda.set_device(rank)


class _Sum(torch.autograd.Function):
    """Over all processes. Each one's loss is of the sum, so the gradients are summed, too."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")


@contextmanager
def join(device: torch.device) -> Iterator[World]:
    """The world as torchrun's variables describe it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
