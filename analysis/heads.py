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
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from analysis import plots, tables
from analysis.cli import Session, main, named, parser
from analysis.features import classifier
from analysis.methods import GRIDS, METHODS
from analysis.reference import reference
from analysis.statistics import LEVEL, Bootstrap
from analysis.study import Cell, run
from problems.console import Parser, UsageError, positive
from problems.images import checkpoints
from problems.images.distill import targets
from problems.images.score import Learned, load, weights
from problems.images.training import stratified

PROBES = 1000
"""Diffused data on which the derivatives of a head are compared with those of its network."""


@dataclass(frozen=True)
class Contender:
    """A way to get dε/dγ, or to do without it.

    Attributes
    ----------
    label
        What it is; heads that differ by their seeds share it.
    method
        Name of the method that uses it.
    model
        The network, with the head if it is one.
    seed
        The seed of its training; 0 where nothing was trained.
    """

    label: str
    method: str
    model: Learned
    seed: int = 0


def arguments() -> Parser:
    """Return the parser of this command."""
    p = parser(
        "heads",
        "Distilled heads of one network, side by side: what they make of the steps of TTM-2 (Table 2).",
        "  python -m analysis.heads\n"
        "  python -m analysis.heads --heads runs/standard-*.safetensors runs/plain-*.safetensors",
    )
    p.set_defaults(problem="digits", samples=300)
    p.add_argument(
        "--heads",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="checkpoints of heads, the standard one first (default: the one beside the network)",
    )
    p.add_argument("--nfe", nargs="+", type=positive, default=[5, 10, 15, 20, 25], help="numbers of steps")
    p.add_argument("--grid", default="quadratic", help=f"grid: {', '.join(GRIDS)}")
    return p


def experiment(session: Session) -> Sequence[Path]:
    """Measure, then write table and figure."""
    args, problem = session.args, session.problem
    if not isinstance(problem, Learned):
        raise UsageError(f"{args.problem} is no network; choose one, such as --problem digits")
    grid = named("grid", GRIDS, args.grid)
    contenders = _contenders(session, problem)

    @cache
    def exact() -> tuple[Tensor, float]:
        solution = reference(problem, session.latents(), (problem.schedule.start, problem.schedule.stop))
        return solution.x[-1], solution.error

    def end_point(contender: Contender, nfe: int) -> dict[str, Any]:
        method = replace(METHODS[contender.method], grid=grid)
        x = method.sample(
            contender.model.to(session.cast(torch.empty(0))), nfe, session.cast(session.latents())
        )
        apart = {"error": x.double().cpu() - exact()[0]}
        if (features := classifier(problem)) is not None:
            apart["feature_error"] = features.of(x) - features.of(exact()[0])
        arrays = {name: d.flatten(1).norm(dim=1).numpy() for name, d in apart.items()}
        return {**arrays, "reference_error": np.array(exact()[1])}

    budgets = list(dict.fromkeys(args.nfe))
    cells = [
        Cell(
            {**session.config, "head": c.label, "head_seed": c.seed, "grid": args.grid, "nfe": nfe},
            (*METHODS[c.method].parts, *session.parts, *c.model.parts, Contender),
            partial(end_point, c, nfe),
        )
        for c in contenders
        for nfe in budgets
    ]
    results = run("heads", cells, session.store, fresh=args.fresh)
    wrong = {id(c): _wrong(c.model, args.seed) for c in contenders if c.model.head is not None}
    rows = [
        {
            **r.config,
            "method": c.method,
            "derivative_error": wrong.get(id(c), math.nan),
            **{name: r.arrays[name] for name in r.arrays},
        }
        for r, c in zip(results, [c for c in contenders for _ in budgets], strict=True)
    ]
    table = summary(pd.DataFrame(rows), Bootstrap(args.samples))
    report(table, max(float(r.arrays["reference_error"]) for r in results))
    return session.save(table, draw(table))


def _contenders(session: Session, problem: Learned) -> list[Contender]:
    """Return the network without a derivative, with exact ones, and with each head."""
    name = session.args.problem
    path = Path(name) if name.endswith(".safetensors") else weights(name)
    beside = path.with_name(f"{path.stem}-head.safetensors")
    heads = session.args.heads or ([beside] if beside.exists() else [])
    if not heads:
        raise UsageError(f"{name} has no head; name some by --heads, from python -m problems.images.distill")
    bare = Learned(problem.network)
    found = [Contender("none (DDIM)", "ddim", bare), Contender("exact (TTM-2)", "ttm2", bare)]
    first: Mapping[str, Any] | None = None
    for head in dict.fromkeys(heads):
        try:
            model, _ = load(path, head)
            recipe, seed = described(checkpoints.load(head, "head").card)
        except ValueError as error:
            raise UsageError(str(error)) from error
        first = first or recipe
        found.append(Contender(difference(recipe, first), "genie", model, seed))
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


def _wrong(model: Learned, seed: int) -> float:
    """Return the relative error of a head's dε/dγ on diffused data, weighted by γ² (Eq. 15)."""
    schedule, source = model.schedule, torch.Generator().manual_seed(seed)
    try:
        x0 = model.sample(PROBES, None, source)
    except (ValueError, UsageError):  # the data are elsewhere
        return math.nan
    gamma = schedule.gamma(stratified(PROBES, schedule.stop, schedule.start, source))[:, None, None, None]
    xbar = (x0 + gamma * torch.randn(x0.shape, generator=source, dtype=torch.float64)).to(model.dtype)
    gamma = gamma.to(model.dtype)
    head = model.head
    assert head is not None
    with torch.inference_mode():
        eps, slope, expansion = targets(model.network, xbar, gamma, model.labels)
        said = head(model.network, xbar, gamma, eps, expansion.features[0], expansion.embeddings[0])
        return float((gamma * (said - slope)).norm() / (gamma * slope).norm())


def report(table: pd.DataFrame, reference_error: float) -> None:
    """Print one line per kind of head, one column per budget."""
    for column, what in (("error", "the end point in x at t_cut"), ("feature_error", "its features")):
        if column not in table:
            continue
        lines = []
        for label, group in table.groupby("head", sort=False):
            wrong = group["derivative_error"].iloc[0]
            line = {
                "dε/dγ": label,
                "heads": "-" if math.isnan(wrong) else group["seeds"].iloc[0],
                "its error": "-" if math.isnan(wrong) else f"{100 * wrong:.1f}%",
            }
            for _, row in group.iterrows():
                line[f"{row['nfe']} NFE"] = tables.cell(row, column)
            lines.append(line)
        notes = [
            "its error: relative, root mean square over diffused data, weighted by γ² (Eq. 15)",
            "several heads: 95% over their seeds; one: over the trajectories",
            f"reference: own error {reference_error:.1e}",
        ]
        tables.show(
            f"Mean L2 error of {what} by the derivative that is used (95%)", pd.DataFrame(lines), notes
        )


def draw(table: pd.DataFrame) -> Figure:
    """Draw the error against NFE, one curve for each kind of head."""
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


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return main("heads", arguments(), experiment, argv)


if __name__ == "__main__":
    raise SystemExit(command())
