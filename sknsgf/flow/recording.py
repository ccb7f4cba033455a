"""Functions of tensors on a GPU, recorded once and then launched as a whole.

The gradient step of a small network is some hundred kernels that take a few microseconds each: to
launch them one by one takes ten times as long as they run.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

WARM_UP_CALLS = 3  # until all workspaces are allocated, and the optimiser has its state
_recording = Lock()  # one at a time: it waits for the whole device first, which would spoil another
_streams = Lock()
# Streams that no recording uses. New ones for each would repeat after 32, and share workspaces.
_idle_streams: defaultdict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)


class Recorded:
    """A function that is called a few times, then recorded as a CUDA graph, and replayed.

    Parameters
    ----------
    function : callable (*tensors) -> Tensor
        It may change other tensors in place, but must launch the same kernels whatever the values
        in all of them are.
    device : torch.device
        The CUDA device where all tensors are, as these name it.

    Notes
    -----
    All calls must be made on one stream, and :meth:`close` after the last. Calls with tensors of
    other shapes than the first call's are not replayed; nothing is where recording fails, for want
    of memory or since another thread waited for the device meanwhile.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device) -> None:
        self.function, self.device = function, device
        with _streams:
            idle = _idle_streams[device]
            self.stream = idle.pop() if idle else torch.cuda.Stream(device)
        self.inputs: tuple[Tensor, ...] | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.output: Tensor | None = None
        self.n_calls, self.fails = 0, False

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Do what the function does, and return what it returns."""
        if self.inputs is None:
            self.inputs = tuple(tensor.clone() for tensor in tensors)
        if self.fails or _kinds(tensors) != _kinds(self.inputs):
            return self._call(tensors)
        self.n_calls += 1
        if self.n_calls > WARM_UP_CALLS and self.graph is None:
            self._record()
        if self.graph is None:
            return self._call(tensors)
        for kept, tensor in zip(self.inputs, tensors, strict=True):
            kept.copy_(tensor)
        self.graph.replay()
        return self.output.clone()

    def close(self) -> None:
        """Give back what the recording holds."""
        torch.cuda.current_stream(self.device).synchronize()  # the last replay may still run
        if self.graph is not None:
            self.graph.reset()
        self.graph = self.output = self.inputs = None
        with _streams:
            _idle_streams[self.device].append(self.stream)

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
        current = torch.cuda.current_stream(self.device)
        try:
            # The outer stream context restores the current stream where the recording fails.
            with _recording, torch.cuda.stream(current), torch.cuda.graph(graph, **options):
                self.output = self.function(*self.inputs)
        except RuntimeError as error:  # nothing was done: a recording runs no kernel
            logger.info("Gradient steps are not recorded: %s", error)
            self.fails = True
        else:
            self.graph = graph


def _kinds(tensors: tuple[Tensor, ...]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]
