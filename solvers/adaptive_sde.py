"""The adaptive method for the reverse SDE, in which every sample has steps of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.adaptive import Adaptive, Values, accept, column, each_trajectory, require_longer
from solvers.interface import Equation, Node, Noisy, Past, Scalar, noisy


@dataclass(frozen=True)
class AdaptiveSDE(Adaptive):
    """The adaptive solver of Jolicoeur-Martineau et al. (2021), Alg. 1, with the L2 norm and extrapolation.

    K₁ is the increment of Euler–Maruyama from (y, s), and K₂ that from (y + K₁, s + h) with the same noise.
    The state moves by ½ (K₁ + K₂); the error estimate is ½ (K₂ - K₁). A step is accepted if the root mean
    square of the estimate divided by max(atol, rtol max(|y′|, |y + K₁|)) is at most 1, where y′ is the last
    accepted Euler–Maruyama proposal. Every attempt costs two evaluations.

    The noise of an attempt is the increment of the sample's Brownian path over the step, so a rejected step
    is repeated on the same path. The path is not smooth, so differences of the size of rounding grow from
    step to step until they change the step sizes. Results on different machines may therefore differ.

    Parameters
    ----------
    rtol, atol
        Relative and absolute tolerance; in the paper's runs rtol is 0.01 to 0.5 and atol = 1/128 for data in
        [-1, 1].
    first
        The first step, as a fraction of the interval.

    Raises
    ------
    ValueError
        If the tolerances or the first step are not positive.
    """

    rtol: float = 0.05
    atol: float = 1 / 128
    first: float = 0.01

    def __post_init__(self) -> None:
        if not (self.rtol > 0.0 and self.atol > 0.0 and self.first > 0.0):
            raise ValueError(f"needs positive tolerances and first step, not {self}")

    order = 1

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Integrate from s0 to s1 in as many steps as each sample needs.

        Raises
        ------
        ArithmeticError
            If the steps shrink to nothing.
        """
        start, stop = float(s0), float(s1)
        ahead = 1.0 if stop >= start else -1.0
        first: list[Tensor] = []

        def attempt(part: Noisy, _: Tensor, values: Values) -> tuple[Values, Tensor]:
            x, before, s, h = values
            # A remainder of the size of rounding is part of the last step.
            finishing = h >= ahead * (stop - s) * (1.0 - 1e-9)
            following = torch.where(finishing, stop, s + ahead * h)
            drift = part.jet(x, s)[0]
            if not first:
                first.append(drift)
            step = following - s
            noise = part.normal(x, s, following)
            euler = x + _increment(part, drift, noise, s, step)
            improved = x + _increment(part, part.jet(euler, following)[0], noise, following, step)
            size = self.rtol * torch.maximum(before.abs(), euler.abs())
            ratio = 0.5 * (improved - euler) / size.clamp(min=self.atol)
            error = ratio.flatten(1).square().mean(1).sqrt().double().reshape(s.shape)
            accepted = error <= 1.0
            h = step.abs() * 0.9 * error.clamp(min=1e-6) ** -0.9
            require_longer(h, 1e-12 * abs(stop - start), s)
            new, old = (0.5 * (euler + improved), euler, following), (x, before, s)
            x, before, s = accept(accepted, new, old)
            return (x, before, s, h), (accepted & finishing).flatten()

        s = column(torch.full((len(y),), start, dtype=torch.float64, device=y.device), y)
        h = torch.full_like(s, self.first * abs(stop - start))
        return each_trajectory(noisy(eq), attempt, (y, y, s, h)), Node(s0, tuple(first), y)


def _increment(eq: Noisy, drift: Tensor, noise: Tensor, s: Tensor, step: Tensor) -> Tensor:
    """Return the increment of Euler–Maruyama, h f + g √|h| z, for given drift f and noise z."""
    amplitude = torch.as_tensor(eq.spread(s)) * step.abs().sqrt()
    return step.to(drift) * drift + amplitude.to(drift) * noise
