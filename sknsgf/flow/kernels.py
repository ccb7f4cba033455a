"""Storage for the kernels of Sinkhorn iterations: in memory, or recomputed by blocks of rows.

A kernel has two methods. ``marginal`` is one Sinkhorn iteration seen from the columns (normalise
the rows, sum the columns); ``project`` is the plan-weighted mean that each row sees. Dense and
streamed storage do the same computation; :func:`fits` chooses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)  # exponentials are taken in base 2: up to 3 times faster on CPU
EXPONENT_FLOOR = -86.0  # 2**-86 = 1e-26: denormal numbers below would slow everything 7 to 10 times
# Entries of a kernel that are in memory at a time when it is streamed: on a CPU they fit in the
# cache, on a GPU launches cost little beside the work on so many.
STREAM_BLOCK, CUDA_STREAM_BLOCK = 2**18, 2**23
# Logarithm of a scaling above which it moves into the stored kernel: twice that still keeps entries
# at the floor, e**-60, from weighing anything.
ABSORPTION = 15.0
# Coordinates up to which products are summed one after another on CPU: there a matrix product, made
# for long sums, takes up to 4 times as long.
NARROW = 4
# Coordinates from which products that outlast a kernel are cheaper than new ones.
WIDE = 64


class DenseKernel:
    """Rows of the plan up to normalisation, stored; an iteration is two vector-matrix products."""

    def __init__(self, q: Tensor, k: Tensor, bias: Tensor, a: Tensor, buffer: Tensor) -> None:
        self.q, self.k = q, LOG2_E * k
        self._start(bias, a, buffer)

    def _start(self, bias: Tensor, a: Tensor, buffer: Tensor) -> None:
        self.bias, self.a, self.buffer = bias, a, buffer
        self._store(torch.zeros_like(bias))

    def _scores(self, bias: Tensor) -> Tensor:
        return _scores(self.q, self.k, bias, self.buffer)

    def _store(self, offset: Tensor) -> None:
        self.offset = offset
        self.entries = _row_exponentials(self._scores(LOG2_E * (self.bias + offset)))

    def _factors(self, h: Tensor) -> Tensor:
        change = h - self.offset
        if float(change.abs().max()) > ABSORPTION:  # before the exponential overflows
            self._store(h)
            change = torch.zeros_like(h)
        return change.exp_()

    def marginal(self, h: Tensor) -> Tensor:
        """Column sums of the plan with the bias ``bias + h`` and its rows normalised to ``a``."""
        v = self._factors(h)
        rows = torch.bmm(v[:, None], self.entries.mT)
        return v * torch.bmm(self.a[:, None] / rows, self.entries)[:, 0]

    def project(self, h: Tensor, y: Tensor) -> Tensor:
        """Plan-weighted mean of ``y`` seen from each row."""
        v = self._factors(h)[..., None]
        weighted = row_sums(self.entries, torch.cat([y * v, v], -1))
        return weighted[..., :-1] / weighted[..., -1:]


class RescaledKernel(DenseKernel):
    """The same from products ``<x_i, y_j>`` that outlast it: for other temperatures or offsets."""

    def __init__(
        self, products: Tensor, eps: Tensor, bias: Tensor, a: Tensor, buffer: Tensor
    ) -> None:
        self.products, self.scale = products, LOG2_E / eps[..., None]
        self._start(bias, a, buffer)

    def _scores(self, bias: Tensor) -> Tensor:
        scores = self.buffer[: self.products.numel()].view_as(self.products)
        return torch.addcmul(bias[:, None], self.products, self.scale, out=scores)


class StreamedKernel:
    """The same two methods with blocks of rows recomputed at each pass: memory O(n + m)."""

    def __init__(self, q: Tensor, k: Tensor, bias: Tensor, a: Tensor, buffer: Tensor) -> None:
        self.q, self.k, self.bias, self.a, self.buffer = q, LOG2_E * k, bias, a, buffer

    def _blocks(self, h: Tensor) -> Iterator[tuple[slice, Tensor]]:
        bias = LOG2_E * (self.bias + h)
        for block in row_blocks(self.q, self.k):
            scores = _scores(self.q[:, block], self.k, bias, self.buffer)
            yield block, _row_exponentials(scores)

    def marginal(self, h: Tensor) -> Tensor:
        """Column sums of the plan with the bias ``bias + h`` and its rows normalised to ``a``."""
        total = torch.zeros_like(h)
        for block, entries in self._blocks(h):
            total += torch.bmm((self.a[:, block] / entries.sum(-1))[:, None], entries)[:, 0]
        return total

    def project(self, h: Tensor, y: Tensor) -> Tensor:
        """Plan-weighted mean of ``y`` seen from each row."""
        out = [row_sums(e, y) / e.sum(-1, keepdim=True) for _, e in self._blocks(h)]
        return torch.cat(out, 1)


class DenseSelfPlan:
    """The plan of a cloud with itself, stored: symmetric, entries at most about 1."""

    def __init__(self, q: Tensor, bias: Tensor, buffer: Tensor) -> None:
        self.entries = _symmetric_exponentials(*_symmetric_factors(q, bias), buffer)

    def marginal(self, u: Tensor) -> Tensor:
        """Row sums of the plan scaled by ``u`` on both sides."""
        return u * torch.bmm(u[:, None], self.entries)[:, 0]

    def project(self, u: Tensor, x: Tensor) -> Tensor:
        """Plan-weighted mean of ``x`` seen from each of its points."""
        weighted = row_sums(self.entries, torch.cat([x * u[..., None], u[..., None]], -1))
        return weighted[..., :-1] / weighted[..., -1:]


class StreamedSelfPlan:
    """The same two methods with blocks of rows recomputed at each pass."""

    def __init__(self, q: Tensor, bias: Tensor, buffer: Tensor) -> None:
        self.q, self.bias, self.buffer = q, bias, buffer

    def _blocks(self, u: Tensor) -> Iterator[Tensor]:
        queries, keys, bias = _symmetric_factors(self.q, self.bias + u.log())
        for block in row_blocks(self.q, self.q):
            yield _symmetric_exponentials(queries[:, block], keys, bias, self.buffer)

    def marginal(self, u: Tensor) -> Tensor:
        """Row sums of the plan scaled by ``u`` on both sides."""
        return torch.cat([e.sum(-1) for e in self._blocks(u)], 1)

    def project(self, u: Tensor, x: Tensor) -> Tensor:
        """Plan-weighted mean of ``x`` seen from each of its points."""
        out = [row_sums(e, x) / e.sum(-1, keepdim=True) for e in self._blocks(u)]
        return torch.cat(out, 1)


def row_sums(entries: Tensor, values: Tensor) -> Tensor:
    """Sums of ``values`` over the columns, weighted by the entries: ``entries @ values``.

    Written with the values as rows, which is up to 6 times faster on CPU where they are narrow.
    """
    return torch.bmm(values.mT.contiguous(), entries.mT).mT


def scaled_exponentials(q: Tensor, k: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(<q_i, k_j> + bias_j - largest_i)`` and ``largest_i`` (B, n, 1); differentiable."""
    scores = torch.baddbmm(LOG2_E * bias[:, None], q, (LOG2_E * k).mT)
    largest = scores.detach().amax(-1, keepdim=True)
    return (scores - largest).clamp(min=EXPONENT_FLOOR).exp2(), largest / LOG2_E


