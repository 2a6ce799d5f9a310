"""Where trajectories end, against where they should: the measurement behind every study of global errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.cli import Session
from analysis.features import Features, classifier
from analysis.reference import reference
from analysis.rows import Row
from analysis.study import Cell, Result, run
from problems import Mixture, denoise


@dataclass(frozen=True)
class Ends:
    """The ends of the trajectories of a run, exactly and by any method.

    Attributes
    ----------
    session
        The run.
    encode
        Whether trajectories are sent from exact samples of p_{t_cut} to the latents and back, instead of
        from latents to p_{t_cut}.
    """

    session: Session
    encode: bool = False

    def measured(self, rows: Sequence[Row]) -> list[Result]:
        """Return the ends by every row's method, from the store where they are there; see ``end_point``."""
        cells = [
            Cell(
                {
                    **self.session.config,
                    **{name: factor for name, factor in row.factors.items() if name != "billed"},
                    "steps": row.steps,
                    "encode_steps": row.encode_steps,
                },
                (*row.method.parts, *self.session.parts, end_point),
                partial(self._measure, row),
            )
            for row in rows
        ]
        return run("ends", cells, self.session.store, fresh=self.session.args.fresh)

    @cached_property
    def begin(self) -> Tensor:
        """Latents or, to encode, samples of p_{t_cut}, shape (samples, *event), float64."""
        args, problem = self.session.args, self.session.problem
        if self.encode:
            return problem.sample(
                args.samples, problem.schedule.stop, torch.Generator().manual_seed(args.seed)
            )
        return self.session.latents()

    @cached_property
    def _exact(self) -> tuple[Tensor, float]:
        """Where they should end, and the error in that."""
        if self.encode:
            return self.begin, 0.0
        schedule = self.session.problem.schedule
        solution = reference(self.session.problem, self.begin, (schedule.start, schedule.stop))
        return solution.x[-1], solution.error

    @cached_property
    def _denoised(self) -> Tensor:
        return denoise(self.session.problem, self._exact[0], self.session.problem.schedule.stop)

    @cached_property
    def _features(self) -> Features | None:
        return classifier(self.session.problem)

    def _measure(self, row: Row) -> dict[str, Any]:
        target = self._denoised if row.method.denoise else self._exact[0]
        arrays = end_point(self.session, row, self.begin, target, self._features)
        return {**arrays, "reference_error": np.array(self._exact[1])}


def end_point(
    session: Session, row: Row, begin: Tensor, target: Tensor, features: Features | None
) -> dict[str, Any]:
    """Measure one row: how far from where it should be each trajectory ends, in data space.

    Parameters
    ----------
    session
        The run.
    row
        What to measure.
    begin
        The states to begin with: latents, or the states to be encoded; (samples, *event), float64.
    target
        The states to end at, of the same shape.
    features
        Features of images, in which errors are measured too.

    Returns
    -------
    Arrays by name: the L2 errors (samples,), the bill, the errors in features and, on a mixture, whether the
    trajectory ends nearest to another component than the exact one does (samples,).
    """
    score, schedule = session.working, session.problem.schedule
    x, before = session.cast(begin), score.spent
    if row.encode_steps:
        x = row.method.encode(score, row.encode_steps, x)
    there = score.spent - before
    x = row.method.sample(score, row.steps, x, session.noise())
    back = score.spent - before - there
    x = x.double().cpu()
    arrays: dict[str, Any] = {
        "error": (x - target).flatten(1).norm(dim=1).numpy(),
        "encode_nfe": there.nfe,
        **asdict(back),
    }
    if features is not None:
        arrays["feature_error"] = (features.of(x) - features.of(target)).norm(dim=1).numpy()
    if isinstance(session.problem, Mixture):
        alpha = 1.0 if row.method.denoise else schedule.alpha(schedule.stop)
        nearest = session.problem.nearest
        arrays["flip"] = (nearest(x / alpha) != nearest(target / alpha)).numpy()
    return arrays
