r"""Pairs of source and target points: the ends of straight paths.

On the straight path of a pair, ``x_t = (1 - t) x_0 + t x_1`` with velocity ``x_1 - x_0``. That is a
trajectory of one step, so pairs are drawn as regression data by
:class:`~sknsgf.flow.trajectories.TrajectoryPool` from positions of shape (n, 2, d).

A pairing is a callable ``(x, y, generator) -> partners`` that gives each row of ``x`` (n, d) a row
of ``y`` (m, d): the closer the partners, the straighter the flow that regression learns from them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sknsgf.flow.kernels import row_blocks
from sknsgf.flow.sinkhorn import cross_potential, extend_potential, plan_rows

Pairing = Callable[[Tensor, Tensor, torch.Generator], Tensor]
PAIRINGS = ("potentials", "sinkhorn", "exact", "independent")
EXACT_MAX_ITER = 10**7  # pivots of the network simplex


def independent_partners(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Partners whatever the place: shuffled passes over the rows of ``y``."""
    rows = []
    for _ in range(0, len(x), len(y)):
        rows.append(torch.randperm(len(y), generator=generator, device=generator.device))
    return y[torch.cat(rows)[: len(x)].to(y.device)]


def exact_partners(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Partners of exact optimal transport between the two batches (POT), on the CPU.

    With as many rows on both sides that is a permutation; else a row's partner is drawn from the
    plan.
    """
    import ot

    a, b = (cloud.double().cpu() for cloud in (x, y))
    weights = ot.unif(len(a), type_as=a), ot.unif(len(b), type_as=b)
    plan = ot.emd(*weights, ot.dist(a, b), numItermax=EXACT_MAX_ITER)
    choice = torch.multinomial(plan.to(generator.device), 1, generator=generator)
    return y[choice[:, 0].to(y.device)]


class PlanPairing:
    """Partners drawn from the rows of an entropic plan, so that both laws are kept.

    Barycentres in their place would lose the spread of the target.

    Parameters
    ----------
    blur : float
        Square root of the temperature of the plan.
    tol, max_iter
        Of the Sinkhorn solves, as in :func:`~sknsgf.flow.sinkhorn.cross_potential`.
    extend : bool, default=False
        Whether the potentials of the first two batches are extended to all later ones, or each
        pair of batches is solved for. (Extended potentials are no better a start for another solve
        than none: what the batches differ by is noise.)

    Attributes
    ----------
    error : float
        Largest marginal error of the solves.

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.paths import PlanPairing
    >>> x = torch.tensor([[0.0], [10.0]])
    >>> PlanPairing(blur=0.1)(x, x.flip(0) + 1, torch.Generator().manual_seed(0))
    tensor([[ 1.],
            [11.]])
    """

    def __init__(
        self, blur: float, *, tol: float = 1e-2, max_iter: int = 200, extend: bool = False
    ) -> None:
        self.blur, self.tol, self.max_iter, self.extend = blur, tol, max_iter, extend
        self.error = 0.0
        self._reference: tuple[Tensor, Tensor] | None = None  # points and their potential

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a partner for each row of ``x`` (n, d) from the rows of ``y`` (m, d)."""
        if self._reference is None:
            g = self._solve(x[None], y[None])
        else:
            g = extend_potential(y[None], *self._reference, blur=self.blur)
        return self._draw(x, y, g, generator)

    def _solve(self, x: Tensor, y: Tensor) -> Tensor:
        solved = cross_potential(x, y, blur=self.blur, tol=self.tol, max_iter=self.max_iter)
        self.error = max(self.error, float(solved.error))
        if self.extend:
            self._reference = x, extend_potential(x, y, solved.potential, blur=self.blur)
        return solved.potential

    def _draw(self, x: Tensor, y: Tensor, g: Tensor, generator: torch.Generator) -> Tensor:
        kind = {"dtype": x.dtype, "device": generator.device}
        u = torch.rand(len(x), 1, generator=generator, **kind).to(x.device)
        choices = []
        for block in row_blocks(x[None], y[None]):
            plan = plan_rows(x[None, block], y[None], g, blur=self.blur)[0].cumsum(-1)
            choices.append(torch.searchsorted(plan, u[block] * plan[:, -1:])[:, 0])
        rows = torch.cat(choices).clamp_(max=len(y) - 1)  # of a plan of NaN, it is beyond the last
        return y[rows]


def make_pairing(name: str, *, blur: float, tol: float, max_iter: int) -> Pairing:
    """Pairing by its name, one of ``PAIRINGS``; the numbers are those of ``PlanPairing``.

    Returns
    -------
    callable (x, y, generator) -> Tensor of shape (n, d)
        Gives each point of `x` (n, d) a partner among the points of `y` (m, d).

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.paths import make_pairing
    >>> pairing = make_pairing("exact", blur=0.1, tol=1e-2, max_iter=200)
    >>> x, y = torch.tensor([[0.0], [10.0]]), torch.tensor([[11.0], [1.0]])
    >>> pairing(x, y, torch.Generator().manual_seed(0)).flatten()
    tensor([ 1., 11.])
    """
    plan = partial(PlanPairing, blur, tol=tol, max_iter=max_iter)
    if name in ("potentials", "sinkhorn"):
        return plan(extend=name == "potentials")
    return exact_partners if name == "exact" else independent_partners
