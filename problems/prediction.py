"""What the output of a network means: ε = skip x̄ + gain F(scale x̄, time), with x̄ = x/α."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from problems.schedule import Schedule
from problems.series import Series, convolve, sqrt

Factors = tuple[Series, Series, Series]


class Prediction(Protocol):
    """A parametrisation of ε."""

    def factors(self, schedule: Schedule, gamma: Series) -> Factors:
        """Return the series of skip, gain and scale, given that of γ along a path."""


@dataclass(frozen=True)
class Formula:
    """A parametrisation given by a function.

    Attributes
    ----------
    factors
        See ``Prediction``.
    """

    factors: Callable[[Schedule, Series], Factors]


def _alpha(schedule: Schedule, gamma: Series) -> Series:
    return schedule.alpha(schedule.time(gamma))


def _eps(schedule: Schedule, gamma: Series) -> Factors:
    zero = 0.0 * gamma
    return zero, zero + 1.0, _alpha(schedule, gamma)


def _v(schedule: Schedule, gamma: Series) -> Factors:
    alpha = _alpha(schedule, gamma)
    return alpha * alpha * gamma, alpha, alpha


def _data(schedule: Schedule, gamma: Series) -> Factors:
    inverse = 1.0 / gamma
    return inverse, -inverse, _alpha(schedule, gamma)


def _score(schedule: Schedule, gamma: Series) -> Factors:
    alpha = _alpha(schedule, gamma)
    return 0.0 * gamma, -(alpha * gamma), alpha


def _velocity(schedule: Schedule, gamma: Series) -> Factors:
    alpha = _alpha(schedule, gamma)
    return alpha, alpha, alpha


def _reversed_velocity(schedule: Schedule, gamma: Series) -> Factors:
    alpha = _alpha(schedule, gamma)
    return alpha, -alpha, alpha


PREDICTIONS: dict[str, Prediction] = {
    # The noise ε.
    "eps": Formula(_eps),
    # v = α ε - σ x₀, so ε = α v + σ x if α² + σ² = 1 (Salimans & Ho 2022).
    "v": Formula(_v),
    # The data x₀, also as an EDM denoiser D(x, σ): ε = (x - α x₀)/σ.
    "x0": Formula(_data),
    # The score ∇ log p = -ε/σ.
    "score": Formula(_score),
    # The velocity ε - x₀ of flow matching, where α + σ = 1: ε = x + α v.
    "velocity": Formula(_velocity),
    # The same with time running from noise to data: x₀ - ε.
    "velocity-to-data": Formula(_reversed_velocity),
}
"""Predictions by the names that ``Network`` takes."""


@dataclass(frozen=True)
class Denoiser:
    """The denoiser D = c_skip x + c_out F(c_in x) of Karras et al. (2022), for a network F of unit variance.

    c_skip = s²/(σ² + s²), c_out = ∓σ s/√(σ² + s²) and c_in = 1/√(σ² + s²), so that ε = (x - D)/σ is
    σ/(σ² + s²) x ∓ s/√(σ² + s²) F.

    Attributes
    ----------
    data_std
        s, the standard deviation of the data.
    sign
        The sign of F in ε: -1 in EDM, +1 where F predicts in the direction of the noise.
    """

    data_std: float
    sign: float = -1.0

    def factors(self, schedule: Schedule, gamma: Series) -> Factors:
        """Return the factors of x̄ and F in ε, and that of x̄ in the input of the network."""
        variance = gamma * gamma + self.data_std**2
        root = sqrt(variance)
        return gamma / variance, self.sign * self.data_std / root, 1.0 / root


class Outer:
    """The Taylor coefficients of what goes into F and of what ε is made from F, along a path.

    Parameters
    ----------
    factors
        The series of skip, gain and scale.
    """

    def __init__(self, factors: Factors) -> None:
        self._skip, self._gain, self._scale = (f.coefficients for f in factors)
        self._path: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def inwards(self, coefficient: Tensor) -> Tensor:
        """Take the next coefficient of x̄; return that of scale x̄."""
        self._path.append(coefficient)
        return torch.as_tensor(convolve(self._path, self._scale, len(self._path) - 1))

    def outwards(self, output: Tensor) -> Tensor:
        """Take the same coefficient of F; return that of ε."""
        self._outputs.append(output)
        j = len(self._outputs) - 1
        skip, gain = convolve(self._path, self._skip, j), convolve(self._outputs, self._gain, j)
        return torch.as_tensor(skip + gain)
