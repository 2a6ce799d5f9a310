"""Samples in shards, each the work of one process: from latents to states, by a method or exactly.

Everything random belongs to the place of a sample in the whole, so a result is the same whoever made it,
however many there are and however many samples are asked for. A shard is always made whole, in one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from analysis.features import Features, features
from analysis.methods import Method
from analysis.problems import Prepared, latents, prepared
from analysis.reference import reference
from problems import Brownian, denoise

SIZE = 250
"""Samples in a shard."""

TOLERANCE = 5e-3
"""To which accurate samples are solved where derivatives are no help; see ``reference``."""


@dataclass(frozen=True)
class Shard:
    """Which samples, of what, seen how.

    Attributes
    ----------
    problem, dtype, device
        As they are typed; see ``problems.prepared``.
    features
        Names of the features in which the samples are seen; see ``features.features``.
    seed
        Seed of the whole.
    index
        Which shard, from 0.
    """

    problem: str
    dtype: str
    device: str
    features: tuple[str, ...]
    seed: int
    index: int

    def seeded(self, stream: int) -> int:
        """Return the seed of a stream of random numbers in this shard, 32 bits."""
        return int(np.random.SeedSequence((self.seed % 2**64, self.index, stream)).generate_state(1)[0])


LATENTS, NOISE, DATA = range(3)


def sampled(shard: Shard, method: Method, steps: int) -> dict[str, Any]:
    """Return what a method makes of the latents, seen in the features, and its bill.

    Arrays by name: those of each feature (SIZE, d), ``nfe``, ``jvp`` and ``head``.

    Parameters
    ----------
    shard
        Which samples.
    method, steps
        How they are made.

    Raises
    ------
    FloatingPointError
        If some of the samples are not finite.
    """
    with _single_thread():
        made = _opened(shard)
        x = latents(made.problem, SIZE, shard.seeded(LATENTS)).to(device=shard.device, dtype=made.dtype)
        noise = Brownian(shard.seeded(NOISE))
        before = made.working.spent
        x = method.sample(made.working, steps, x, noise)
        bill = made.working.spent - before
        wild = int((~torch.isfinite(x).flatten(1).all(1)).sum())
        if wild:
            raise FloatingPointError(f"{wild} of {SIZE} samples are not finite")
        return {**_seen(shard, x, ""), **asdict(bill)}


def exact(shard: Shard) -> dict[str, Any]:
    """Return the exact ends of the same trajectories, as they are and denoised, and the error in them.

    Arrays by name: those of each feature, again with the prefix ``denoised ``, and ``reference_error``.
    """
    with _single_thread():
        made = _opened(shard)
        schedule = made.problem.schedule
        x = latents(made.problem, SIZE, shard.seeded(LATENTS))
        tolerance = TOLERANCE if made.problem.jet_order < 8 else None
        solution = reference(made.problem, x, (schedule.start, schedule.stop), tolerance)
        clean = denoise(made.problem, solution.x[-1], schedule.stop)
        states = {**_seen(shard, solution.x[-1], ""), **_seen(shard, clean, "denoised ")}
        return {**states, "reference_error": np.array(solution.error)}


def data(shard: Shard) -> dict[str, Any]:
    """Return data, seen in the features: arrays (SIZE, d) by name."""
    with _single_thread():
        source = torch.Generator().manual_seed(shard.seeded(DATA))
        return _seen(shard, _opened(shard).problem.sample(SIZE, None, source), "")


def _seen(shard: Shard, x: torch.Tensor, prefix: str) -> dict[str, Any]:
    looks = _looks(shard.features, shard.problem, shard.dtype, shard.device)
    return {prefix + f.name: f.of(x).numpy() for f in looks}


@lru_cache(maxsize=2)
def _looks(names: tuple[str, ...], *problem: str) -> tuple[Features, ...]:
    return features(names, _prepared(*problem).problem)


def _opened(shard: Shard) -> Prepared:
    return _prepared(shard.problem, shard.dtype, shard.device)


@lru_cache(maxsize=2)
def _prepared(name: str, dtype: str, device: str) -> Prepared:
    return prepared(name, dtype, torch.device(device))


@contextmanager
def _single_thread() -> Iterator[None]:
    """Compute in one thread: how many there are can change how sums are rounded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
