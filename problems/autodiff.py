"""Scores given as plain functions ε(x, t), with derivatives by nested automatic differentiation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from problems.forward_mode import differentiable
from problems.schedule import Schedule
from problems.score import Push, Source
from problems.series import Scalar, Series


class Autodiff(Source):
    """Any function ε(x, t), differentiated along paths by nested Jacobian-vector products.

    Derivative j costs about 2ʲ evaluations of ε. Networks whose layers have no power-series arithmetic need
    this class; for the others it is an independent check. The results are detached: no gradient flows back to
    the parameters of ε or to the states.

    Parameters
    ----------
    eps
        ε(x, t) for states x and a time t: a float, a 0-dim tensor or a tensor that broadcasts against x.
        ``torch.func.jvp`` must be able to differentiate it, nested as deep as the highest derivative asked
        for; common layers that it cannot are replaced, see ``forward_mode``.
    schedule
        The noise schedule of ``eps``.
    data_std
        Standard deviation of the data, per dimension.
    """

    jet_order = 4

    def __init__(
        self, eps: Callable[[Tensor, Scalar], Tensor], schedule: Schedule, data_std: float = 1.0
    ) -> None:
        super().__init__(schedule, data_std)
        self._eps = eps

    def _expand(self, gamma: Series) -> Push:
        path: list[Tensor] = []

        def eps_along(h: Tensor) -> Tensor:
            t = self.schedule.time(_polynomial(gamma.coefficients[: len(path)], h))
            return self._eps(self.schedule.alpha(t) * _polynomial(path, h), t)

        def push(coefficient: Tensor) -> Tensor:
            path.append(coefficient)
            j = len(path) - 1
            if j == 0:
                t = self.schedule.time(gamma[0])
                return self._eps(self.schedule.alpha(t) * coefficient, t).detach()
            f: Callable[[Tensor], Tensor] = eps_along
            for _ in range(j):
                f = _derivative(f)
            zero = torch.zeros((), dtype=torch.float64, device=coefficient.device)
            # Under no_grad, torch differentiates some functions, silu among them, only once in forward mode.
            with torch.enable_grad(), differentiable():
                return f(zero).detach() / math.factorial(j)

        return push


def _polynomial(coefficients: Sequence[Scalar], h: Tensor) -> Tensor:
    """Evaluate Σ cⱼ hʲ by Horner's rule."""
    value: Scalar = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        value = c + h * value
    return torch.as_tensor(value)


def _derivative(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return f' for a function of one real variable, by forward mode."""

    def slope(h: Tensor) -> Tensor:
        tangent: Tensor = torch.func.jvp(f, (h,), (torch.ones_like(h),))[1]
        return tangent

    return slope
