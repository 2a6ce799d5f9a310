"""Ralston's method of order 3: a solver, and the method that it makes."""

from dataclasses import dataclass

from analysis.api import Method
from solvers import RungeKutta


@dataclass(frozen=True)
class Ralston3(RungeKutta):
    """Ralston's method of order 3 (Ralston 1962); three evaluations."""

    stages = ((1 / 2,), (0.0, 3 / 4))
    weights = (2 / 9, 1 / 3, 4 / 9)
    classical_order = 3


RALSTON3 = Method(Ralston3())
