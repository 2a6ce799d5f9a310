"""Heads against each other and against the derivative that they were distilled from (Table 2).

All heads belong to one score network, and all take the same steps from the same latents, so their errors
against the exact flow of that network differ by their derivatives alone. Heads that differ by nothing but
their seeds are one row, with Student's interval over the seeds; where there is one, the interval is that of
the mean over trajectories.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats
from torch import nn

from analysis.command.experiment import Experiment, Outcome
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure.case import Case, case_of
from analysis.measure.features import classifier
from analysis.measure.heads import derivative_error, end_by_head, has_data, without_head
from analysis.measure.rows import BUDGETS
from analysis.measure.statistics import LEVEL, Bootstrap
from analysis.methods import GRIDS, METHODS, Grid, chosen_grids
from analysis.show import plots, tables
from analysis.show.published import ABLATION
from analysis.study.cells import Cell, Study
from problems import Network
from problems.console import Parser, UsageError, positive
from problems.images import checkpoints
from problems.images.any_head import attached
from problems.images.score import Learned, load, weights
from problems.models.naming import head_of


@dataclass(frozen=True)
class Contender:
    """A way to get dε/dγ, or to do without it.

    Attributes
    ----------
    label
        What it is; heads that differ by their seeds share it.
    method
        Name of the method that uses it.
    head
        The head, if it is one.
    seed
        The seed of its training; 0 where nothing was trained.
    """

    label: str
    method: str
    head: nn.Module | None = None
    seed: int = 0


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    p.add_argument(
        "--heads",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="checkpoints of heads, the standard one first (default: the one beside the network)",
    )
    p.add_argument("--nfe", nargs="+", type=positive, default=list(BUDGETS), help="numbers of steps")
    p.add_argument("--grid", default="quadratic", help=f"grid: {', '.join(GRIDS)}")


def head_errors(
    problem: Case | str | Path = "digits",
    heads: Sequence[str | Path] = (),
    nfe: Sequence[int] = BUDGETS,
    grid: str | Grid = "quadratic",
    study: Study | None = None,
) -> pd.DataFrame:
    """Return the errors of TTM-2 with each head, with exact derivatives, and of DDIM, as a tidy table.

    Parameters
    ----------
    problem
        The network: anything that ``--problem`` takes, or a case made of it.
    heads
        Checkpoints of its heads, the standard one first; by default the one beside the network.
    nfe
        Numbers of steps, each of one evaluation.
    grid
        A name in ``GRIDS``, or a grid.
    study
        Where results are kept; nowhere by default.

    Returns
    -------
    A row for each kind of head and number of steps. Columns ``error`` (mean L2 in x at t_cut) and, on images
    of digits, ``feature_error``, each with its 95% interval, which is Student's over heads that differ by
    their seeds; ``derivative_error``, the relative root mean square error of dε/dγ on diffused data, weighted
    by γ² (Eq. 15), NaN where there is no head or the data are not at hand; ``seeds``, the number of heads.

    Raises
    ------
    ValueError
        If the problem is no network, or a head cannot be used or belongs to another network.
    """
    case, study = case_of(problem), study or Study()
    (grid,) = chosen_grids([grid])
    if not isinstance(case.problem, Learned | Network):
        raise ValueError(f"{case.name} is no network; choose one, such as --problem digits")
    found, bare = contenders(case.problem, case.name, heads), without_head(case)
    budgets = list(dict.fromkeys(nfe))
    features = classifier(case.problem)
    plan = [(contender, n) for contender in found for n in budgets]
    about = {id(c): {**case.config, "head": c.label, "head_seed": c.seed} for c in found}
    ends = [
        Cell(
            {**about[id(c)], "grid": grid.name, "nfe": n},
            end_by_head,
            {
                "case": bare,
                "method": replace(METHODS[c.method], grid=grid),
                "steps": n,
                "head": c.head,
                "features": features,
            },
        )
        for c, n in plan
    ]
    tried = [c for c in found if c.head is not None and has_data(case.problem)]
    probes = [Cell(about[id(c)], derivative_error, {"case": bare, "head": c.head}) for c in tried]
    results = study.run("heads", [*ends, *probes])
    wrong = {
        id(c): float(r.arrays["derivative_error"])
        for c, r in zip(tried, results[len(ends) :], strict=True)
        if not r.failure
    }
    rows = [
        {
            **r.config,
            "method": c.method,
            "derivative_error": wrong.get(id(c), math.nan),
            **r.arrays,
        }
        for r, (c, _) in zip(results[: len(ends)], plan, strict=True)
        if not r.failure
    ]
    if not rows:
        raise ArithmeticError(f"nothing could be measured: {results[0].failure}")
    return summary(pd.DataFrame(rows), Bootstrap(case.samples))


def measure(session: Session) -> Outcome:
    """Measure what was asked for."""
    args = session.args
    try:
        return Outcome(head_errors(session.case, args.heads or (), args.nfe, args.grid, session.study))
    except ValueError as error:
        raise UsageError(str(error)) from error


def contenders(problem: Learned | Network, name: str, heads: Sequence[str | Path] = ()) -> list[Contender]:
    """Return the network without a derivative, with exact ones, and with each head.

    Parameters
    ----------
    problem
        The network.
    name
        What ``--problem`` calls it.
    heads
        Checkpoints of its heads, the standard one first; by default the one beside the network.

    Raises
    ------
    ValueError
        If there is no head, or one that cannot be used or belongs to another network.
    """
    path = Path(name) if name.endswith(".safetensors") else weights(name)
    kept = path.with_name(f"{path.stem}-head.safetensors")
    beside = kept if isinstance(problem, Learned) else head_of(name)
    paths = list(dict.fromkeys(map(Path, heads))) or [p for p in (beside,) if p is not None and p.is_file()]
    if not paths:
        raise ValueError(
            f"{name} has no head; distil one by python -m problems.images.distill --network {name}, "
            "or name some by --heads"
        )
    found = [Contender("none (DDIM)", "ddim"), Contender("exact (TTM-2)", "ttm2")]
    first: Mapping[str, Any] | None = None
    for head in paths:
        model = load(path, head)[0] if isinstance(problem, Learned) else attached(problem, head)
        recipe, seed = described(checkpoints.load(head, "head").card)
        first = first or recipe
        found.append(Contender(difference(recipe, first), "genie", model.head, seed))
    return found


def described(card: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Return all that was chosen for a head, by name and without its seed, and the seed."""
    parts = [dict(card.get(part, {})) for part in ("config", "objective", "recipe")]
    chosen = {name: value for part in parts for name, value in part.items()}
    return chosen, int(chosen.pop("seed", 0))


