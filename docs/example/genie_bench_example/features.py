"""The distance from the origin: features of points in the plane."""

from torch import Tensor

from analysis.api import Features
from problems import Problem


def radius(problem: Problem) -> Features | None:
    """Return the features; None for problems that are not in the plane."""
    return Features("radius", norms) if tuple(problem.event_shape) == (2,) else None


def norms(x: Tensor) -> Tensor:
    """Return the distances (n, 1) of states (n, 2), float64, on the CPU."""
    return x.double().cpu().norm(dim=1, keepdim=True)
