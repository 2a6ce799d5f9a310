"""Samples compared with data: in which features, with which data or statistics, and the tidy table of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from analysis.measure import moments
from analysis.measure.case import Case
from analysis.measure.features import Features, classifier, flat, shaped
from analysis.measure.features import features as named
from analysis.measure.given import need_data
from analysis.measure.metrics import Moments
from analysis.measure.named import Decoder
from analysis.measure.quality import Distance, Judge
from analysis.measure.shards import LATENT, Made, View
from analysis.measure.statistics import Bootstrap
from analysis.study.cells import Result
from problems import Problem
from problems.console import UsageError

Array = NDArray[np.float64]

MEASURED = ("nfe", "jvp", "head", "error", "error_low", "error_high")


@dataclass(frozen=True)
class Comparison:
    """What samples are compared with, and in which features.

    Attributes
    ----------
    view
        How samples are seen.
    against
        How data are seen; in no features there are no data.
    shown
        Names of the features that were asked for.
    reference
        Statistics that stand for the data in the first of the features, if there are any.
    data
        Number of data; None is as many as are enough, see ``shards.compared``.
    """

    view: View
    against: View
    shown: tuple[str, ...]
    reference: Moments | None = None
    data: int | None = None

    @property
    def judged(self) -> tuple[Features, ...]:
        """The features in which there is something to compare with."""
        known = {f.name for f in self.against.features}
        first = self.shown[:1] if self.reference is not None else ()
        return tuple(f for f in self.view.features if f.name in {*known, *first})


def comparison(
    case: Case,
    features: Sequence[str | Features] | None = None,
    *,
    decoder: Decoder | None = None,
    reference: Path | None = None,
    data: int | None = None,
) -> Comparison:
    """Return what the samples of a case are compared with.

    Parameters
    ----------
    case
        What is sampled.
    features
        Names, see ``features.features``, or values; pixels are always added. By default the shipped
        classifier of such images, if there is one, and pixels.
    decoder
        A latent decoder; features then are of decoded samples.
    reference
        File of statistics that stand for the data in the first of the features.
    data
        Number of data.

    Raises
    ------
    UsageError
        If there are no such features or statistics, or no data.
    """
    shape = case.problem.event_shape if decoder is None else decoder.shape
    seen, asked = looks(case.problem if decoder is None else shaped(shape), features)
    latent = () if decoder is None else (Features(LATENT, flat),)
    view, first = View((*seen, *latent), decoder), seen[0]
    if reference is None:
        need_data(case, None if decoder is None else shape)
        return Comparison(view, view.but([f.name for f in seen]), asked, data=data)
    known = moments.read(reference, first.name, first.of(torch.zeros(1, *shape)).shape[1])
    others = [f.name for f in seen[0 if case.given is not None else 1 :]]
    if case.given is not None:
        need_data(case, None if decoder is None else shape)
    elif not _has_data(case):
        others = []
    return Comparison(view, view.but(others), asked, known, data)


def _has_data(case: Case) -> bool:
    try:
        need_data(case)
    except UsageError:
        return False
    return True


def looks(
    problem: Problem, features: Sequence[str | Features] | None, *, pixels: bool = True
) -> tuple[tuple[Features, ...], tuple[str, ...]]:
    """Return the features in which samples are compared, and the names of those that were asked for.

    Parameters
    ----------
    problem
        Whose states they see.
    features
        What is asked for; None is what is usual.
    pixels
        Whether pixels are added.

    Raises
    ------
    UsageError
        If there are no such features, or two have one name.
    """
    usual = ("pixels",) if classifier(problem) is None else ("classifier", "pixels")
    found: dict[str, Features] = {}
    for one in dict.fromkeys(features or usual):
        look = one if isinstance(one, Features) else named([one], problem)[0]
        if look.name in found:
            raise UsageError(f"two features are called {look.name!r}; give one of them another name")
        found[look.name] = look
    asked = tuple(found)
    if pixels:
        own = named(["pixels"], problem)[0]
        found.setdefault(own.name, own)
    return tuple(found.values()), asked


def tabulated(case: Case, made: Made, compared: Comparison, unit: str) -> pd.DataFrame:
    """Return the tidy table: a line for each row and each feature, the accurate solution's first.

    Parameters
    ----------
    case
        Whose samples were made.
    made
        The samples; see ``analysis.measure.shards.made_of``.
    compared
        What they are compared with.
    unit
        Of the budgets: ``nfe`` or ``steps``.
    """
    n = case.samples
    bootstrap = Bootstrap(n)
    states = next(name for name in (LATENT, "pixels", "coordinates") if name in made.accurate[0].arrays)
    own_error = max(float(r.arrays["reference_error"]) for r in made.accurate)
    everywhere = {**case.config, "reference_error": own_error}
    lines: list[dict[str, Any]] = []
    for look in compared.judged:
        name, judge = look.name, judge_of(made, compared, look, bootstrap)
        exact: dict[bool, Distance] = {}
        for denoised in (False, True):
            samples = gathered(made.accurate, _prefix(denoised) + name)
            exact[denoised] = judge.distance(samples)
            about = {"solver": "accurate", "denoise": denoised, "note": "", "feature": name}
            lines.append({**everywhere, **about, **judge.of(samples, exact[denoised])})
        for row, parts in made.rows:
            line = {**everywhere, **row.factors, "budget": row.budget, "steps": row.steps or None}
            line |= {"feature": name, "note": row.note, **dict.fromkeys(MEASURED, math.nan)}
            if not row.note:
                bills = ("nfe", "jvp", "head")
                size = np.array([len(part.arrays[states]) for part in parts])
                line |= {bill: float(_bills(parts, bill) @ size / size.sum()) for bill in bills}
                line["budget"] = row.budget or line["nfe"]  # methods that choose their own steps have none
                samples = gathered(parts, name)
                distance = judge.distance(samples)
                line |= judge.of(samples, distance) | judge.gap(distance, exact[row.method.denoise])
            if not row.note and not row.method.random:
                ends = gathered(made.accurate, _prefix(row.method.denoise) + states)
                error = bootstrap.means(np.linalg.norm(gathered(parts, states) - ends, axis=1)[None])
                line |= {"error": float(error.value[0])}
                line |= {"error_low": float(error.low[0]), "error_high": float(error.high[0])}
            lines.append(line)
    return pd.DataFrame(lines).rename(columns={"budget": f"{unit}_budget"})


def judge_of(made: Made, compared: Comparison, look: Features, bootstrap: Bootstrap) -> Judge:
    """Return what compares samples with the data in one of the features."""
    statistics = compared.reference if look.name == compared.shown[0] else None
    if look.name in {f.name for f in compared.against.features}:
        return Judge(gathered(made.truth, look.name), bootstrap, statistics)
    assert statistics is not None
    return Judge(statistics, bootstrap)


def gathered(parts: Sequence[Result], name: str) -> Array:
    """Return an array of all shards."""
    return np.concatenate([part.arrays[name] for part in parts])


def _bills(parts: Sequence[Result], name: str) -> Array:
    return np.array([float(part.arrays[name]) for part in parts])


def _prefix(denoised: bool) -> str:
    return "denoised " if denoised else ""