def difference(recipe: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """Say how a head differs from the first one; that one is the ``standard``."""
    words = []
    for name, value in recipe.items():
        if value != first.get(name):
            plain = name.replace("_", " ")
            words.append(plain if value is True else f"no {plain}" if value is False else f"{plain} {value}")
    return ", ".join(words) or "standard"


def summary(rows: pd.DataFrame, bootstrap: Bootstrap) -> pd.DataFrame:
    """Return one row for each label and budget: means over trajectories and seeds, with intervals.

    Parameters
    ----------
    rows
        One row for each head and budget; the columns ``error`` and, maybe, ``feature_error`` hold arrays
        (samples,).
    bootstrap
        For rows that are alone.
    """
    lines = []
    for (label, nfe), group in rows.groupby(["head", "nfe"], sort=False):
        line = {**group.iloc[0].drop(["error", "feature_error", "head_seed"], errors="ignore")}
        line |= {"head": label, "nfe": nfe, "seeds": len(group)}
        line["derivative_error"] = group["derivative_error"].mean()
        for column in ("error", "feature_error"):
            if column in group:
                values = over_seeds(np.stack(group[column].to_list()), bootstrap)
                line |= dict(zip((column, f"{column}_low", f"{column}_high"), values, strict=True))
        lines.append(line)
    return pd.DataFrame(lines)


def over_seeds(errors: Any, bootstrap: Bootstrap) -> tuple[float, float, float]:
    """Return the mean of (seeds, samples) with its interval: Student's over seeds, if there are two."""
    if len(errors) == 1:
        mean = bootstrap.means(errors)
        return float(mean.value[0]), float(mean.low[0]), float(mean.high[0])
    means = errors.mean(1)
    half = stats.t.ppf(0.5 * (1.0 + LEVEL), len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means))
    return float(means.mean()), float(means.mean() - half), float(means.mean() + half)


def report(session: Session, outcome: Outcome) -> None:
    """Print one line per kind of head, one column per budget."""
    table = outcome.table
    notes = [
        "its error: relative, root mean square over diffused data, weighted by γ² (Eq. 15)",
        "several heads: 95% over their seeds; one: over the trajectories",
        f"reference: own error {float(table['reference_error'].max()):.1e}",
    ]
    for column, what in (("error", "the end point in x at t_cut"), ("feature_error", "its features")):
        if column in table:
            cell = partial(tables.cell, name=column)
            lines = tables.pivot(table, _first, lambda row: f"{row['nfe']} NFE", cell)
            tables.show(f"Mean L2 error of {what} by the derivative that is used (95%)", lines, notes)


def _first(row: Any) -> dict[str, str]:
    """Return the first cells of a line."""
    wrong = row["derivative_error"]
    return {
        "dε/dγ": row["head"],
        "heads": "-" if math.isnan(wrong) else f"{row['seeds']}",
        "its error": "-" if math.isnan(wrong) else f"{100 * wrong:.1f}%",
    }


def draw(session: Session, outcome: Outcome) -> Figure:
    """Draw the error against NFE, one curve for each kind of head."""
    table = outcome.table
    columns = [c for c in ("error", "feature_error") if c in table]
    titles = {"error": "end point in $x$", "feature_error": "features"}
    with plots.style():
        figure, axes = plots.panels(1, len(columns), figsize=(3.25 * len(columns), 2.9))
        for ax, column in zip(axes[0], columns, strict=True):
            plots.curves(ax, table, "nfe", column, by="head", band=(f"{column}_low", f"{column}_high"))
            ax.set(xscale="log", yscale="log", xlabel="NFE", title=titles[column])
            ax.set_xticks(budgets := sorted(set(table["nfe"])), [str(n) for n in budgets])
            ax.minorticks_off()
        axes[0, 0].set_ylabel(r"mean $L_2$ error")
        plots.legend_below(figure, list(axes.flat), 3)
        return figure


EXPERIMENT = Experiment(
    name="heads",
    title="Distilled heads",
    finding="What distilled heads make of the steps of TTM-2, beside the exact derivative and beside none.",
    help="Distilled heads of one network, side by side: what they make of the steps of TTM-2 (Table 2).",
    examples=("", "--heads runs/standard-*.safetensors runs/plain-*.safetensors"),
    arguments=arguments,
    measure=measure,
    report=report,
    draw=draw,
    place=12,
    paper="Table 2",
    defaults={"problem": "digits", "samples": 300},
    published=((r"by the derivative that is used", ABLATION),),
)


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    return main(EXPERIMENT, argv, launcher)


if __name__ == "__main__":
    raise SystemExit(start("heads"))
