"""A ring of Gaussians in the plane: a problem."""

import math

import torch

from problems import Mixture


def ring() -> Mixture:
    """Return 32 Gaussians, equally spaced on a circle of radius 0.8; float64."""
    angle = 2.0 * math.pi / 32 * torch.arange(32, dtype=torch.float64)
    return Mixture(0.8 * torch.stack([angle.cos(), angle.sin()], -1), std=0.1)
