"""Methods that choose their own steps inside the interval they are given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchdiffeq import odeint

from solvers.interface import Equation, Node, Past, Scalar, Solver


class Adaptive(Solver):
    """A method for which a grid is only a list of times to come by: between them it chooses its own steps."""


@dataclass(frozen=True)
class RK45(Adaptive):
    """Dormand–Prince 5(4) with step-size control for the whole batch, by torchdiffeq.

    torchdiffeq steps beyond the end of the interval and interpolates back unless it is told where to stop;
    here it is told, so the equation is never evaluated outside [s0, s1].

    Parameters
    ----------
    rtol, atol
        Relative and absolute tolerance; the paper's run has 1e-2 for both (Sec. 5.1).
    """

    rtol: float = 1e-2
    atol: float = 1e-2

    @property
    def order(self) -> int:
        """5."""
        return 5

    def step(self, eq: Equation, y: Tensor, s0: Scalar, s1: Scalar, past: Past) -> tuple[Tensor, Node]:
        """Integrate from s0 to s1 in as many steps as the tolerance asks for."""
        first: list[Tensor] = []
        low, high = sorted((float(s0), float(s1)))

        def f(s: Tensor, state: Tensor) -> Tensor:
            # The probe that picks the first step knows no end of the interval.
            slope = eq.jet(state, min(max(s.item(), low), high))[0]
            if not first:
                first.append(slope)
            return slope

        ends = torch.tensor([float(s0), float(s1)], dtype=torch.float64, device=y.device)
        options = {"step_t": ends[1:], "dtype": torch.float64}
        path: Tensor = odeint(f, y, ends, rtol=self.rtol, atol=self.atol, method="dopri5", options=options)
        return path[1], Node(s0, (first[0],), y)
