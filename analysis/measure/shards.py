"""Samples in shards, each the work of one process: from latents to states, by a method or exactly.

Random numbers belong to the place of a sample in the whole. So a result does not depend on the worker that
made it, and whole shards that are there stay valid if more samples are asked for. The last shard holds the
rest: as many samples are made as were asked for. A shard is always made in one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from analysis.measure.case import Case
from analysis.measure.features import Features
from analysis.measure.given import Given
from analysis.measure.named import Decoder
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
"""Data with which samples are compared, at most, unless there are more samples or told otherwise."""

EACH = 20
"""Data for each sample, up to ``COMPARED``: their share in the chance of a distance is then a twentieth."""

EXACTLY = 300
"""Work of an accurate sample, in evaluations; for the progress bar and for estimates of the time."""


@dataclass(frozen=True)
class View:
    """How samples are looked at.

    Attributes
    ----------
    features
        In which they are compared with data, and, of methods, with the accurate samples.
    decoder
        A latent decoder, through which states go before, if there is one. Features of the name ``LATENT`` see
        the states themselves.
    """

    features: tuple[Features, ...]
    decoder: Decoder | None = None

    def of(self, x: Tensor, prefix: str = "") -> dict[str, Any]:
        """Return states as they are seen: arrays (n, d) by the name of the features."""
        seen = x if self.decoder is None else self.decoder(x)
        return {prefix + f.name: f.of(x if f.name == LATENT else seen).numpy() for f in self.features}

    def of_images(self, x: Tensor) -> dict[str, Any]:
        """Return images, which need no decoding, as they are seen."""
        return {f.name: f.of(x).numpy() for f in self.features}

    def but(self, names: Sequence[str]) -> View:
        """Return the same view in features of these names alone."""
        return View(tuple(f for f in self.features if f.name in names), self.decoder)


LATENT = "latent states"
"""What the states of a model are called whose samples are decoded."""


def seed_of(case: Case, index: int, stream: int) -> int:
    """Return the seed of a stream of random numbers in a shard, 32 bits."""
    return int(np.random.SeedSequence((case.seed % 2**64, index, stream)).generate_state(1)[0])


def initial(case: Case, index: int) -> Tensor:
    """Return the initial states of a shard, (case.samples, *event), float64, on the CPU.

    They are the first of those of a whole shard.
    """
    return latents(case.problem, max(SIZE, case.samples), seed_of(case, index, LATENTS))[: case.samples]


def sampled(case: Case, index: int, view: View, method: Method, steps: int) -> dict[str, Any]:
    """Return what a method makes of the latents of a shard, seen in features, and its bill.

    Parameters
    ----------
    case
        What is solved, how many samples are in the shard, and the seed of the whole.
    index
        Which shard, from 0.
    view
        How the samples are seen.
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
        return {**view.of(case.cast(x)), **asdict(bill)}


def accurate(case: Case, index: int, view: View) -> dict[str, Any]:
    """Return the exact ends of the same trajectories, as they are and denoised, seen in features.

    Arrays by name: those of each feature (case.samples, d), again with the prefix ``denoised ``, and
    ``reference_error``, the error in the ends. Parameters as in ``sampled``.
    """
    with _single_thread():
        tolerance = TOLERANCE if case.network else None
        solution = case.solved(initial(case, index), tolerance=tolerance)
        x = solution.x[-1]
        states = {**view.of(x), **view.of(case.denoise(x), "denoised ")}
        return {**states, "reference_error": solution.error}


def data(case: Case, index: int, view: View) -> dict[str, Any]:
    """Return data of the problem seen in features: arrays (case.samples, d) by name; see ``sampled``."""
    with _single_thread():
        source = torch.Generator().manual_seed(seed_of(case, index, DATA))
        return view.of(case.problem.sample(max(SIZE, case.samples), None, source)[: case.samples])


def pictured(given: Given, first: int, n: int, seed: int, device: str, view: View) -> dict[str, Any]:
    """Return data of a user seen in features: arrays (n, d) by name.

    Parameters
    ----------
    given
        The data.
    first, n, seed
        Which of them; see ``Given.in_turn``.
    device
        Where the features are computed.
    view
        How the data are seen; they are not decoded.
    """
    with _single_thread():
        return view.of_images(given.in_turn(first, n, seed).to(torch.device(device)))


