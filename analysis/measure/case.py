"""A case: which trajectories of which problem are measured, in which precision, where, in which batches.

A case is a value. Equal cases have the same initial states, the same exact states, the same working model and
the same noise, and these are made once in a process.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis.measure.given import Given
from analysis.measure.problems import DTYPES, between, latents, opened, portable
from analysis.measure.reference import SERIES, Reference, Way, way_to
from analysis.methods import Method
from analysis.study.keys import Keys
from problems import Bill, Brownian, Model, Noise, Problem, denoise
from problems.score import diffused

BATCH = 1000
"""States that a model sees at once, at most, unless told otherwise."""


@dataclass(frozen=True, eq=False)
class Case:
    """What every measurement is made of.

    Parameters
    ----------
    problem
        A name in ``PROBLEMS``, the path of a checkpoint, or a problem of one's own. The latter is copied, so
        that later changes do not reach the case.
    samples
        Number of trajectories.
    seed
        Seed of the initial states and of all noise.
    dtype
        A name in ``DTYPES``, the precision in which methods run; float64 by default, float32 for networks.
    device
        Name of the torch device on which they run.
    batch
        How many states a model sees at once, at most. Results depend on it by rounding alone.
    name
        What the problem is called in tables; by default what was typed, or the name of its class.
    given
        Data of a user, instead of those of the problem: where samples are compared with data, or begin there.

    Attributes
    ----------
    typed
        What the problem was asked for by; empty for a problem of one's own.
    way
        How the problem is solved exactly.
    digest
        Hash of what the problem is, code and data, and of how it is solved.

    Raises
    ------
    ValueError
        If there is no such problem, with a sentence for the user.
    """

    problem: Problem
    samples: int = 1000
    seed: int = 0
    dtype: str = ""
    device: str = "cpu"
    batch: int = BATCH
    name: str = ""
    typed: str = ""
    given: Given | None = None
    way: Way = field(init=False, repr=False)
    digest: str = field(init=False, repr=False)

    def __init__(
        self,
        problem: Problem | str | Path,
        samples: int = 1000,
        seed: int = 0,
        dtype: str | None = None,
        device: str = "cpu",
        batch: int = BATCH,
        name: str = "",
        typed: str = "",
        given: Given | None = None,
    ) -> None:
        if isinstance(problem, str | Path):
            asked = str(problem)
            name = name or asked
            problem, typed = opened(asked), portable(asked)
        elif not typed:
            problem, name = copy.deepcopy(problem), name or type(problem).__name__
        chosen = DTYPES[dtype] if dtype else problem.dtype
        exact = torch.promote_types(problem.dtype, chosen)
        values = {
            "problem": problem.to(torch.empty(0, dtype=exact)),
            "samples": samples,
            "seed": seed,
            "dtype": str(chosen).removeprefix("torch."),
            "device": device,
            "batch": batch,
            "name": name,
            "typed": typed,
            "given": given,
        }
        for attribute, value in values.items():
            object.__setattr__(self, attribute, value)
        object.__setattr__(self, "way", way_to(self.problem))
        object.__setattr__(self, "digest", Keys().key(self.way, {"score": self.problem}))

    def __key__(self) -> object:
        """Return what determines the results of a case, for ``study.keys``."""
        batch = self.batch if self.network else None
        return (
            self.problem,
            self.way,
            self.samples,
            self.seed,
            self.dtype,
            torch.device(self.device).type,
            batch,
            self.given,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Case) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[object, ...]:
        given = None if self.given is None else self.given.digest
        return self.digest, self.samples, self.seed, self.dtype, self.device, self.batch, given

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel by name where there is one."""
        about = (self.samples, self.seed, self.dtype, self.device, self.batch, self.name)
        return Case, (self.typed or self.problem, *about, "", self.given)

    def but(self, **changes: Any) -> Case:
        """Return the same case with other values of some parameters."""
        names = ("problem", "samples", "seed", "dtype", "device", "batch", "name", "typed", "given")
        if changes.keys() & {"problem", "dtype", "typed"} or not changes.keys() <= set(names):
            return Case(**{name: getattr(self, name) for name in names} | changes)
        same = object.__new__(Case)  # the problem is neither copied nor read again
        vars(same).update(vars(self), **changes)
        return same

    def on(self, problem: Problem | str | Path) -> Case:
        """Return the same case of another problem, in its usual precision, if no other was chosen."""
        dtype = None if self.dtype == _usual(self.problem) else self.dtype
        return Case(problem, self.samples, self.seed, dtype, self.device, self.batch)

    def between(self, start: float, stop: float) -> Case:
        """Return the same case with the schedule of the problem cut to [stop, start].

        Raises
        ------
        ValueError
            If that is not an interval inside the schedule's own.
        """
        return self.but(problem=between(self.problem, start, stop), typed="")

    @property
    def config(self) -> dict[str, Any]:
        """What tables say of the case."""
        return {
            "problem": self.name,
            "samples": self.samples,
            "seed": self.seed,
            "dtype": self.dtype,
            "device": self.device,
        }

    @property
    def network(self) -> bool:
        """Whether the problem is a network, whose derivatives are not cheap."""
        return self.problem.jet_order < SERIES

    @property
    def working(self) -> Problem:
        """The problem in the dtype and on the device in which methods run."""
        return _working(self)

    @property
    def epsilon(self) -> float:
        """The rounding unit of the precision in which methods run."""
        return torch.finfo(DTYPES[self.dtype]).eps

    @property
    def latents(self) -> Tensor:
        """The initial states of all trajectories, shape (samples, *event), float64, on the CPU.

        Drawn from the prior N(0, s²I), so that they are the same on every device and in every dtype.
        """
        return _latents(self)

    def data(self, t: float | None = None) -> Tensor:
        """Return samples of p_t, (samples, *event); None is the data distribution."""
        return _data(self, t)

    def draw(self, n: int, t: float | None, generator: torch.Generator) -> Tensor:
        """Draw ``n`` samples of p_t, (n, *event), float64, from the data of the user if there are any."""
        if self.given is None:
            return self.problem.sample(n, t, generator).double()
        return diffused(self.problem.schedule, self.given(n, generator), t, generator)

    @property
    def note(self) -> str:
        """What has to be said of the data wherever a distance to them is printed; empty if nothing."""
        return self.problem.note if self.given is None else self.given.note

    def exact(self, *times: float, tolerance: float | None = None) -> Reference:
        """Return the exact solution through the latents, at the start of the schedule and at given times.

        Parameters
        ----------
        times
            Falling; by default the end of the schedule.
        tolerance
            See ``reference``.
        """
        return _exact(self, times or (self.problem.schedule.stop,), tolerance)

    def solved(
        self,
        x: Tensor,
        *times: float,
        tolerance: float | None = None,
        begin: float | None = None,
        model: Model | None = None,
    ) -> Reference:
        """Return the exact solution through given states, batch by batch.

        Parameters
        ----------
        x
            The states, (n, *event), float64, on the CPU.
        times
            As in ``exact``; where they rise, the solution leads from data to latents.
        tolerance
            See ``reference``.
        begin
            The time of the states; by default the start of the schedule.
        model
            What is solved, where it is not the exact problem; on the CPU.
        """
        schedule = self.problem.schedule
        stops = (schedule.start if begin is None else begin, *(times or (schedule.stop,)))
        score: Model = self.problem if model is None else model
        parts = [
            self.way(part, x[rows], stops, tolerance)
            for part, rows in self.split(len(x), score, whole=not self.network)
        ]
        if len(parts) == 1:
            return parts[0]
        return Reference(stops, torch.cat([part.x for part in parts], 1), max(part.error for part in parts))

    def denoise(self, x: Tensor) -> Tensor:
        """Return exact states at the end of the schedule, (n, *event), denoised by the exact problem."""
        parts = self.split(len(x), self.problem, whole=not self.network)
        with torch.no_grad():
            return torch.cat([denoise(score, x[rows], self.problem.schedule.stop) for score, rows in parts])

    @property
    def denoised(self) -> Tensor:
        """The exact ends, denoised, (samples, *event), float64."""
        return _denoised(self)

    @property
    def noise(self) -> Noise:
        """The noise of all trajectories: Brownian paths, the same for every method and grid."""
        return Brownian(self.seed + 1)

    def cast(self, x: Tensor) -> Tensor:
        """Return states in the dtype and on the device in which methods run."""
        return x.to(device=self.device, dtype=DTYPES[self.dtype])

    def sample(
        self,
        method: Method,
        steps: int,
        x: Tensor | None = None,
        model: Model | None = None,
        noise: Noise | None = None,
    ) -> tuple[Tensor, Bill]:
        """Return where a method brings states, batch by batch, and what that cost for each of them.

        Parameters
        ----------
        method, steps
            How they are brought there.
        x
            The states, (samples, *event); by default the latents.
        model
            What is solved, where it is not the working problem.
        noise
            The noise of a random method; by default that of the case.

        Returns
        -------
        The ends in the coordinates of the data, float64, on the CPU, and the bill.
        """
        source = self.noise if noise is None else noise

        def march(score: Model, part: Tensor, rows: Tensor) -> Tensor:
            return method.sample(score, steps, part, source.part(rows) if len(rows) < len(start) else source)

        start = self.latents if x is None else x
        return self._batched(march, start, model, whole=method.coupled)

    def encode(self, method: Method, steps: int, x: Tensor) -> tuple[Tensor, Bill]:
        """Return the latents to which a method brings states at the end of the schedule, and the bill."""
        return self._batched(
            lambda score, part, rows: method.encode(score, steps, part), x, None, whole=method.coupled
        )

    def split(
        self, n: int, model: Model | None = None, *, whole: bool = False
    ) -> Iterator[tuple[Model, Tensor]]:
        """Yield a model of each batch of n states, and which states these are, (m,) int64.

        Parameters
        ----------
        n
            How many states there are.
        model
            What is split; by default the working problem.
        whole
            Whether all of them are one batch.
        """
        score: Model = self.working if model is None else model
        if whole or n <= self.batch:
            yield score, torch.arange(n)
            return
        for rows in torch.split(torch.arange(n), self.batch):
            yield score.part(rows, n), rows

    def _batched(
        self,
        march: Callable[[Model, Tensor, Tensor], Tensor],
        x: Tensor,
        model: Model | None,
        *,
        whole: bool,
    ) -> tuple[Tensor, Bill]:
        score: Model = self.working if model is None else model
        before = score.spent
        ends = [
            march(part, self.cast(x[rows]), rows) for part, rows in self.split(len(x), score, whole=whole)
        ]
        bill = score.spent - before
        return torch.cat(ends).double().cpu(), bill if len(ends) == 1 else whole_bill(bill)


