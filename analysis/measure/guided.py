"""Guided networks: the exact ends of their flow, and the ends by methods with either kind of derivatives."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from numpy.typing import NDArray

from analysis.measure.case import Case
from analysis.methods import Method
from problems import Guided, GuidedHeads, Model
from problems.labelled import Labelled


def in_turn(case: Case) -> tuple[int, ...]:
    """Return a class for each trajectory of a class-conditional network: the classes in turn.

    Raises
    ------
    ValueError
        If the problem is no network that knows classes.
    """
    if not (isinstance(case.problem, Labelled) and case.problem.classes):
        raise ValueError(
            f"{case.name} is no class-conditional network; choose one, such as --problem digits-classes"
        )
    return tuple(n % case.problem.classes for n in range(case.samples))


def guided(network: Model, labels: tuple[int, ...], scale: float, *, combined: bool = False) -> Model:
    """Return a guided network.

    Parameters
    ----------
    network
        A class-conditional network.
    labels
        The class of each state.
    scale
        The guidance scale w.
    combined
        Whether its derivatives are combined of those of ε_c and ε_u, each along its own unguided flow
        (Eq. 81), and not the exact ones of the guided ε.
    """
    assert isinstance(network, Labelled)
    classes = torch.tensor(labels, device=network.device)
    pair = network.labelled(classes), network.labelled(None)
    return GuidedHeads(*pair, scale) if combined else Guided(*pair, scale)


@lru_cache(maxsize=1)
def _working(case: Case, labels: tuple[int, ...], scale: float, combined: bool) -> Model:
    return guided(case.working, labels, scale, combined=combined)


def guided_exact(case: Case, labels: tuple[int, ...], scale: float) -> dict[str, Any]:
    """Return the exact ends of the guided flow at t_cut as ``x``, and the ``error`` of the reference.

    Parameters
    ----------
    case
        The trajectories of a class-conditional network.
    labels
        The class of each.
    scale
        The guidance scale.
    """
    solution = case.solved(case.latents, model=guided(case.problem, labels, scale))
    return {"x": solution.x[-1].numpy(), "error": solution.error}


def guided_end(
    case: Case,
    labels: tuple[int, ...],
    scale: float,
    method: Method,
    combined: bool,
    steps: int,
    target: NDArray[Any],
) -> dict[str, Any]:
    """Measure where each trajectory of a guided network ends, how far from where it should, and the bill.

    Parameters
    ----------
    case, labels, scale
        As in ``guided_exact``.
    method, steps
        How they are sampled.
    combined
        Which derivatives the method takes; see ``guided``. Those of heads are always combined.
    target
        The exact ends, (samples, *event).

    Returns
    -------
    Arrays by name: the ends x, their L2 errors (samples,), the bill.
    """
    x, bill = case.sample(method, steps, model=_working(case, labels, scale, combined))
    error = (x - torch.from_numpy(target)).flatten(1).norm(dim=1)
    return {"x": x.numpy(), "error": error.numpy(), **asdict(bill)}