@contextmanager
def _single_thread() -> Iterator[None]:
    """Compute in one thread: how many there are can change how sums are rounded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def sizes(n: int) -> list[int]:
    """Return how many of n samples are in each shard."""
    return [min(SIZE, n - first) for first in range(0, n, SIZE)]


def compared(samples: int, asked: int | None = None) -> int:
    """Return with how many data samples are compared; ``asked`` is what a user says."""
    return asked or max(samples, min(COMPARED, EACH * samples))


class Made(NamedTuple):
    """Samples that were made, seen in features.

    Attributes
    ----------
    truth, accurate
        Shards of data and of accurate samples; there are no data where nothing is compared with them.
    rows
        The rows, each with its shards; those with a note, for which nothing could be made, have none.
    """

    truth: list[Result]
    accurate: list[Result]
    rows: list[tuple[Row, list[Result]]]


def data_shards(case: Case, view: View, n: int) -> list[Cell]:
    """Return the cells of n data of a case: of the user's, each once at most, or of the problem's."""
    config = {**_about(case), "what": "data"}
    if case.given is not None:
        return given_shards(case.given, view, n, case.seed, case.device, config)
    return [
        Cell({**config, "shard": i}, data, {"case": part, "index": i, "view": view}, part.samples)
        for i, part in enumerate(_parts(case, n))
    ]


def given_shards(
    given: Given, view: View, n: int, seed: int, device: str, config: Mapping[str, Any]
) -> list[Cell]:
    """Return the cells of n data of a user, or of all there are; arguments as in ``pictured``."""
    known = {"given": given, "seed": seed, "device": torch.device(device).type, "view": view}
    return [
        Cell({**config, "shard": i}, pictured, {**known, "first": SIZE * i, "n": size}, size)
        for i, size in enumerate(sizes(min(n, len(given))))
    ]


def shards_of(
    case: Case, rows: Sequence[Row], view: View, against: View | None = None, n: int | None = None
) -> list[list[Cell]]:
    """Return the cells, one for each shard: of data, of accurate samples, then of every row without a note.

    Parameters
    ----------
    case
        What is sampled.
    rows
        The rows.
    view
        How samples are seen.
    against
        How data are seen; by default like samples. In no features there are no data.
    n
        Number of data; see ``compared``.

    Raises
    ------
    ValueError
        If there are too few samples.
    """
    if case.samples < 4:
        raise ValueError(f"{case.samples} samples have no neighbours; type --samples 4 or more")
    config, against = _about(case), view if against is None else against
    parts = _parts(case, case.samples)

    def group(about: Mapping[str, Any], measure: Callable[..., Any], work: float, **how: Any) -> list[Cell]:
        return [
            Cell(
                {**config, **about, "shard": i},
                measure,
                {"case": part, "view": view, **how, "index": i},
                part.samples * work,
            )
            for i, part in enumerate(parts)
        ]

    groups = [
        data_shards(case, against, compared(case.samples, n)) if against.features else [],
        group({"what": "accurate samples"}, accurate, EXACTLY),
    ]
    for row in rows:
        if not row.note:
            about = {"what": "samples", **row.factors, "steps": row.steps}
            work = row.method.bill(case.problem, row.steps).cost(Tariff(1.2, 0.2))
            groups.append(group(about, sampled, work, method=row.method, steps=row.steps))
    return groups


def _parts(case: Case, n: int) -> list[Case]:
    """Return the cases of n samples in shards, which know nothing of the data of a user."""
    by_size = {size: case.but(samples=size, given=None) for size in set(sizes(n))}
    return [by_size[size] for size in sizes(n)]


def _about(case: Case) -> dict[str, Any]:
    return {name: value for name, value in case.config.items() if name != "samples"}


def made_of(
    case: Case,
    rows: Sequence[Row],
    view: View,
    study: Study,
    against: View | None = None,
    n: int | None = None,
) -> Made:
    """Make samples. A row of which a shard fails gets the reason as its note, and is a failure of the study.

    Parameters
    ----------
    case, rows, view, against, n
        See ``shards_of``.
    study
        Where results are kept.

    Raises
    ------
    ValueError
        If there are too few samples.
    ArithmeticError
        If data, accurate samples or all rows could not be made.
    """
    groups = shards_of(case, rows, view, against, n)
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
