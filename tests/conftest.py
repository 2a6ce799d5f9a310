"""What several test files stand on: high-precision mixtures, a cluster, draft figures, counted writes.

The process that hands out tests to others reads this file too, so torch and the suite are imported where they
are used.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import mpmath
import numpy as np
import pytest
from hypothesis import settings
from mpmath import mp, mpf

if TYPE_CHECKING:
    from torch import Tensor

mp.dps = 60
settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported and collected stays: to look for garbage in it takes seconds in every worker."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


Vector = list[mpmath.mpf]
Eps = Callable[[Vector, mpmath.mpf], Vector]
Solve = Callable[[Vector], Vector]


def exact_eps(
    means: Sequence[Sequence[float]],
    covariances: Sequence[float] | Sequence[Tensor],
    weights: Sequence[float],
) -> Eps:
    """Return ε(x̄, γ) = γ Σ rₖ (Σₖ + γ²I)⁻¹ (x̄ - mₖ) of a mixture, for real and complex arguments of mpmath.

    A covariance is a number (times the identity) or a matrix.
    """
    centres = [[mpf(c) for c in m] for m in means]
    shares = [mpf(w) for w in weights]

    def isotropic(variance: mpmath.mpf) -> tuple[Solve, mpmath.mpf]:
        inverse, root = 1 / variance, 1 / mp.sqrt(variance ** len(centres[0]))
        return lambda d: [c * inverse for c in d], root

    def general(matrix: mpmath.matrix) -> tuple[Solve, mpmath.mpf]:
        return lambda d: list(mp.lu_solve(matrix, mp.matrix(d))), 1 / mp.sqrt(mp.det(matrix))

    def eps(xbar: Vector, gamma: mpmath.mpf) -> Vector:
        @functools.cache
        def component(covariance: float | Tensor) -> tuple[Solve, mpmath.mpf]:
            if isinstance(covariance, int | float):
                return isotropic(mpf(covariance) + gamma**2)
            return general(mp.matrix(covariance.tolist()) + gamma**2 * mp.eye(len(xbar)))

        numerator, total = [mpf(0)] * len(xbar), mpf(0)
        for centre, covariance, share in zip(centres, covariances, shares, strict=True):
            solve, root = component(covariance)
            d = [a - b for a, b in zip(xbar, centre, strict=True)]
            solved = solve(d)
            r = share * root * mp.exp(-mp.fdot(d, solved) / 2)
            total += r
            numerator = [n + r * v for n, v in zip(numerator, solved, strict=True)]
        return [gamma * n / total for n in numerator]

    return eps


def exact_flow_jet(eps: Eps, xbar: Sequence[float], gamma: float, order: int) -> np.ndarray:
    """Return (ε, dε/dγ, …) along dx̄/dγ = ε by Picard's iteration, shape (order, D), to more than 40 digits.

    Iteration j fixes one more Taylor coefficient, which is read off by Cauchy's integral over a circle of
    radius 1e-12 γ. Nothing but values of ε enters.
    """
    with mp.workdps(170):
        centre, radius = mpf(gamma), mpf(gamma) * mpf(10) ** -12
        path, jet = [[mpf(c) for c in xbar]], []
        for j in range(order):
            n = j + 5
            coefficient = [mpf(0)] * len(xbar)
            for m in range(n // 2 + 1):
                h = radius * mp.expjpi(mpf(2 * m) / n)
                point = [mp.polyval([c[i] for c in reversed(path)], h) for i in range(len(xbar))]
                share = mpf(1 if m == 0 or 2 * m == n else 2) / n  # the conjugate points come for free
                values = eps(point, centre + h)
                coefficient = [c + share * mp.re(v / h**j) for c, v in zip(coefficient, values, strict=True)]
            jet.append([mp.factorial(j) * c for c in coefficient])
            path.append([c / (j + 1) for c in coefficient])
        return np.array(jet)


def relative_errors(values: Sequence[Tensor], exact: np.ndarray) -> list[float]:
    """Return |value - exact|/|exact| for vectors, the difference taken in high precision."""
    pairs = zip((v.tolist() for v in values), exact, strict=True)
    return [
        float(mp.norm([mpf(a) - b for a, b in zip(v, e, strict=True)]) / mp.norm(list(e))) for v, e in pairs
    ]


def distance(a: Tensor, b: Tensor) -> float:
    """Return the largest Euclidean distance between corresponding vectors."""
    return float((a - b).norm(dim=-1).max())


def fitted_order(steps: Sequence[int], errors: Sequence[float]) -> float:
    """Return the slope of -log(error) against log(steps), by least squares."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


@pytest.fixture(scope="session")
def cluster_address():
    """The address of a Dask scheduler with two worker processes, shared by all tests that need workers."""
    from analysis.study.pools import local_cluster

    with local_cluster(2) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="session")
def forks():
    """Processes that are forks of a server, which imports the suite once, with the tests that use it most."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.analysis.test_fid"])
    return context


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


LAID_OUT: set[tuple[str, int]] = set()
"""Names and numbers of panels of the figures that were laid out by this process."""


def draft(figure, path):
    """Write a figure as a coarse PNG, and a PDF that is none; lay it out if no such figure was."""
    from matplotlib import pyplot as plt

    from analysis.show import plots

    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(path.name + suffix) for suffix in (".pdf", ".png")]
    files[0].write_bytes(b"%PDF-1.4\n")
    such = path.name, len(figure.axes)
    if such in LAID_OUT:
        figure.set_layout_engine("none")
    LAID_OUT.add(such)
    with plots.style():
        figure.savefig(files[1], dpi=20)
    plt.close(figure)
    return files


@pytest.fixture(scope="session", autouse=True)
def save():
    """What writes figures as users get them.

    Tests draw and write them coarsely; layouts, which cost most, are made once for each kind.
    """
    from analysis.show import plots

    with pytest.MonkeyPatch.context() as patch:
        write = plots.save
        patch.setattr(plots, "save", draft)
        yield write


@pytest.fixture
def figures(monkeypatch, save):
    """Write figures as users get them."""
    monkeypatch.setattr("analysis.show.plots.save", save)


@pytest.fixture
def written(monkeypatch):
    """The keys of the cells that are written to any store, in their order."""
    from analysis.study.store import Store

    keys: list[str] = []
    write = Store.write
    monkeypatch.setattr(Store, "write", lambda self, *a: (keys.append(a[0]), write(self, *a)))
    return keys
