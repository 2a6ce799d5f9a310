"""Measurements for scripts and notebooks: functions of plain values that return data frames.

Every function takes a problem as a name, the path of a checkpoint, a ``Problem`` of one's own or a ``Case``.
Methods are given by name or as values. The commands call the same functions. A ``Study`` keeps results in a
store, and may have workers that measure::

    with open_study("results", workers=2) as study:
        race("toy", nfe=10, study=study)

What additions from outside are made of is here too: ``Method``, ``Coordinates``, ``Grid``, ``Features``,
``Experiment`` and what an experiment works with. See docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from analysis.command.experiment import Experiment, Outcome
from analysis.command.session import Session
from analysis.fid import sample_quality
from analysis.gte import end_points
from analysis.lte import local_errors
from analysis.measure.case import Case
from analysis.measure.features import Features
from analysis.measure.statistics import Bootstrap
from analysis.methods import METHODS, Coordinates, Grid, Method
from analysis.orders import certify
from analysis.recommend import race
from analysis.study.cells import Cell, Result, Study, frame, measured
from analysis.study.pools import pool
from analysis.study.store import Store
from analysis.weak import weak_errors
from analysis.work_precision import work_and_error
from problems import Problem
from solvers import Solver


@contextmanager
def open_study(
    out: str | Path, workers: int = 1, scheduler: str | None = None, *, fresh: bool = False
) -> Iterator[Study]:
    """Provide a study whose results are kept in the store of a folder, and close it afterwards.

    Parameters
    ----------
    out
        The folder; a command with the same ``--out`` has the same store.
    workers
        Processes on this machine.
    scheduler
        Address of a Dask scheduler, which is asked instead if there is one.
    fresh
        Whether all is measured anew.

    Raises
    ------
    OSError
        If the store cannot be used.
    analysis.study.pools.NoPoolError
        If there are no workers to be had.
    """
    store = Store(Path(out) / "store.sqlite")
    try:
        with pool(workers, scheduler) as who:
            yield Study(store, who, fresh)
    finally:
        store.close()


def assert_order(
    solver: Solver | Method | str, problem: Case | Problem | str | Path = "smooth", *, grid: str = "quadratic"
) -> None:
    """Check in a test that a solver has the order that it declares.

    Methods are crossed with all forms of the flow that are exact, on one grid.

    Parameters
    ----------
    solver
        The solver, or a method, or a name.
    problem
        What is solved; anything that ``Case`` takes.
    grid
        A name in ``GRIDS``.

    Raises
    ------
    AssertionError
        If a certificate fails, could not be measured, or errors are no larger than rounding everywhere; the
        message has the declared and the measured order.
    ValueError
        If the solver has no order that could be seen.
    """
    study = Study()
    found = certify(solver, problem, grids=[grid], study=study)
    told = [
        f"{row['solver']} declares order {row['order']:g} and shows {row['slope']:.2f} "
        f"[{row['slope_low']:.2f}, {row['slope_high']:.2f}] ({row['form']} form, {row['kind']})"
        for _, row in found[found["verdict"] == "FAIL"].iterrows()
    ]
    told += [f"on the {r.config['form']} form it could not be measured: {r.failure}" for r in study.failures]
    if not (told or (found["verdict"] == "pass").any()):
        told = ["all errors are those of rounding, so there is no slope"]
    if told:
        raise AssertionError("; ".join(told))


__all__ = [
    "METHODS",
    "Bootstrap",
    "Case",
    "Cell",
    "Coordinates",
    "Experiment",
    "Features",
    "Grid",
    "Method",
    "Outcome",
    "Result",
    "Session",
    "Study",
    "assert_order",
    "certify",
    "end_points",
    "frame",
    "local_errors",
    "measured",
    "open_study",
    "race",
    "sample_quality",
    "weak_errors",
    "work_and_error",
]
