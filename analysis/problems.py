"""The table of problems: one line for each name that ``--problem`` takes."""

from __future__ import annotations

import copy
import dataclasses
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


def between(problem: Problem, start: float, stop: float) -> Problem:
    """Return the same problem with its schedule cut to [stop, start], the times that all grids cover.

    Raises
    ------
    ValueError
        If that is not an interval inside the schedule's own.
    """
    schedule = problem.schedule
    if not schedule.stop <= stop < start <= schedule.start:
        raise ValueError(
            f"{schedule.stop:g} <= stop < start <= {schedule.start:g} must hold, "
            f"which stop = {stop:g}, start = {start:g} do not"
        )
    part = copy.copy(problem)
    part.schedule = dataclasses.replace(schedule, start=start, stop=stop)  # type: ignore[type-var]
    return part
