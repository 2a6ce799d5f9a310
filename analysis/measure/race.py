"""A race of candidates in rounds, judged by numbers of samples whose mean is what is compared.

In each round all candidates left are measured on the same latents, new in every round; those that are worse
than the leader beyond doubt drop out, and the field is cut to a number that the next, larger round affords
(Maron & Moore 1994; Birattari et al. 2002). The last round chooses nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from analysis.measure.case import Case
from analysis.measure.ends import ends
from analysis.measure.features import Features
from analysis.measure.metrics import Moments, frechet, influence
from analysis.measure.rows import Row, tariff
from analysis.measure.statistics import Bootstrap, Interval
from analysis.methods import METHODS, Method
from analysis.study.cells import Cell, Result, Study

Array = NDArray[np.float64]

FEWEST = 64
"""Samples that a race needs at least."""

SHOWN = 8
"""How many stay in any case; lines of a table of runners-up."""

KEPT = 3
"""How many of those that are to be kept stay in any case."""

REFERENCE = 300
"""Evaluations that an accurate end takes, roughly."""

DATA = 10_000
"""Data with which samples are compared."""

Measure = Callable[[Case, Sequence[Row], Study], list[Result]]


@dataclass(frozen=True)
class Criterion:
    """What a race is decided by.

    Attributes
    ----------
    name
        The array of a result that has a number for each sample; candidates are compared by its mean.
    title
        What that mean is.
    measure
        Measures rows; results have the array, and the bills ``nfe``, ``jvp`` and ``head``.
    rounds
        Share of the samples in each round of choosing, and how many candidates may stay.
    floor
        What the accurate solution has, where that is not zero; a function of case and study.
    """

    name: str
    title: str
    measure: Measure
    rounds: tuple[tuple[float, int], ...]
    floor: Callable[[Case, Study], Interval] | None = None


BY_ERROR = Criterion("error", "mean L2 error of the end point in x", ends, ((1 / 16, 80), (1 / 4, 20)))
"""The distance of the end points from the accurate ones."""


def by_frechet(features: Features) -> Criterion:
    """Return the Fréchet distance of samples from data in features.

    The number of a sample is the distance plus its influence on it, see ``metrics.influence``; so their mean
    is the distance, and intervals and paired comparisons are those of other means, to first order. Distances
    need more samples than errors, so the rounds are larger.
    """
    title = f"{features.distance} of samples from data"
    rounds = ((1 / 4, 80), (1 / 2, 20))
    return Criterion(
        "frechet", title, partial(distances, features), rounds, partial(accurate_distance, features)
    )


def distances(features: Features, case: Case, rows: Sequence[Row], study: Study) -> list[Result]:
    """Return results with the array ``frechet``, (samples,); not finite where a sample is not."""
    truth, case = data_moments(features, case, study), case.but(given=None)
    cells = [
        Cell(
            {**case.config, **row.factors, "steps": row.steps},
            seen_ends,
            {"case": case, "method": row.method, "steps": row.steps, "features": features},
            work=row.steps,
        )
        for row in rows
    ]
    found = []
    for result in study.run("ends in features", cells):
        arrays = dict(result.arrays)
        if not result.failure:
            arrays["frechet"] = distance_of_each(arrays.pop("seen"), truth)
        found.append(Result(result.config, arrays, result.failure))
    return found


def accurate_distance(features: Features, case: Case, study: Study) -> Interval:
    """Return the Fréchet distance of accurate samples with its interval, each of shape (1,)."""
    cell = Cell(dict(case.config), seen_exact, {"case": case.but(given=None), "features": features})
    result = study.run("accurate ends in features", [cell])[0]
    if result.failure:
        raise ArithmeticError(f"accurate samples could not be made: {result.failure}")
    each = distance_of_each(result.arrays["seen"], data_moments(features, case, study))
    return Bootstrap(case.samples).means(each[None])


def data_moments(features: Features, case: Case, study: Study) -> Moments:
    """Return the moments of data in features.

    Raises
    ------
    ArithmeticError
        If the problem has no data.
    """
    cell = Cell(
        {"problem": case.name}, seen_data, {"case": case.but(samples=DATA, seed=0), "features": features}
    )
    result = study.run("data in features", [cell])[0]
    if result.failure:
        raise ArithmeticError(f"{case.name} has no data to compare with: {result.failure}")
    return Moments.of(result.arrays["seen"])


def distance_of_each(x: Array, truth: Moments) -> Array:
    """Return the Fréchet distance plus the influence of each sample, (n,), of samples (n, d)."""
    if not np.isfinite(x).all():
        return np.full(len(x), np.inf)
    return frechet(Moments.of(x), truth) + influence(x, truth)


def seen_ends(case: Case, method: Method, steps: int, features: Features) -> dict[str, Any]:
    """Return what a method makes of the latents, ``seen`` in features (samples, d), and its bill."""
    x, bill = case.sample(method, steps)
    return {"seen": features.of(case.cast(x)).numpy(), **asdict(bill)}


def seen_exact(case: Case, features: Features) -> dict[str, Any]:
    """Return the accurate ends, ``seen`` in features (samples, d)."""
    return {"seen": features.of(case.cast(case.exact().x[-1])).numpy()}


def seen_data(case: Case, features: Features) -> dict[str, Any]:
    """Return data, ``seen`` in features (samples, d)."""
    return {"seen": features.of(case.data().to(torch.float64)).numpy()}


def competes(method: Method) -> bool:
    """Return whether a method has an end point to be judged by, and steps for a budget to buy."""
    return not (method.random or method.adaptive)


def _nobody(row: Row) -> bool:
    return False


def raced(
    case: Case,
    rows: Sequence[Row],
    budget: int,
    study: Study,
    by: Criterion = BY_ERROR,
    keep: Callable[[Row], bool] = _nobody,
) -> tuple[pd.DataFrame, list[Row]]:
    """Race rows of one budget.

    Parameters
    ----------
    case
        What is solved; its latents are those of the last round.
    rows
        The candidates.
    budget
        The budget, for the table.
    study
        Where results are kept.
    by
        What they are judged by.
    keep
        Of the candidates of which this is true, the best ``KEPT`` are measured to the end in any case, and so
        is DDIM on the paper's grid, if it entered.

    Returns
    -------
    A tidy table of the finalists, the best first, see ``analysis.recommend.race``, and their rows.

    Raises
    ------
    ValueError
        If nothing can race.
    ArithmeticError
        If nothing could be measured.
    """
    if case.samples < FEWEST:
        raise ValueError(f"{case.samples} samples decide no race; type --samples {FEWEST} or more")
    rows = [row for row in rows if competes(row.method) and not row.note]
    if not rows:
        raise ValueError(f"no candidate can do anything with a budget of {budget}; type a larger one")
    entered = len(rows)
    baseline = [row for row in rows if row.method == METHODS["ddim"]]
    for others, places in rounds_of(case, by):
        rows, values, _ = _measured(others, rows, study, by)
        stay = survivors(values, places)
        stay += [i for i in ranked(values) if keep(rows[i])][:KEPT]
        rows = [rows[i] for i in dict.fromkeys(stay)]
    rows += [row for row in baseline if row not in rows]
    rows, values, results = _measured(case, rows, study, by)
    order = np.argsort(np.where(np.isfinite(values.mean(1)), values.mean(1), np.inf), kind="stable")
    values, bootstrap = values[order], Bootstrap(case.samples)
    rows, arrays = [rows[i] for i in order], [results[i].arrays for i in order]
    ratio = bootstrap.ratios(values, np.broadcast_to(values[0], values.shape))
    about = {**case.config, "budget": budget, "entrants": entered}
    table = pd.DataFrame([{**about, **row.factors, "steps": row.steps} for row in rows]).assign(
        **{name: [float(found[name]) for found in arrays] for name in ("nfe", "jvp", "head")},
        **bootstrap.means(values).columns(by.name),
        **ratio.columns("ratio"),
        worse=ratio.low > 1.0,
        usual=[row.method == METHODS["ddim"] for row in rows],
    )
    if by.floor is None:
        table["reference_error"] = [float(found["reference_error"]) for found in arrays]
    return table, rows


def rounds_of(case: Case, by: Criterion) -> list[tuple[Case, int]]:
    """Return the rounds of choosing: cases with latents of their own, and the places in the next round."""
    return [
        (case.but(samples=max(1, round(case.samples * part)), seed=case.seed + number), places)
        for number, (part, places) in enumerate(by.rounds, start=1)
    ]


def announced(case: Case, rows: Sequence[Row], by: Criterion, kept: int) -> pd.DataFrame:
    """Return what a race would measure, round by round, if every round keeps as many as it may.

    Parameters
    ----------
    case, rows, by
        As in ``raced``.
    kept
        How many candidates may stay beyond the places of a round.

    Returns
    -------
    A line a round: ``candidates``, ``samples``, ``evaluations``, in those of the network for one sample,
    derivatives at their cost and accurate ends included, and ``minutes``, in this process.
    """
    costs = tariff(case.problem)
    rows = [row for row in rows if competes(row.method) and not row.note]
    each = sorted((row.method.bill(case.problem, row.steps).cost(costs) for row in rows), reverse=True)
    lines, left = [], len(rows)
    for number, (other, places) in enumerate([*rounds_of(case, by), (case, 0)], start=1):
        spent = left * sum(each) / max(1, len(each))
        accurate = REFERENCE if by.floor is None or not places else 0
        lines.append(
            {
                "round": str(number) if places else "last",
                "candidates": left,
                "samples": other.samples,
                "evaluations": round((spent + accurate) * other.samples),
                "minutes": (spent + accurate) * pace(other) / 60.0,
            }
        )
        left = min(left, places + kept)
    return pd.DataFrame(lines)


def pace(case: Case) -> float:
    """Return the seconds that an evaluation takes for all samples, here and now, in a step of DDIM."""
    method, steps = METHODS["ddim"], 5
    case.sample(method, 1)
    began = time.perf_counter()
    case.sample(method, steps)
    return (time.perf_counter() - began) / steps


def _measured(
    case: Case, rows: Sequence[Row], study: Study, by: Criterion
) -> tuple[list[Row], Array, list[Result]]:
    """Return the rows that could be measured, their numbers (rows, samples), and their results."""
    pairs = zip(rows, by.measure(case, rows, study), strict=True)
    found = [(row, result) for row, result in pairs if not result.failure]
    if not found:
        raise ArithmeticError(f"nothing could be measured: {study.failures[-1].failure}")
    values = np.stack([result.arrays[by.name] for _, result in found])
    return [row for row, _ in found], values, [result for _, result in found]


def ranked(values: Array) -> list[int]:
    """Return the candidates (candidates, samples) whose numbers are finite, the least mean first."""
    finite = np.flatnonzero(np.isfinite(values).all(1))
    return [int(i) for i in finite[np.argsort(values[finite].mean(1), kind="stable")]]


def survivors(values: Array, places: int) -> list[int]:
    """Return which candidates stay in the race, the best first.

    Parameters
    ----------
    values
        Numbers of the candidates on common latents, (candidates, samples).
    places
        How many may stay.

    Returns
    -------
    Indices of those whose mean is finite, is not above the least one with 95% confidence (paired bootstrap),
    and is among the ``places`` least; the first ``SHOWN`` stay in any case.
    """
    order = ranked(values)
    if not order:
        return list(range(len(values)))[:places]
    ratio: Interval = Bootstrap(values.shape[1]).ratios(
        values[order], np.broadcast_to(values[order[0]], (len(order), values.shape[1]))
    )
    doubtful = [i for i, low in enumerate(ratio.low) if i < SHOWN or not low > 1.0]
    return [order[i] for i in doubtful[:places]]
