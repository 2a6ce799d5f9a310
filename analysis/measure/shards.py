"""Samples in shards, each the work of one process: from latents to states, by a method or exactly.

Random numbers belong to the place of a sample in the whole. So a result does not depend on the worker that
made it, and shards that are there stay valid if more samples are asked for. A shard is always made whole, in
one thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from analysis.measure.case import Case
from analysis.measure.features import Features
from analysis.measure.problems import latents
from analysis.measure.rows import Row
from analysis.methods import Method
from analysis.study.cells import Cell, Result, Study
from problems import Brownian, Tariff

SIZE = 250
"""Samples in a shard."""

TOLERANCE = 5e-3
"""To which accurate samples are solved where derivatives are no help; see ``reference``."""

LATENTS, NOISE, DATA = range(3)
"""Streams of random numbers."""


COMPARED = 10_000
"""Data, at least, with which samples are compared."""

EXACTLY = 300
"""Work of an accurate sample, in evaluations; for the progress bar and for estimates of the time."""


def seed_of(case: Case, index: int, stream: int) -> int:
    """Return the seed of a stream of random numbers in a shard, 32 bits."""
    return int(np.random.SeedSequence((case.seed % 2**64, index, stream)).generate_state(1)[0])


def initial(case: Case, index: int) -> Tensor:
    """Return the initial states of a shard, (case.samples, *event), float64, on the CPU."""
    return latents(case.problem, case.samples, seed_of(case, index, LATENTS))


def sampled(
    case: Case, index: int, features: Sequence[Features], method: Method, steps: int
) -> dict[str, Any]:
    """Return what a method makes of the latents of a shard, seen in features, and its bill.

    Parameters
    ----------
    case
        What is solved, how many samples are in a shard, and the seed of the whole.
    index
        Which shard, from 0.
    features
        In which the samples are seen.
    method, steps
        How they are made.

    Returns
    -------
    Arrays by name: those of each feature (case.samples, d), ``nfe``, ``jvp`` and ``head``.

    Raises
    ------
    FloatingPointError
        If some of the samples are not finite.
    """
    with _single_thread():
        noise = Brownian(seed_of(case, index, NOISE))
        x, bill = case.sample(method, steps, initial(case, index), noise=noise)
        wild = int((~torch.isfinite(x).flatten(1).all(1)).sum())
        if wild:
            raise FloatingPointError(f"{wild} of {len(x)} samples are not finite")
        return {**_seen(features, case.cast(x)), **asdict(bill)}


def accurate(case: Case, index: int, features: Sequence[Features]) -> dict[str, Any]:
    """Return the exact ends of the same trajectories, as they are and denoised, seen in features.

    Arrays by name: those of each feature (case.samples, d), again with the prefix ``denoised ``, and
    ``reference_error``, the error in the ends. Parameters as in ``sampled``.
    """
    with _single_thread():
        tolerance = TOLERANCE if case.network else None
        solution = case.solved(initial(case, index), tolerance=tolerance)
        x = solution.x[-1]
        states = {**_seen(features, x), **_seen(features, case.denoise(x), "denoised ")}
        return {**states, "reference_error": solution.error}


def data(case: Case, index: int, features: Sequence[Features]) -> dict[str, Any]:
    """Return data seen in features: arrays (case.samples, d) by name. Parameters as in ``sampled``."""
    with _single_thread():
        source = torch.Generator().manual_seed(seed_of(case, index, DATA))
        return _seen(features, case.problem.sample(case.samples, None, source))


def _seen(features: Sequence[Features], x: Tensor, prefix: str = "") -> dict[str, Any]:
    return {prefix + f.name: f.of(x).numpy() for f in features}


@contextmanager
def _single_thread() -> Iterator[None]:
    """Compute in one thread: how many there are can change how sums are rounded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Made(NamedTuple):
    """Samples that were made, seen in features.

    Attributes
    ----------
    truth, accurate
        Shards of data and of accurate samples.
    rows
        The rows, each with its shards; those with a note, for which nothing could be made, have none.
    """

    truth: list[Result]
    accurate: list[Result]
    rows: list[tuple[Row, list[Result]]]


def shards_of(case: Case, rows: Sequence[Row], seen: Sequence[Features]) -> list[list[Cell]]:
    """Return the cells, one for each shard: of data, of accurate samples, then of every row without a note.

    Raises
    ------
    ValueError
        If there are too few samples.
    """
    if case.samples < 4:
        raise ValueError(f"{case.samples} samples have no neighbours; type --samples 4 or more")
    part = case.but(samples=SIZE)
    config = {name: value for name, value in case.config.items() if name != "samples"}

    def group(
        count: int, about: Mapping[str, Any], measure: Callable[..., Any], work: float, **how: Any
    ) -> list[Cell]:
        known = {"case": part, "features": tuple(seen), **how}
        return [
            Cell({**config, **about, "shard": i}, measure, {**known, "index": i}, SIZE * work)
            for i in range(count)
        ]

    count = math.ceil(case.samples / SIZE)
    groups = [
        group(max(count, COMPARED // SIZE), {"what": "data"}, data, 1.0),
        group(count, {"what": "accurate samples"}, accurate, EXACTLY),
    ]
    for row in rows:
        if not row.note:
            about = {"what": "samples", **row.factors, "steps": row.steps}
            work = row.method.bill(case.problem, row.steps).cost(Tariff(1.2, 0.2))
            groups.append(group(count, about, sampled, work, method=row.method, steps=row.steps))
    return groups


def made_of(case: Case, rows: Sequence[Row], seen: Sequence[Features], study: Study) -> Made:
    """Make samples. A row of which a shard fails gets the reason as its note, and is a failure of the study.

    Raises
    ------
    ValueError
        If there are too few samples.
    ArithmeticError
        If data, accurate samples or all rows could not be made.
    """
    groups = shards_of(case, rows, seen)
    results = iter(replace(study, failures=[]).run("fid", [cell for group in groups for cell in group]))
    truth, accurate, *measured = [[next(results) for _ in group] for group in groups]
    for part in (truth, accurate):
        if reason := _failure(part):
            raise ArithmeticError(f"{part[0].config['what']} could not be made: {reason}")
    done, found = iter(measured), list[tuple[Row, list[Result]]]()
    for row in rows:
        parts = [] if row.note else next(done)
        if reason := _failure(parts):
            config = {name: value for name, value in parts[0].config.items() if name != "shard"}
            study.failures.append(Result(config, {}, reason))
            row, parts = replace(row, note=reason), []
        found.append((row, parts))
    if all(row.note for row, _ in found):
        raise ArithmeticError(f"no row could be measured; {found[-1][0].solver}: {found[-1][0].note}")
    return Made(truth, accurate, found)


def _failure(parts: Sequence[Result]) -> str:
    return next((part.failure for part in parts if part.failure), "")
