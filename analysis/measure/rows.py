"""The rows of a study: methods crossed with their factors, each with the steps that a budget pays for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.methods import (
    METHODS,
    WHOLE,
    Coordinates,
    Grid,
    Method,
    chosen,
    chosen_forms,
    chosen_grids,
    crossed,
)
from analysis.methods.table import Asked
from problems import Model, Problem, Tariff

BUDGETS = (5, 10, 15, 20, 25)
BILLS = {"nfe": (False,), "cost": (True,), "both": (False, True)}
SWITCH = {"off": (False,), "on": (True,), "both": (False, True)}


@dataclass(frozen=True)
class Row:
    """A row of the study: a method under a budget.

    Attributes
    ----------
    solver
        Name of the method.
    method
        The method.
    budget
        The NFE or the steps that it may take; None where it takes what it needs.
    steps
        The steps that the budget pays for.
    billed
        Whether derivatives are billed at their cost.
    encode_steps
        The same on the way to the latents; 0 where that way is not gone.
    note
        Why there is nothing to measure; empty if there is.
    """

    solver: str
    method: Method
    budget: int | None
    billed: bool = False
    steps: int = 0
    encode_steps: int = 0
    note: str = ""

    @property
    def factors(self) -> dict[str, Any]:
        """What tells the curves of the study apart."""
        m = self.method
        return {
            "solver": self.solver,
            "form": m.form.name,
            "grid": m.grid.name,
            "afs": m.afs,
            "denoise": m.denoise,
            "billed": self.billed,
        }


def plan(
    problem: Problem,
    methods: Iterable[tuple[str, Method]],
    budgets: Sequence[int],
    *,
    by_steps: bool = False,
    bill: str = "nfe",
    afs: str = "off",
    denoise: str = "off",
    encode: bool = False,
) -> list[Row]:
    """Return the rows of a study, those that a budget does not reach with the reason.

    Parameters
    ----------
    problem
        What is solved; for its prices.
    methods
        Names and methods, on forms and grids; see ``crossed``.
    budgets
        The budgets, in score evaluations, or in steps.
    by_steps
        Whether budgets are numbers of steps.
    bill
        A key of ``BILLS``: whether a budget pays for evaluations alone, or for derivatives too.
    afs, denoise
        Keys of ``SWITCH``.
    encode
        Whether the way to the latents is gone too, at the same cost.

    Raises
    ------
    ValueError
        If no row can be measured, or a method cannot do what is asked for.
    """
    found: dict[Method, str] = {}
    for name, method in methods:
        if encode and method.random:
            raise ValueError(f"{name} is stochastic and cannot encode; leave it out of --solvers")
        if method.adaptive:
            method = replace(method, grid=WHOLE)
        for first in SWITCH[afs]:
            for denoised in SWITCH[denoise]:
                found.setdefault(replace(method, afs=first, denoise=denoised), name)

    def row(name: str, method: Method, budget: int | None, billed: bool) -> Row:
        costs = tariff(problem) if billed else Tariff()
        try:
            there = replace(method, afs=False, denoise=False)
            steps = _steps(problem, method, budget, costs, by_steps)
            encode_steps = _steps(problem, there, budget, costs, by_steps) if encode else 0
            return Row(name, method, budget, billed, steps, encode_steps)
        except ValueError as reason:
            return Row(name, method, budget, billed, note=str(reason))

    rows = [
        row(name, method, budget, billed)
        for method, name in found.items()
        for billed in BILLS[bill]
        if not billed or bill == "cost" or _derivatives(problem, method)
        for budget in ([None] if method.adaptive else dict.fromkeys(budgets))
    ]
    if all(row.note for row in rows):
        most = rows[-1]
        advice = "another" if most.method.grid.steps else "a larger"
        raise ValueError(f"nothing can be measured: {most.solver} {most.note}; type {advice} number")
    return rows


def rows_of(
    problem: Problem,
    methods: Asked | Sequence[Asked] | Mapping[str, Method],
    nfe: Sequence[int],
    steps: Sequence[int] = (),
    *,
    forms: Sequence[str | Coordinates] | None,
    grids: Sequence[str | Grid],
    bill: str,
    afs: str,
    denoise: str,
    encode: bool = False,
) -> list[Row]:
    """Return the rows of a study from what a caller asks for, by names or values; see ``plan``.

    Parameters
    ----------
    problem, bill, afs, denoise, encode
        As in ``plan``.
    methods
        See ``analysis.methods.chosen``.
    nfe, steps
        Budgets in score evaluations, or numbers of steps instead.
    forms, grids
        With which methods are crossed; None is each method's own form.

    Raises
    ------
    ValueError
        If there is nothing of a name, or nothing can be measured.
    """
    on = None if forms is None else chosen_forms(forms)
    pairs = crossed(chosen(methods), on, chosen_grids(grids))
    return plan(
        problem,
        pairs,
        steps or nfe,
        by_steps=bool(steps),
        bill=bill,
        afs=afs,
        denoise=denoise,
        encode=encode,
    )


def tariff(problem: Problem) -> Tariff:
    """Return what derivatives cost: what was measured, one evaluation each where nothing was."""
    return problem.tariff if problem.tariff != Tariff() else Tariff(jvp=1.0)


def cost(rows: pd.DataFrame, costs: Tariff) -> pd.Series[float]:
    """Return what each row cost, derivatives billed, in evaluations."""
    total: pd.Series[float] = rows["nfe"] + costs.jvp * rows["jvp"] + costs.head * rows["head"]
    return total


def taken_whole(solvers: Iterable[str]) -> list[str]:
    """Return a note on those of the named methods that take a batch whole, if there are any."""
    names = [name for name in dict.fromkeys(solvers) if name in METHODS and METHODS[name].coupled]
    if not names:
        return []
    return [f"{', '.join(names)}: steps depend on all samples together, so --batch does not split them"]


def _derivatives(problem: Model, method: Method) -> bool:
    """Return whether a method of given steps pays for anything but evaluations."""
    if method.adaptive:
        return False
    bill = method.bill(problem, max(1, method.solver.reach))
    return bill.jvp + bill.head > 0


def _steps(problem: Model, method: Method, budget: int | None, costs: Tariff, by_steps: bool) -> int:
    """Return the steps of a method under a budget; a ValueError says why there are none."""
    if budget is None:
        return 1
    if not by_steps:
        return method.steps(problem, budget, costs)
    if method.grid.steps not in (None, budget):
        raise ValueError(f"has a grid of {method.grid.steps} steps, not of {budget}")
    if budget < method.solver.reach:
        raise ValueError(f"needs at least {method.solver.reach} steps, so {budget} are too few")
    return budget
