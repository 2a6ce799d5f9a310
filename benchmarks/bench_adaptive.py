"""Adaptive methods on the toy: evaluations at equal worst error, steps of its own against shared ones.

The worst error of a thousand trajectories is a matter of the one that runs closest to the border between two
modes, so it is the geometric mean over seeds that are used nowhere else; the curves are joined by straight
lines on logarithmic axes, and a tolerance that costs more and gives less than another one is left out.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from analysis.measure.problems import latents
from analysis.measure.reference import reference
from analysis.methods import FLOWS, FORMS
from problems import toy_mixture
from solvers import RK45, DormandPrince, TaylorSteps, final, march
from solvers.adaptive_taylor import AdaptiveTaylor

SEEDS = range(901, 907)
TOLERANCES = 10.0 ** -np.arange(2.0, 8.1, 0.5)
METHODS = {
    "rk45": lambda tolerance: RK45(tolerance, tolerance),
    "rk45-each": lambda tolerance: DormandPrince(tolerance, tolerance),
    "taylor-each": lambda tolerance: TaylorSteps(AdaptiveTaylor(6, tolerance)),
}


@functools.cache
def exact():
    problem = toy_mixture()
    starts = [latents(problem, 1000, seed) for seed in SEEDS]
    return starts, [reference(problem, x, (1.0, 1e-3)).x[-1] for x in starts]


@functools.cache
def curve(name, form):
    """Return evaluations, derivatives and worst error at every tolerance, and the seconds of all."""
    problem, points = toy_mixture(), []
    for tolerance in TOLERANCES:
        before, worst = problem.spent, []
        for x, end in zip(*exact(), strict=True):
            with torch.inference_mode():
                eq = FORMS[form].make(problem, None)
                state = final(march(eq, METHODS[name](tolerance), (1.0, 1e-3), x))
            worst.append(float((state.x - end).norm(dim=1).max()) / problem.schedule.alpha(1e-3))
        bill = (problem.spent - before) * (1 / len(SEEDS))
        points.append((bill.nfe, bill.jvp, np.exp(np.mean(np.log(worst)))))
    return np.array(points)


def at_equal_error(points, errors):
    """Return the evaluations that the cheapest tolerances need for given worst errors."""
    best = []
    for nfe, _, error in sorted(points.tolist()):
        if not best or error < best[-1][1]:
            best.append((nfe, error))
    nfe, error = np.log(np.array(best)).T
    return np.exp(np.interp(-np.log(errors), -error, nfe))


@pytest.mark.benchmark(group="evaluations at equal worst error, 1,000 toy trajectories")
@pytest.mark.parametrize("form", FLOWS)
@pytest.mark.parametrize("name", ["rk45-each", "taylor-each"])
def test_adaptive(benchmark, name, form):
    shared, own = curve("rk45", form), curve(name, form)
    low, high = max(shared[:, 2].min(), own[:, 2].min()), min(shared[:, 2].max(), own[:, 2].max())
    errors = np.geomspace(high, low, 41)
    ratio = at_equal_error(own, errors) / at_equal_error(shared, errors)
    benchmark.extra_info.update(
        nfe_ratio=float(np.exp(np.log(ratio).mean())),
        least=float(ratio.min()),
        most=float(ratio.max()),
        jvp_per_nfe=float((own[:, 1] / own[:, 0]).mean()),
        worst_errors=f"{high:.1e} to {low:.1e}",
    )
    for e in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        if low <= e <= high:
            nfe = [at_equal_error(points, np.array([e]))[0] for points in (shared, own)]
            benchmark.extra_info[f"nfe at {e:g}"] = f"{nfe[0]:.0f} : {nfe[1]:.0f}"
    problem, (starts, _) = toy_mixture(), exact()
    eq = FORMS[form].make(problem, None)
    benchmark.pedantic(
        lambda: final(march(eq, METHODS[name](1e-4), (1.0, 1e-3), starts[0])), rounds=1, warmup_rounds=0
    )
