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

_GLOBAL_GENERATORS = RLock()


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
def seeded_layers(
    seed: int, device: torch.device | str = "cpu", states: Sequence[Tensor] | None = None
) -> Iterator[None]:
    """Make what a user's layers draw a function of ``seed``: initial weights, dropout.

    They draw from torch's global generators, that of the CPU and that of the ``device``: these are
    seeded for the block, or given the ``states`` that :func:`layer_states` found in such a block,
    and put back as they were, by one thread at a time.
    """
    with _GLOBAL_GENERATORS:
        generators, before = _layer_generators(device), layer_states(device)
        try:
            for generator in generators:
                generator.manual_seed(seed)
            if states is not None:
                _set_states(generators, states)
            yield
        finally:
            _set_states(generators, before)


def layer_states(device: torch.device | str) -> list[Tensor]:
    """States of the generators that layers on a device draw from."""
    return [generator.get_state() for generator in _layer_generators(device)]


def _layer_generators(device: torch.device | str) -> list[torch.Generator]:
    device, generators = torch.device(device), [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()  # before, there are no generators
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    return generators


def _set_states(generators: list[torch.Generator], states: Sequence[Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
