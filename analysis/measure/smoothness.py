"""How smoothly a network depends on time: derivatives of ε along its flow, its loss, and ends with images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.measure.case import Case
from analysis.methods import Method
from analysis.study.values import Aside
from problems import Model
from problems.images.training import stratified
from problems.score import align

ORDERS = 2
"""The highest order of the derivatives that are measured."""

TILES = 9
"""How many ends are kept as images."""


def exact_end(case: Case, times: Aside) -> dict[str, Any]:
    """Return the first exact ends, as ``x``, and the error of the reference, (samples,).

    Parameters
    ----------
    case
        The trajectories.
    times
        The times after the start at which the exact solution is wanted, falling to the end of the schedule.
    """
    exact = case.exact(*times.value)
    return {"x": exact.x[-1][:TILES].numpy(), "error": np.full(case.samples, exact.error)}


def sampled_end(case: Case, method: Method, steps: int, times: Aside) -> dict[str, Any]:
    """Return where a method brings the first latents, as ``x``, and the L2 errors of all, (samples,)."""
    x, _ = case.sample(method, steps)
    error = (x - case.exact(*times.value).x[-1]).flatten(1).norm(dim=1)
    return {"x": x[:TILES].numpy(), "error": error.numpy()}


def derivative_squares(case: Case, t: float, times: Aside) -> dict[str, Any]:
    """Return ``squares`` at the exact states at a time, which is among ``times`` or the start."""
    exact = case.exact(*times.value)
    x = exact.x[exact.times.index(t)]
    with torch.no_grad():
        parts = [squares(model, case.cast(x[rows]), t) for model, rows in case.split(case.samples)]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def squares(model: Model, x: Tensor, t: float) -> dict[str, Tensor]:
    """Return |γᵏ dᵏε/dγᵏ|² at states (n, *event) and their time, as ``order k`` up to ``ORDERS``, (n,)."""
    gamma = float(model.schedule.gamma(t))
    jet = model.jet(x, t, ORDERS + 1)
    return {f"order {k}": (gamma**k * d.double().cpu()).flatten(1).square().sum(1) for k, d in enumerate(jet)}


def training_loss(case: Case, draws: int) -> dict[str, Any]:
    """Return the mean of (ε - noise)² on each of so many noisy images, t uniform as in training, (draws,).

    NaN where what a network was trained on is not at hand.
    """
    schedule, source = case.problem.schedule, torch.Generator().manual_seed(case.seed)
    try:
        x0 = case.problem.sample(draws, None, source)
    except ValueError:
        return {"loss": np.full(draws, np.nan)}
    t = stratified(draws, schedule.stop, schedule.start, source)
    noise = torch.randn(x0.shape, generator=source, dtype=torch.float64)
    x = align(schedule.alpha(t), x0) * x0 + align(schedule.sigma(t), x0) * noise
    with torch.inference_mode():
        said = [
            model(case.cast(x[rows]), t[rows].to(case.device)).double().cpu()
            for model, rows in case.split(draws)
        ]
    return {"loss": (torch.cat(said) - noise).flatten(1).square().mean(1).numpy()}
