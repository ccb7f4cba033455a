"""Networks of an estimator, their initial weights drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock

import torch
from torch import Tensor, nn

from sknsgf.flow.networks.mlp import EndpointMLP, TransitionMLP, VelocityMLP
from sknsgf.flow.networks.transition import TransitionCNN
from sknsgf.flow.networks.unet import VelocityUNet

_GLOBAL_GENERATOR = RLock()


def build_network(
    network: str | Callable[[int], nn.Module],
    n_features: int,
    hidden_layer_sizes: Sequence[int],
    activation: str | None,
    image_shape: tuple[int, int, int] | None,
    channels: Sequence[int],
    seed: int,
    prediction: str = "velocity",
) -> nn.Module:
    """Network of an estimator on the CPU in float32, its initial weights drawn from ``seed``.

    Parameters
    ----------
    network : "mlp", "unet" or callable
        A callable builds a module from the number of features. Its layers draw their weights in
        torch's default dtype, so this one setting of the program changes their values.
    n_features : int
        Number of features of a point.
    hidden_layer_sizes, activation
        Those of :class:`VelocityMLP`; only "mlp" makes use of them.
    image_shape, channels
        Those of :class:`VelocityUNet`; only "unet" makes use of them, pass None and () elsewhere.
    seed : int
        Seed of the initial weights.
    prediction : {"velocity", "endpoint"}, default="velocity"
        What the network is to predict; for endpoints, "mlp" is an :class:`EndpointMLP`, and else a
        :class:`VelocityMLP`. The others are the same for both.

    Returns
    -------
    nn.Module

    Examples
    --------
    >>> from sknsgf.flow.networks import build_network
    >>> build_network("mlp", 1, (4,), "tanh", None, (), seed=0)
    VelocityMLP(
      (layers): Sequential(
        (0): Linear(in_features=2, out_features=4, bias=True)
        (1): Tanh()
        (2): Linear(in_features=4, out_features=1, bias=True)
      )
    )
    """
    if network == "mlp":
        kind = EndpointMLP if prediction == "endpoint" else VelocityMLP
        return kind(n_features, hidden_layer_sizes, activation, _generator(seed))
    if network == "unet":
        return VelocityUNet(image_shape, channels, _generator(seed))
    with seeded_layers(seed), torch.device("cpu"):  # whatever the caller's default device
        return network(n_features).to(device="cpu", dtype=torch.float32)


def build_transition_network(
    network: str | Callable[[int], nn.Module],
    n_features: int,
    hidden_layer_sizes: Sequence[int],
    activation: str | None,
    image_shape: tuple[int, int, int] | None,
    channels: Sequence[int],
    seed: int,
) -> nn.Module:
    """Predictor of transition times that goes with a velocity network, on the CPU in float32.

    Parameters
    ----------
    network : "mlp", "unet" or callable
        The velocity network: a :class:`TransitionCNN` goes with "unet", a :class:`TransitionMLP`
        with all others.
    n_features : int
        Number of features of a point.
    hidden_layer_sizes, activation
        Those of :class:`TransitionMLP`; "unet" makes no use of them.
    image_shape, channels
        Those of :class:`TransitionCNN`; only "unet" makes use of them, pass None and () elsewhere.
    seed : int
        Seed of the initial weights.

    Returns
    -------
    nn.Module

    Examples
    --------
    >>> from sknsgf.flow.networks import build_transition_network
    >>> build_transition_network("mlp", 1, (4,), "tanh", None, (), seed=0)
    TransitionMLP(
      (layers): Sequential(
        (0): Linear(in_features=1, out_features=4, bias=True)
        (1): Tanh()
        (2): Linear(in_features=4, out_features=1, bias=True)
      )
    )
    """
    if network == "unet":
        return TransitionCNN(image_shape, channels, _generator(seed))
    return TransitionMLP(n_features, hidden_layer_sizes, activation, _generator(seed))


def _generator(seed: int) -> torch.Generator:
    """Fresh generator on the CPU, whatever the caller's default device."""
    return torch.Generator(device="cpu").manual_seed(seed)


@contextmanager
def seeded_layers(seed: int, state: Tensor | None = None) -> Iterator[None]:
    """Make what a user's layers draw a function of ``seed``: initial weights, dropout.

    They draw from torch's global CPU generator: it is seeded for the block, or given a ``state``
    that it had in such a block, and put back as it was, by one thread at a time.
    """
    with _GLOBAL_GENERATOR:
        before = torch.default_generator.get_state()
        try:
            torch.default_generator.manual_seed(seed)
            if state is not None:
                torch.default_generator.set_state(state)
            yield
        finally:
            torch.default_generator.set_state(before)
