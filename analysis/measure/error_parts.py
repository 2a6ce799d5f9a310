"""The parts of the error of a learned sampler: derivative, discretisation and score network."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from analysis.measure.case import Case
from analysis.methods import Method
from analysis.study.values import Aside
from problems import Model

PARTS = ("derivative", "discretisation", "score network")
"""The parts of an error, in the order in which they lead from the end of a method to the exact end."""

PAIRS = {
    "eps": "network's ε to the exact one",
    "slope": "network's dε/dγ to the exact one",
    "head": "head to the network's dε/dγ",
    "head_exact": "head to the exact dε/dγ",
}
"""What is compared point by point."""


def error_parts(
    case: Case, truth: Case, method: Method, jets: Method | None, steps: int, times: Aside
) -> dict[str, Any]:
    """Measure the parts of the errors of a method.

    Parameters
    ----------
    case
        The trajectories of the network.
    truth
        Those of the distribution that it was trained on, from the same latents.
    method, jets, steps
        See ``chain``.
    times
        The times after the start at which the exact solution is wanted by this cell or by others, falling to
        the end of the schedule.

    Returns
    -------
    The arrays of ``split``, the error of the reference as ``exact_error``, and that of the solution of the
    network's own flow as ``own_error``.
    """
    exact = truth.exact(*times.value)
    errors = {"exact_error": exact.error, "own_error": case.exact().error}
    return {**split(chain(case, method, jets, steps), exact.x[-1]), **errors}


def chain(case: Case, method: Method, jets: Method | None, steps: int) -> dict[str, Tensor]:
    """Return where a method ends, and the ends between that one and the exact one.

    Parameters
    ----------
    case
        The trajectories.
    method
        The method.
    jets
        The same with exact derivatives, if its own are those of a head.
    steps
        Number of steps.

    Returns
    -------
    By the name of a part of the error, the end where it begins (samples, *event); it leads to the next.
    """
    end, own = case.sample(method, steps)[0], case.exact().x[-1]
    if jets is None:
        return {"discretisation": end, "score network": own}
    return {"derivative": end, "discretisation": case.sample(jets, steps)[0], "score network": own}


def split(ends: Mapping[str, Tensor], exact: Tensor) -> dict[str, Any]:
    """Split errors into parts.

    Parameters
    ----------
    ends
        By the name of a part, where it begins (N, *event); it leads to the next, the last one to ``exact``.
    exact
        The exact ends.

    Returns
    -------
    Arrays (N,): the L2 norm of each part by its name, its share as ``NAME share``, and the norm of the error
    itself, which is its own share, as ``total``.
    """
    points = [x.double().flatten(1) for x in (*ends.values(), exact)]
    error = points[0] - points[-1]
    size = error.norm(dim=1)
    along = error / size.where(size > 0.0, 1.0)[:, None]
    arrays = {"total": size.numpy(), "total share": size.numpy()}
    for name, (a, b) in zip(ends, pairwise(points), strict=True):
        arrays[name] = (a - b).norm(dim=1).numpy()
        arrays[f"{name} share"] = ((a - b) * along).sum(1).numpy()
    return arrays


def distances(case: Case, truth: Case, t: float, times: Aside) -> dict[str, Any]:
    """Compare ε and its derivatives at the exact states at a time, each along the flow of its own model.

    Parameters
    ----------
    case, truth
        As in ``error_parts``.
    t
        The time, which is among ``times`` or the start.
    times
        As in ``error_parts``.

    Returns
    -------
    The arrays of ``compared``.
    """
    exact = truth.exact(*times.value)
    x = exact.x[exact.times.index(t)]
    both = zip(case.split(len(x)), truth.split(len(x), truth.problem), strict=True)
    with torch.no_grad():
        parts = [compared(model, known, case.cast(x[rows]), x[rows], t) for (model, rows), (known, _) in both]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def compared(model: Model, truth: Model, x: Tensor, x_exact: Tensor, t: float) -> dict[str, Tensor]:
    """Compare ε and its derivatives at given states.

    Parameters
    ----------
    model, truth
        The model and the exact one.
    x, x_exact
        The states as each of them takes them, shape (N, *event).
    t
        Their time.

    Returns
    -------
    Arrays (N,) by the names of ``PAIRS``, without a head the first two: the squared L2 norm of the difference
    of a pair and, as ``NAME size``, of its second.
    """
    exact, said = truth.jet(x_exact, t, 2), model.jet(x, t, 2)
    pairs = {"eps": (said[0], exact[0]), "slope": (said[1], exact[1])}
    distilled = model.distilled
    if distilled is not None:
        head = distilled.jet(x, t, 2)[1]
        pairs |= {"head": (head, said[1]), "head_exact": (head, exact[1])}
    arrays = {}
    for name, pair in pairs.items():
        a, b = (v.double().cpu().flatten(1) for v in pair)
        arrays[name] = (a - b).square().sum(1)
        arrays[f"{name} size"] = b.square().sum(1)
    return arrays
