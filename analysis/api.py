"""Measurements for scripts and notebooks: functions of plain values that return data frames.

Data of one's own are read by ``given``, or by ``fitting``, which averages images to the size of states; they
go with a case, ``Case("mine.py:make", given=given("photos.zip"))``. ``folder_quality`` compares two folders.

Every function takes a problem as a name, the path of a checkpoint, a ``Problem`` of one's own or a ``Case``.
Methods are given by name or as values. The commands call the same functions. A ``Study`` keeps results in a
store, and may have workers that measure::

    with open_study("results", workers=2) as study:
        race("toy", nfe=10, study=study)

What additions from outside are made of is here too: ``Method``, ``Coordinates``, ``Grid``, ``Features``,
``Experiment`` and what an experiment works with. See docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from analysis.budget import error_budget
from analysis.command.experiment import Experiment, Outcome
from analysis.command.session import Session
from analysis.derivatives import difference_errors
from analysis.fid import sample_quality
from analysis.gte import end_points
from analysis.guidance import guided_errors
from analysis.heads import head_errors
from analysis.interpolate import strips
from analysis.lte import local_errors
from analysis.measure.case import Case
from analysis.measure.features import Features
from analysis.measure.folders import folder_quality
from analysis.measure.given import Given, fitting, given
from analysis.measure.orders import INTERIOR
from analysis.measure.statistics import Bootstrap
from analysis.methods import FLOWS, FORMS, GRIDS, METHODS, Coordinates, Grid, Method, grid_of
from analysis.orders import certify
from analysis.overhead import derivative_costs
from analysis.recommend import race
from analysis.samples import sample_shares
from analysis.schedule import schedules
from analysis.smoothness import network_smoothness
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
    solver: Solver | Method | str,
    problem: Case | Problem | str | Path = "smooth",
    *,
    forms: Sequence[str | Coordinates] = FLOWS,
    grid: str | Grid = "quadratic",
    interval: tuple[float, float] | None = INTERIOR,
    finest: int = 96,
) -> None:
    """Check in a test that a solver has the order that it declares.

    Parameters
    ----------
    solver
        The solver, or a method, or a name.
    problem
        What is solved; anything that ``Case`` takes.
    forms
        On which forms, by name or themselves; by default on all of the flow.
    grid
        On which grid, by name or itself.
    interval
        On which interval; by default from t = 0.3 to 0.1, where first steps of a low order are felt. None is
        that and the whole schedule.
    finest
        The largest number of steps to begin with. A certificate that would fail takes up to sixteen times as
        many.

    Raises
    ------
    AssertionError
        If a certificate fails or could not be measured, or all errors are those of rounding. The message has
        the declared and the measured order.
    ValueError
        If the solver has no order that could be seen.
    """
    study = Study()
    try:
        found = certify(
            solver, problem, interval=interval, forms=forms, grids=[grid], finest=finest, study=study
        )
    except ArithmeticError:  # on no form; the study has the failures
        found = pd.DataFrame({"verdict": []})
    told = [
        f"{row['solver']} declares order {row['order']:g} and shows {row['slope']:.2f} "
        f"[{row['slope_low']:.2f}, {row['slope_high']:.2f}] "
        f"({row['form']} form, {row['interval']}, {row['kind']})"
        for _, row in found[found["verdict"] == "FAIL"].iterrows()
    ]
    told += [f"on the {r.config['form']} form it could not be measured: {r.failure}" for r in study.failures]
    if not (told or (found["verdict"] == "pass").any()):
        told = ["all errors are those of rounding, or their slopes do not settle"]
    if told:
        raise AssertionError("; ".join(told))


__all__ = [
    "FORMS",
    "GRIDS",
    "METHODS",
    "Bootstrap",
    "Case",
    "Cell",
    "Coordinates",
    "Experiment",
    "Features",
    "Given",
    "Grid",
    "Method",
    "Outcome",
    "Result",
    "Session",
    "Study",
    "assert_order",
    "certify",
    "derivative_costs",
    "difference_errors",
    "end_points",
    "error_budget",
    "fitting",
    "folder_quality",
    "frame",
    "given",
    "grid_of",
    "guided_errors",
    "head_errors",
    "local_errors",
    "measured",
    "network_smoothness",
    "open_study",
    "race",
    "sample_quality",
    "sample_shares",
    "schedules",
    "strips",
    "weak_errors",
    "work_and_error",
]
