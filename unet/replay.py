"""A network for inference on a GPU: its kernels, recorded once for each shape, are launched all at once from then on.

A forward pass is dozens of kernels, and to launch each from Python takes longer than a fast GPU needs for a small
image. A CUDA graph (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs) is launched in one go.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unet.network import UNet

log = logging.getLogger(__name__)

Function = Callable[[Tensor], Tensor]

MOST = 32
"""Recordings that are kept, the last used; each has a copy of what goes in and what comes out."""


def replayed(network: UNet) -> UNet:
    """A network for inference, in its final dtype and on its device, is changed and returned; off a GPU as it is."""
    weight = next(network.parameters())
    if weight.is_cuda:
        pool = torch.cuda.graph_pool_handle()
        network.forward = Replay(network.forward, lambda forward, x: record(forward, x, pool))  # type: ignore[method-assign]
    return network


class Replay:
    """Computes what `function` does. A shape that comes for the second time is recorded; one that cannot be is computed
    step by step, as is one that comes for the first time and maybe never again.

    For one thread at a time; others wait. `record` makes a function of the same results for tensors of one shape.
    """

    def __init__(self, function: Function, record: Callable[[Function, Tensor], Function]) -> None:
        self._function = function
        self._record = record
        self._known: OrderedDict[object, Function | None] = OrderedDict()
        """By shape: None for one that has come once."""
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> Tensor:
        with self._lock:
            return self._for(x)(x)

    def _for(self, x: Tensor) -> Function:
        key = x.shape, x.dtype, x.stride()
        if key not in self._known:
            self._known[key] = None
            if len(self._known) > MOST:
                self._known.popitem(last=False)
            return self._function
        known = self._known[key] or self._recorded(x)
        self._known[key] = known
        self._known.move_to_end(key)
        return known

    def _recorded(self, x: Tensor) -> Function:
        try:
            return self._record(self._function, x)
        except RuntimeError as error:  # out of memory, or what a driver cannot record: slower, not worse
            log.warning("computing %s step by step: %s", tuple(x.shape), str(error).partition("\n")[0])
            return self._function


def record(function: Function, example: Tensor, pool: Any) -> Function:
    """As a CUDA graph, for tensors on a GPU of the example's shape. Recordings of one `pool` share memory, and are not
    to be replayed at the same time."""
    taken = example.clone()
    beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())
    # this shape will come again: it pays to try which of cuDNN's kernels is the fastest
    with torch.cuda.stream(beside), torch.backends.cudnn.flags(enabled=True, benchmark=True):
        function(taken)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    # thread_local: a thread that loads another model meanwhile may take memory
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        given = function(taken)

    def replay(x: Tensor) -> Tensor:
        taken.copy_(x)
        graph.replay()
        return given.clone()  # the next replay writes over it

    return replay