def _scores(q: Tensor, k: Tensor, bias: Tensor, buffer: Tensor) -> Tensor:
    """``<q_i, k_j> + bias_j``, written into ``buffer``."""
    shape = (q.shape[0], q.shape[1], k.shape[1])
    scores = buffer[: math.prod(shape)].view(shape)
    if q.shape[2] > NARROW or not q.is_cpu:
        return torch.baddbmm(bias[:, None], q, k.mT, out=scores)
    start = bias[:, None]
    for q_column, k_column in zip(q.split(1, 2), k.mT.contiguous().split(1, 1), strict=True):
        start = torch.addcmul(start, q_column, k_column, out=scores)
    return scores


def _row_exponentials(scores: Tensor) -> Tensor:
    """``2 ** (scores - largest)`` with the largest score of each row, in place."""
    return scores.sub_(scores.amax(-1, keepdim=True)).clamp_(min=EXPONENT_FLOOR).exp2_()


def _symmetric_factors(q: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and bias of the products ``log2(e) (<q_i, q_j> + bias_i + bias_j)``."""
    bias = LOG2_E * bias
    return _with_column(q, bias), _with_column(LOG2_E * q, torch.ones_like(bias)), bias


def _with_column(cloud: Tensor, column: Tensor) -> Tensor:
    return torch.cat([cloud, column[..., None]], -1)


def _symmetric_exponentials(q: Tensor, k: Tensor, bias: Tensor, buffer: Tensor) -> Tensor:
    """``2 ** (<q_i, k_j> + bias_j)``, written into ``buffer``; no exponent is much above 0."""
    return _scores(q, k, bias, buffer).clamp_(min=EXPONENT_FLOOR).exp2_()


def row_blocks(x: Tensor, y: Tensor) -> list[slice]:
    """Cut the rows of a kernel into blocks of a size that suits the device."""
    entries = STREAM_BLOCK if x.device.type == "cpu" else CUDA_STREAM_BLOCK
    # A wide product needs rows to amortise the reading of its keys.
    rows = max(32, min(y.shape[2], 256), entries // (x.shape[0] * y.shape[1]))
    return [slice(start, start + rows) for start in range(0, x.shape[1], rows)]


def fits(x: Tensor, y: Tensor, max_bytes: int) -> bool:
    """Tell whether the kernel of a batch may be stored."""
    return x.shape[0] * x.shape[1] * y.shape[1] * x.element_size() <= max_bytes


class KernelMemory:
    """Memory for kernels, one at a time: all of it where it fits in ``max_bytes``, else a block.

    It is kept from kernel to kernel: to get fresh memory from the system takes as long as to fill
    it with products.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._buffer: Tensor | None = None

    def stores(self, x: Tensor, y: Tensor) -> bool:
        """Tell whether the kernel of a batch is stored."""
        return fits(x, y, self.max_bytes)

    def buffer(self, x: Tensor, y: Tensor) -> Tensor:
        """Memory for the kernel; what the last one held is lost."""
        rows = x.shape[1] if self.stores(x, y) else row_blocks(x, y)[0].stop
        size = x.shape[0] * rows * y.shape[1]
        if self._buffer is None or len(self._buffer) < size:
            self._buffer = x.new_empty(size)
        return self._buffer

    def products(self, x: Tensor, y: Tensor) -> Tensor | None:
        """``<x_i, y_j>`` beside the kernel, where there is room and they are dear; else None."""
        if x.shape[2] < WIDE or not fits(x, y, self.max_bytes // 2):
            return None
        return torch.bmm(x, y.mT)
