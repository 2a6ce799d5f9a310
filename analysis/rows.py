"""The rows of a study: methods crossed with their factors, each with the steps that a budget pays for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from analysis import tables
from analysis.cli import Session
from analysis.methods import Grid, Method
from problems import Problem, Tariff
from problems.console import Parser, UsageError, positive

BUDGETS = (5, 10, 15, 20, 25)
BILLS = {"nfe": (False,), "cost": (True,), "both": (False, True)}
SWITCH = {"off": (False,), "on": (True,), "both": (False, True)}
WHOLE = Grid("own", lambda _, schedule: torch.tensor([schedule.start, schedule.stop], dtype=torch.float64))
"""The grid of a method that chooses its own steps."""


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


def add_budget(p: Parser, also: str = "") -> None:
    """Add ``--nfe`` and ``--steps``, ``--bill``, ``--afs`` and ``--denoise``."""
    budget = p.add_mutually_exclusive_group()
    typical = " ".join(map(str, BUDGETS))
    budget.add_argument(
        "--nfe",
        nargs="+",
        type=positive,
        help=f"budgets of score evaluations (default: {typical}{also})",
    )
    budget.add_argument("--steps", nargs="+", type=positive, help="numbers of steps, instead of budgets")
    p.add_argument(
        "--bill",
        choices=BILLS,
        default="nfe",
        help="whether a budget pays for score evaluations alone, or for derivatives and heads at their cost",
    )
    p.add_argument("--afs", choices=SWITCH, default="off", help="analytical first step (saves one NFE)")
    p.add_argument("--denoise", choices=SWITCH, default="off", help="final denoising (costs one NFE)")


def plan(session: Session, budgets: Sequence[int], *, encode: bool = False) -> list[Row]:
    """Return the rows of the study, those that a budget does not reach with the reason.

    Parameters
    ----------
    session
        The run, with the arguments of ``add_budget``, ``--solvers``, ``--forms`` and ``--grids``.
    budgets
        The budgets, in score evaluations, or in steps if ``--steps`` was given.
    encode
        Whether the way to the latents is gone too, at the same cost.

    Raises
    ------
    UsageError
        If no row can be measured, or a method cannot do what is asked for.
    """
    args = session.args
    methods: dict[Method, str] = {}
    for name, method in session.crossed():
        if encode and method.random:
            raise UsageError(f"{name} is stochastic and cannot encode; leave it out of --solvers")
        if method.adaptive:
            method = replace(method, grid=WHOLE)
        for afs in SWITCH[args.afs]:
            for denoised in SWITCH[args.denoise]:
                methods.setdefault(replace(method, afs=afs, denoise=denoised), name)

    def row(name: str, method: Method, budget: int | None, billed: bool) -> Row:
        costs = tariff(session.problem) if billed else Tariff()
        try:
            there = replace(method, afs=False, denoise=False)
            steps = _steps(session, method, budget, costs)
            encode_steps = _steps(session, there, budget, costs) if encode else 0
            return Row(name, method, budget, billed, steps, encode_steps)
        except ValueError as reason:
            return Row(name, method, budget, billed, note=str(reason))

    rows = [
        row(name, method, budget, billed)
        for method, name in methods.items()
        for billed in BILLS[args.bill]
        if not billed or _derivatives(session.problem, method) or args.bill == "cost"
        for budget in ([None] if method.adaptive else dict.fromkeys(budgets))
    ]
    if all(row.note for row in rows):
        most = rows[-1]
        advice = "another" if most.method.grid.steps else "a larger"
        raise UsageError(f"nothing can be measured: {most.solver} {most.note}; type {advice} number")
    return rows


def tariff(problem: Problem) -> Tariff:
    """Return what derivatives cost: what was measured, one evaluation each where nothing was."""
    return problem.tariff if problem.tariff != Tariff() else Tariff(jvp=1.0)


def _derivatives(problem: Problem, method: Method) -> bool:
    """Return whether a method of given steps pays for anything but evaluations."""
    if method.adaptive:
        return False
    bill = method.bill(problem, max(1, method.solver.reach))
    return bill.jvp + bill.head > 0


def _steps(session: Session, method: Method, budget: int | None, costs: Tariff) -> int:
    """Return the steps of a method under a budget; a ValueError says why there are none."""
    if budget is None:
        return 1
    if not session.args.steps:
        return method.steps(session.problem, budget, costs)
    if method.grid.steps not in (None, budget):
        raise ValueError(f"has a grid of {method.grid.steps} steps, not of {budget}")
    if budget < method.solver.reach:
        raise ValueError(f"needs at least {method.solver.reach} steps, so {budget} are too few")
    return budget


def varying(table: pd.DataFrame) -> list[str]:
    """Return the factors that are worth a column: most methods have one form, AFS and denoising are off."""
    return [f for f in ("form", "afs", "denoise", "billed") if len(set(table[f])) > 1]


def common(table: pd.DataFrame) -> str:
    """Return the factors that all rows share, for a title."""
    shared = [f for f in ("form", "afs", "denoise") if f not in varying(table)]
    return "".join(f", {f} {word(table[f].iloc[0])}" for f in shared)


def wide(table: pd.DataFrame, budget: str, unit: str, text: Callable[[Any], str]) -> pd.DataFrame:
    """Return a line per curve and a column per budget."""
    factors = ["solver", "grid", *varying(table)]
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for _, row in table.iterrows():
        line = lines.setdefault(tuple(row[factors]), {f: word(row[f]) for f in factors})
        line[f"{row[budget]:g} {unit}"] = "N/A" if row["note"] else text(row)
    return pd.DataFrame(list(lines.values())).fillna("-")


def interval_of(name: str) -> Callable[[Any], str]:
    """Return what formats the column ``name`` of a row with its interval."""
    return lambda row: tables.cell(row, name)


def word(value: Any) -> str:
    """Return a factor as tables have it."""
    return ("off", "on")[bool(value)] if isinstance(value, bool | np.bool_) else str(value)


def cost(rows: pd.DataFrame, costs: Tariff) -> pd.Series[float]:
    """Return what each row cost, derivatives billed, in evaluations."""
    total: pd.Series[float] = rows["nfe"] + costs.jvp * rows["jvp"] + costs.head * rows["head"]
    return total


def titled(grid: str, variant: Any) -> str:
    """Return the title of a panel: its grid, the form if they are crossed, and what else is not as usual."""
    words = [f"{grid} grid", *([f"{variant['form']} form"] if "form" in variant else [])]
    extras = {"afs": "AFS", "denoise": "denoised", "billed": "all billed"}
    return ", ".join(words + [text for name, text in extras.items() if variant[name]])


def reasons(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the methods that have nothing to measure, each with the reason."""
    rows = table[table["note"] != ""]
    return list(dict.fromkeys(zip(rows["solver"], rows["note"], strict=True)))
