"""The adaptive method for the reverse SDE, in which every sample takes steps of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.adaptive import Adaptive
from solvers.interface import Equation, Node, Past, Scalar


@dataclass(frozen=True)
class AdaptiveSDE(Adaptive):
    """The adaptive solver of Jolicoeur-Martineau et al. (2021), Alg. 1, with the L2 norm and extrapolation.

    With K₁ the increment of Euler–Maruyama from (y, s) and K₂ the same with the same noise from
    (y + K₁, s + h), the state moves by ½ (K₁ + K₂), and ½ (K₂ - K₁) is the estimate of the error. A step is
    accepted if the root mean square of its ratio to max(atol, rtol max(|y′|, |y + K₁|)), with y′ the last
    Euler–Maruyama proposal that was accepted, is at most 1. Two evaluations for each attempt. The noise is
    that of the interval on the sample's own path, so a rejected step is tried again on the same path. No path
    is smooth, so rounding grows from step to step until it decides where the steps end: the same samples to
    the last bit, or others that are as good.

    Parameters
    ----------
    rtol, atol
        Relative and absolute tolerance; the paper's runs have rtol from 0.01 to 0.5 and atol = 1/128 for data
        in [-1, 1].
    first
        The first step, as a part of the whole.

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

    @property
    def order(self) -> int:
        """1, in the weak sense."""
        return 1

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Integrate from s0 to s1 in as many steps as each sample needs.

        Raises
        ------
        ArithmeticError
            If the steps shrink to nothing.
        """
        start, stop, n = float(s0), float(s1), len(y)
        ahead = 1.0 if stop >= start else -1.0
        ends, slope = torch.empty_like(y), None
        index = torch.arange(n, device=y.device)
        s = torch.full((n, *(1 for _ in y.shape[1:])), start, dtype=torch.float64, device=y.device)
        h = torch.full_like(s, self.first * abs(stop - start))
        x = before = y
        while len(index):
            part = eq.part(index, n)
            # A remainder that rounding leaves is no step of its own.
            finishing = h >= ahead * (stop - s) * (1.0 - 1e-9)
            following = torch.where(finishing, stop, s + ahead * h)
            drift = part.jet(x, s)[0]
            slope = drift if slope is None else slope
            step = following - s
            noise = part.normal(x, s, following)
            euler = x + _increment(part, drift, noise, s, step)
            improved = x + _increment(part, part.jet(euler, following)[0], noise, following, step)
            size = self.rtol * torch.maximum(before.abs(), euler.abs())
            ratio = 0.5 * (improved - euler) / size.clamp(min=self.atol)
            error = ratio.flatten(1).square().mean(1).sqrt().double().reshape(s.shape)
            accepted = error <= 1.0
            h = step.abs() * 0.9 * error.clamp(min=1e-6) ** -0.9
            if not bool((h > 1e-12 * abs(stop - start)).all()):
                raise ArithmeticError("the steps of the adaptive SDE solver shrink to nothing")
            x = torch.where(accepted, 0.5 * (euler + improved), x)
            before = torch.where(accepted, euler, before)
            s = torch.where(accepted, following, s)
            done = (accepted & finishing).flatten()
            ends[index[done]] = x[done]
            going = ~done
            x, before, s, h, index = (v[going] for v in (x, before, s, h, index))
        return ends, Node(s0, () if slope is None else (slope,), y)


def _increment(eq: Equation, drift: Tensor, noise: Tensor, s: Tensor, step: Tensor) -> Tensor:
    """Return the increment of Euler–Maruyama with given noise."""
    amplitude = torch.as_tensor(eq.spread(s)) * step.abs().sqrt()
    return step.to(drift) * drift + amplitude.to(drift) * noise
