"""Distilled heads of one network: where they lead samples, and how far they are from the exact derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from analysis.measure.case import Case
from analysis.measure.features import Features
from analysis.methods import Method
from problems import Network
from problems.console import UsageError
from problems.images.score import Learned
from problems.images.training import stratified

PROBES = 1000
"""Diffused data on which the derivatives of a head are compared with those of its network."""


def without_head(case: Case) -> Case:
    """Return the same case of a network without its head, which all heads of the network have in common."""
    return case.but(problem=_headed(case, None), typed="")


def end_by_head(
    case: Case, method: Method, steps: int, head: nn.Module | None, features: Features | None
) -> dict[str, Any]:
    """Measure how far each trajectory ends from the end of the exact flow of the network.

    Parameters
    ----------
    case
        The trajectories, of a network without a head.
    method, steps
        How they are sampled.
    head
        The head whose derivatives the method takes, if it takes those of one.
    features
        Features of images, in which errors are measured too.

    Returns
    -------
    Arrays by name: the L2 errors in x, those in features, both (samples,), and the error of the reference.
    """
    model = None if head is None else _headed(case, head).to(case.cast(torch.empty(0)))
    x, _ = case.sample(method, steps, model=model)
    exact = case.exact()
    apart = {"error": x - exact.x[-1]}
    if features is not None:
        apart["feature_error"] = features.of(x) - features.of(exact.x[-1])
    arrays = {name: d.flatten(1).norm(dim=1).numpy() for name, d in apart.items()}
    return {**arrays, "reference_error": exact.error}


def _headed(case: Case, head: Any) -> Learned | Network:
    """Return the network of a case with a head, or with none."""
    assert isinstance(case.problem, Learned | Network)
    return case.problem.with_head(head)


def has_data(network: Learned | Network) -> bool:
    """Return whether what a network was trained on is at hand."""
    try:
        network.sample(1, None, torch.Generator().manual_seed(0))
    except (ValueError, UsageError):
        return False
    return True


def derivative_error(case: Case, head: nn.Module) -> dict[str, Any]:
    """Measure the relative error of a head's dε/dγ on diffused data, weighted by γ² (Eq. 15).

    It is measured in the precision of the head, which is that in which it was trained.

    Parameters
    ----------
    case
        The network, the seed of the data, and how many of them it sees at once.
    head
        The head.

    Returns
    -------
    ``derivative_error``, a number.
    """
    schedule, source = case.problem.schedule, torch.Generator().manual_seed(case.seed)
    model = _headed(case, head).to(next(head.parameters()))
    x0 = case.problem.sample(PROBES, None, source)
    gamma = schedule.gamma(stratified(PROBES, schedule.stop, schedule.start, source))[:, None, None, None]
    xbar = (x0 + gamma * torch.randn(x0.shape, generator=source, dtype=torch.float64)).to(model.dtype)
    gamma = gamma.to(model.dtype)
    apart: list[Tensor] = []
    size: list[Tensor] = []
    with torch.inference_mode():
        for part, rows in case.split(PROBES, model):
            assert isinstance(part, Learned | Network)
            assert part.distilled is not None
            states, g = xbar[rows], gamma[rows]
            said, slope = (one.flow_jet(states, g, 2)[1] for one in (part.distilled, part))
            apart.append(g * (said - slope))
            size.append(g * slope)
        return {"derivative_error": float(torch.cat(apart).norm() / torch.cat(size).norm())}
