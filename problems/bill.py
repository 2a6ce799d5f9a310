"""What a model has evaluated, and what that costs."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bill:
    """Numbers of evaluations per sample; means over the batch where samples take different numbers of steps.

    Attributes
    ----------
    nfe
        Evaluations of the score network; of an exact score, evaluations of ε.
    jvp
        Jacobian-vector products: one for each total derivative of ε.
    head
        Calls of a distilled derivative head.
    """

    nfe: float = 0
    jvp: float = 0
    head: float = 0

    def __add__(self, other: Bill) -> Bill:
        return Bill(self.nfe + other.nfe, self.jvp + other.jvp, self.head + other.head)

    def __sub__(self, other: Bill) -> Bill:
        return Bill(self.nfe - other.nfe, self.jvp - other.jvp, self.head - other.head)

    def __mul__(self, share: float) -> Bill:
        return Bill(self.nfe * share, self.jvp * share, self.head * share)

    def cost(self, tariff: Tariff) -> float:
        """Return the total cost in evaluations of the score network."""
        return self.nfe + tariff.jvp * self.jvp + tariff.head * self.head


@dataclass(frozen=True, slots=True)
class Tariff:
    """Prices of derivatives in evaluations of the score network; zero by default.

    Attributes
    ----------
    jvp
        Price of one total derivative of ε along a path.
    head
        Price of one call of a distilled head: the overhead of App. C.2.5.

    Raises
    ------
    ValueError
        If a price is negative or not finite.
    """

    jvp: float = 0.0
    head: float = 0.0

    def __post_init__(self) -> None:
        if not (0.0 <= self.jvp < math.inf and 0.0 <= self.head < math.inf):
            raise ValueError(f"prices are at least zero and finite, which {self} is not")
