"""The table of problems: one line for each name that ``--problem`` takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from problems import Gaussian, Mixture, digits_mixture, smooth_mixture, toy_mixture

Problem = Mixture | Gaussian
"""An exact problem: a model that also knows its own distribution."""

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "toy": toy_mixture,
    "smooth": smooth_mixture,
    "gaussian": lambda: Gaussian(torch.tensor([0.3, -0.2], dtype=torch.float64), 0.5),
    "digits-mixture": digits_mixture,
}
"""Every problem of the suite by the name it is called by."""


def latents(problem: Problem, samples: int, seed: int) -> Tensor:
    """Return ``samples`` states at the start of the schedule, shape (samples, *event), float64.

    Drawn from the prior N(0, s²I) on the CPU, so that they are the same on every device and in every dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, *problem.event_shape)
    return problem.schedule.prior_std * torch.randn(shape, generator=generator, dtype=torch.float64)
