"""Networks that represent a velocity field or predict a transition time."""

from sknsgf.flow.networks.build import (
    build_network,
    build_transition_network,
    layer_states,
    seeded_layers,
)
from sknsgf.flow.networks.fields import particle_field, velocity_field
from sknsgf.flow.networks.mlp import ACTIVATIONS, EndpointMLP, TransitionMLP, VelocityMLP
from sknsgf.flow.networks.transition import TransitionCNN
from sknsgf.flow.networks.unet import VelocityUNet

__all__ = [
    "ACTIVATIONS",
    "EndpointMLP",
    "TransitionCNN",
    "TransitionMLP",
    "VelocityMLP",
    "VelocityUNet",
    "build_network",
    "build_transition_network",
    "layer_states",
    "particle_field",
    "seeded_layers",
    "velocity_field",
]
