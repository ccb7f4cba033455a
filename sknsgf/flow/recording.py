"""Functions of tensors on a GPU, recorded once and then launched as a whole.

The gradient step of a small network is some hundred kernels that take a few microseconds each: to
launch them one by one takes ten times as long as they run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP_CALLS = 3  # until all workspaces are allocated, and the optimiser has its state
_recordings = threading.Lock()  # a recording fails where another thread waits for the whole device


class Recorded:
    """A function that is called a few times, then recorded as a CUDA graph, and replayed.

    Parameters
    ----------
    function : callable (*tensors) -> Tensor
        It may change other tensors in place, but must launch the same kernels whatever the values
        in all of them are.
    device : torch.device
        The CUDA device where all tensors are.

    Notes
    -----
    Calls with tensors of other shapes than the first call's are not replayed.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device) -> None:
        self.function, self.device = function, device
        self.stream = torch.cuda.Stream(device)
        self.inputs: tuple[Tensor, ...] | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.output: Tensor | None = None
        self.n_calls = 0

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Do what the function does, and return what it returns."""
        if self.inputs is None:
            self.inputs = tuple(tensor.clone() for tensor in tensors)
        shapes = [tensor.shape for tensor in tensors]
        if self.n_calls < WARM_UP_CALLS or shapes != [kept.shape for kept in self.inputs]:
            self.n_calls += 1
            return self._call(tensors)
        if self.graph is None:
            self._record()
        for kept, tensor in zip(self.inputs, tensors, strict=True):
            kept.copy_(tensor)
        self.graph.replay()
        return self.output.clone()

    def _call(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Call the function on the stream that it is recorded on."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            output = self.function(*tensors)
        current.wait_stream(self.stream)
        return output

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        options = {"stream": self.stream, "capture_error_mode": "thread_local"}
        with _recordings, torch.cuda.device(self.device), torch.cuda.graph(graph, **options):
            self.output = self.function(*self.inputs)
        self.graph = graph
