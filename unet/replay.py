"""Computations on a GPU: their kernels, recorded once for each shape, are launched all at once from then on.

A forward pass is dozens of kernels, a training step hundreds, and to launch each from Python takes longer than a fast
GPU needs for a small image. A CUDA graph (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs) is launched
in one go.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Function = Callable[..., Tensor]

Arguments = Sequence[Tensor | None]

MOST = 32
"""Recordings that are kept, the last used; each has a copy of what goes in and what comes out."""


def recorded(function: Function, device: torch.device) -> Function:
    """On a GPU a `Replay` of the function, elsewhere the function."""
    if device.type != "cuda":
        return function
    pool = torch.cuda.graph_pool_handle()
    return Replay(function, lambda function, arguments: record(function, arguments, pool))


class Replay:
    """Computes what `function` does. Arguments of shapes that come for the second time are recorded; what cannot be is
    computed step by step, as are shapes that come for the first time and maybe never again, and what a thread computes
    first: that is when the libraries get ready for it, which cannot be recorded.

    For one thread at a time; others wait. `record` makes a function of the same results for arguments of one shape, and
    is called by one thread at a time, whichever Replay it is for: CUDA records no two graphs at once.
    """

    _recording = threading.Lock()

    def __init__(self, function: Function, record: Callable[[Function, Arguments], Function]) -> None:
        self._function = function
        self._record = record
        self._known: OrderedDict[object, Function | None] = OrderedDict()
        """By shape: None for one that has come once."""
        self._lock = threading.Lock()
        self._thread = threading.local()

    def __call__(self, *arguments: Tensor | None) -> Tensor:
        with self._lock:
            return self._for(arguments)(*arguments)

    def _for(self, arguments: Arguments) -> Function:
        key = tuple(None if each is None else (each.shape, each.dtype, each.stride()) for each in arguments)
        known = self._known.get(key)
        if key not in self._known or not (known or hasattr(self._thread, "ready")):
            self._thread.ready = True
            self._known[key] = None
            if len(self._known) > MOST:
                self._known.popitem(last=False)
            return self._function
        known = known or self._recorded(arguments)
        self._known[key] = known
        self._known.move_to_end(key)
        return known

    def _recorded(self, arguments: Arguments) -> Function:
        try:
            with self._recording:
                return self._record(self._function, arguments)
        except RuntimeError as error:  # out of memory, or what a driver cannot record: slower, not worse
            shapes = ", ".join(str(tuple(each.shape)) for each in arguments if each is not None)
            log.warning("computing %s step by step: %s", shapes, str(error).partition("\n")[0])
            return self._function


def record(function: Function, examples: Arguments, pool: Any) -> Function:
    """As a CUDA graph, for tensors on a GPU of the examples' shapes; what it does has been done once before. Recordings
    of one `pool` share memory, and are not to be replayed at the same time."""
    taken = [None if each is None else each.clone() for each in examples]
    graph = torch.cuda.CUDAGraph()
    here = torch.cuda.stream(torch.cuda.current_stream())  # which recording, if it fails, does not go back to
    # thread_local: a thread that loads another model meanwhile may take memory
    with here, torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        given = function(*taken)

    def replay(*arguments: Tensor | None) -> Tensor:
        for mine, theirs in zip(taken, arguments, strict=True):
            if mine is not None and theirs is not None:
                mine.copy_(theirs)
        graph.replay()
        return given.clone()  # the next replay writes over it

    return replay
