"""A session: the arguments of a run, the case that they make, and the study that keeps what is measured."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis.command.arguments import named
from analysis.command.experiment import Experiment
from analysis.measure.case import Case
from analysis.measure.given import fitting, given
from analysis.measure.named import Decoder
from analysis.measure.rows import Row, plan
from analysis.methods import ALIASES, FLOWS, FORMS, GRIDS, METHODS, Grid, Method, crossed, grid_of
from analysis.study.cells import Study
from problems import Problem
from problems.console import UsageError, device, require_memory

STATES = 3
"""States of each trajectory that are in memory at once, at least: the latent one, two of the reference."""

RESAMPLED = 2 * 8.0 * 2000
"""Bytes for each trajectory in the matrices of a bootstrap."""


@dataclass(frozen=True)
class Session:
    """What a run works with.

    Attributes
    ----------
    experiment
        The experiment.
    args
        The parsed arguments.
    case
        The case that they make.
    study
        The results store, and who measures.
    """

    experiment: Experiment
    args: argparse.Namespace
    case: Case
    study: Study

    @classmethod
    def of(cls, experiment: Experiment, args: argparse.Namespace, study: Study) -> Session:
        """Make a session of arguments.

        Raises
        ------
        UsageError
            If they name no problem or device that can be used.
        """
        device(args.device)
        try:
            case = Case(args.problem, args.samples, args.seed, args.dtype, args.device, args.batch)
            if getattr(args, "data", None):
                decoded = getattr(args, "decode", None) is not None
                case = case.but(
                    given=given(args.data) if decoded else fitting(args.data, case.problem.event_shape)
                )
        except ValueError as error:
            raise UsageError(str(error)) from error
        needed = args.samples * (STATES * 8.0 * case.problem.event_shape.numel() + RESAMPLED)
        require_memory(needed, f"--samples {args.samples}", "type fewer")
        return cls(experiment, args, case, study)

    @property
    def problem(self) -> Problem:
        """The problem on the CPU, in float64 if it is exact: for references and initial states."""
        return self.case.problem

    @property
    def config(self) -> dict[str, Any]:
        """What the columns of every table say of the run."""
        return self.case.config

    def on(self, name: str) -> Case:
        """Return the case of the run on another problem, by its name or checkpoint."""
        try:
            return Case(
                name, self.case.samples, self.case.seed, self.args.dtype, self.case.device, self.case.batch
            )
        except ValueError as error:
            raise UsageError(str(error)) from error

    @property
    def decoder(self) -> Decoder | None:
        """The latent decoder of ``--decode``, tried on two states; None without one.

        Raises
        ------
        UsageError
            If it cannot be used.
        """
        name = self.args.decode
        return None if name is None else Decoder(name, self.problem.event_shape)

    def usual(self, solvers: Sequence[str]) -> Session:
        """Return the same run with these solvers, and GENIE where there is a head, if none were chosen."""
        if self.args.solvers is not None:
            return self
        return self.choosing([*solvers, *(["genie"] if self.problem.distilled is not None else [])])

    def choosing(self, solvers: Sequence[str]) -> Session:
        """Return the same run with these solvers."""
        return replace(self, args=argparse.Namespace(**{**vars(self.args), "solvers": list(solvers)}))

    def methods(self) -> dict[str, Method]:
        """Return the chosen methods, by their names in ``METHODS``, each tried on a rehearsal of the problem.

        Raises
        ------
        UsageError
            If there is no such method, or it cannot solve the problem.
        """
        names = dict.fromkeys(ALIASES.get(name, name) for name in self.args.solvers)
        methods = {name: named("solver", METHODS, name) for name in names}
        for name, method in methods.items():
            try:
                method.bill(self.problem, max(1, method.solver.reach))
            except ValueError as error:
                raise UsageError(f"{name} cannot solve {self.case.name}: {error}") from error
        return methods

    def crossed(self) -> list[tuple[str, Method]]:
        """Return the chosen methods on the chosen forms and grids (see ``add_factors``), with their names."""
        flows = {name: FORMS[name] for name in FLOWS}
        names = self.args.forms
        forms = None if names is None else [named("form", flows, name) for name in names]
        return crossed(self.methods(), forms, [self.grid(name) for name in self.args.grids])

    def rows(self, budgets: Sequence[int], *, encode: bool = False) -> list[Row]:
        """Return the rows of a study with the arguments of ``add_budget``; see ``measure.rows.plan``.

        Raises
        ------
        UsageError
            If no row can be measured, or a method cannot do what is asked for.
        """
        args = self.args
        try:
            return plan(
                self.problem,
                self.crossed(),
                budgets,
                by_steps=bool(args.steps),
                bill=args.bill,
                afs=args.afs,
                denoise=args.denoise,
                encode=encode,
            )
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(str(error)) from error

    def grid(self, name: str) -> Grid:
        """Return the grid of a name, or of a list of times."""
        if "," not in name:
            return named("grid", GRIDS, name)
        try:
            grid = grid_of(name)
            grid.times(grid.steps or 0, self.problem.schedule)
        except ValueError as error:
            raise UsageError(str(error)) from error
        return grid

    def path(self, suffix: str, name: str = "") -> Path:
        """Return the path of a file of this experiment in ``--out``."""
        return Path(self.args.out) / f"{name or self.experiment.name}{suffix}"
