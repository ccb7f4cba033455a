"""A learned flow as one torch module, from rows to rows."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class FlowModule(nn.Module):
    """Centre and scale rows, carry them along a learned flow, and put them back in their units.

    Parameters
    ----------
    networks : dict of nn.Module
        The networks of the flow.
    follow : callable (networks) -> callable x -> Tensor of shape (n, d)
        Gives the function that carries points (n, d) along the flow of these networks. It is
        called anew for each input, since the networks may have been moved or copied.
    center : Tensor of shape (d,), float64
        Point that rows are centred on.
    scale : Tensor of shape (), float64
        Number that they are divided by.

    Notes
    -----
    Units are converted in the dtype of ``center``, everything else in that of the rows, which must
    be the dtype of the weights.

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.module import FlowModule
    >>> def follow(networks):
    ...     return lambda x: x + networks["shift"](x)
    >>> center, scale = torch.tensor([2.0]).double(), torch.tensor(3.0).double()
    >>> FlowModule({"shift": torch.nn.Identity()}, follow, center, scale)(torch.tensor([[3.0]]))
    tensor([[4.]])
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        follow: Callable[[dict[str, nn.Module]], Callable[[Tensor], Tensor]],
        center: Tensor,
        scale: Tensor,
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        self.follow = follow
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)

    def forward(self, rows: Tensor) -> Tensor:
        """Transported rows (n, d) for rows (n, d)."""
        points = (rows.to(self.center.dtype) - self.center) / self.scale
        moved = self.follow(dict(self.networks.items()))(points.to(rows.dtype))
        return (moved.to(self.center.dtype) * self.scale + self.center).to(rows.dtype)
