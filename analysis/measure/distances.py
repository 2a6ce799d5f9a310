"""How far the law of what a method makes is from the law of the data: weak errors, and their floor."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.measure.case import Case
from analysis.measure.laws import Law
from analysis.measure.statistics import Bootstrap
from analysis.methods import Method
from problems import Mixture

RESAMPLES = 400

LAW, OTHERS = 1, 2
"""Streams of exact samples."""


def weak_error(case: Case, method: Method, steps: int, exact: int) -> dict[str, Any]:
    """Measure how far the samples of a method are from their law, and what they cost.

    Parameters
    ----------
    case
        What is sampled, and how many samples there are.
    method, steps
        How. Denoised samples are compared with data, others with p_{t_cut}.
    exact
        How many exact samples stand for the law, at least; the least multiple of ``case.samples`` is taken.

    Returns
    -------
    The bill, and by name the distances of ``Law.compare``, each as (value, low, high). They are infinite
    where a sample is not finite.
    """
    x, bill = case.sample(method, steps)
    return {**asdict(bill), **_compared(case, x, method.denoise, exact)}


def chance(case: Case, denoised: bool, exact: int) -> dict[str, Any]:
    """Measure how far as many exact samples are from their law: the floor of all weak errors.

    Parameters
    ----------
    case, exact
        As in ``weak_error``.
    denoised
        Whether the law is that of the data; else it is p_{t_cut}.
    """
    x = exact_samples(case, case.samples, denoised, OTHERS)
    return {"nfe": 0, "jvp": 0, "head": 0, **_compared(case, x, denoised, exact)}


def exact_samples(case: Case, n: int, denoised: bool, stream: int) -> Tensor:
    """Return exact samples, (n, *event), float64; another stream gives others.

    Parameters
    ----------
    case
        The problem and the seed.
    n
        How many.
    denoised
        Whether they are of the data; else they are of p_{t_cut}.
    stream
        Number of the stream.
    """
    entropy = np.random.SeedSequence((case.seed % 2**64, stream))
    generator = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    problem = case.problem
    return case.draw(n, None if denoised else problem.schedule.stop, generator)


@lru_cache(maxsize=2)
def exact_law(case: Case, denoised: bool, exact: int) -> Law:
    """Return the law that samples should have; arguments as in ``chance``."""
    n, problem = case.samples, case.problem
    y = exact_samples(case, n * math.ceil(exact / n), denoised, LAW)
    components = len(problem.weights) if isinstance(problem, Mixture) else 0
    return Law(y.flatten(1).numpy(), labels(case, y, denoised), components)


def labels(case: Case, x: Tensor, denoised: bool) -> NDArray[np.int64] | None:
    """Return the components of a mixture that states are nearest to, (n,).

    None for other problems, and where a state is not finite.
    """
    problem = case.problem
    if not isinstance(problem, Mixture) or not bool(torch.isfinite(x).all()):
        return None
    alpha = 1.0 if denoised else problem.schedule.alpha(problem.schedule.stop)
    parts = [problem.nearest(x[i : i + 1024] / alpha) for i in range(0, len(x), 1024)]
    return torch.cat(parts).numpy()


def _compared(case: Case, x: Tensor, denoised: bool, exact: int) -> dict[str, Any]:
    law = exact_law(case, denoised, exact)
    found: dict[str, Any] = law.compare(
        x.flatten(1).numpy(), Bootstrap(len(x), RESAMPLES), labels(case, x, denoised)
    )
    if isinstance(case.problem, Mixture):
        found.setdefault("occupancy", np.full(3, math.inf))
    return found