def whole_bill(bill: Bill) -> Bill:
    """Return a bill without the rounding errors of adding up shares."""
    return Bill(round(bill.nfe, 9), round(bill.jvp, 9), round(bill.head, 9))


def _usual(problem: Problem) -> str:
    return str(problem.dtype).removeprefix("torch.")


@lru_cache(maxsize=8)
def _working(case: Case) -> Problem:
    like = torch.empty(0, dtype=DTYPES[case.dtype], device=torch.device(case.device))
    return case.problem.to(like)


@lru_cache(maxsize=8)
def _latents(case: Case) -> Tensor:
    return latents(case.problem, case.samples, case.seed)


@lru_cache(maxsize=8)
def _data(case: Case, t: float | None) -> Tensor:
    return case.draw(case.samples, t, torch.Generator().manual_seed(case.seed))


@lru_cache(maxsize=8)
def _exact(case: Case, times: Sequence[float], tolerance: float | None) -> Reference:
    return case.solved(case.latents, *times, tolerance=tolerance)


@lru_cache(maxsize=8)
def _denoised(case: Case) -> Tensor:
    return case.denoise(case.exact().x[-1])


def case_of(problem: Case | Problem | str | Path, **options: Any) -> Case:
    """Return a case of whatever can be made one; options are those of ``Case``."""
    if isinstance(problem, Case):
        return problem.but(**options) if options else problem
    return Case(problem, **options)
