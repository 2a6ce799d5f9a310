"""Quality of samples against their cost (Fig. 5, Tables 1 and 6 to 8), solver by solver, factor by factor.

Samples of every method, from the same latents, are compared with data in one feature space or several. A
Fréchet distance has a bias that shrinks with the number of samples, and a floor: the distance of the accurate
solution, below which a solver gets by chance or by an error that happens to help. So both are shown with it,
and so is the error of the end points against the accurate ones, which knows no floor.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis import plots, shards, tables
from analysis.cli import Session, add_factors, add_solvers, main, parser
from analysis.features import Features, features
from analysis.metrics import Manifold, Moments, frechet, influence, kernel_distance
from analysis.pools import add_pool, pool
from analysis.rows import BUDGETS, Row, add_budget, common, interval_of, plan, reasons, wide, word
from analysis.shards import SIZE, Shard
from analysis.statistics import Bootstrap, share
from analysis.study import Cell, Result, missing, run
from problems import Tariff
from problems.console import Parser, UsageError

Array = NDArray[np.float64]

Found = tuple[Row, list[Result]]
"""A row, and its shards if it could be measured."""

DATA = 10_000
"""Data, at least, with which samples are compared."""

MEASURED = ("nfe", "jvp", "head", "error", "error_low", "error_high")
DEFAULT = ("ddim", "ttm2", "s-pndm", "f-pndm", "euler-maruyama")
NEIGHBOURS = 2000
"""Samples, at most, of which neighbours and kernels are taken: their cost grows like the square."""

EXACTLY = 300
"""Work of an accurate sample, in evaluations; for the progress bar and the estimate of the time."""


def arguments() -> Parser:
    """Return the parser of this command."""
    p = parser(
        "fid",
        "Fréchet distances, precision, recall and errors of samples against NFE, in grids of all factors.",
        "  python -m analysis.fid --problem digits\n"
        "  python -m analysis.fid --problem digits --afs both --denoise both --samples 10000 --workers 2\n"
        "  python -m analysis.fid --problem digits-mixture --solvers ddim ttm2 --grids rho1.5 rho2.5\n"
        "  python -m analysis.fid --problem digits --scheduler tcp://localhost:8786\n"
        "  python -m analysis.fid --problem digits --samples 10000 --dry-run",
    )
    add_solvers(p, DEFAULT, heads=True)
    add_factors(p, None, ("linear", "quadratic"))
    add_budget(p)
    p.set_defaults(problem="digits", samples=500, denoise="on")
    p.add_argument(
        "--features",
        nargs="+",
        metavar="NAME",
        help="what samples are compared in: classifier (of the digits), pixels, or a file of Inception-v3 "
        "weights, for the FID (default: classifier and pixels for digits, else pixels)",
    )
    p.add_argument("--sheets", action="store_true", help="write sheets of samples too")
    p.add_argument("--dry-run", action="store_true", help="only list what would be measured, and how long")
    add_pool(p)
    return p


def experiment(session: Session) -> Sequence[Path]:
    """Measure, then write tables and figure."""
    session = session.usual(DEFAULT)
    args = session.args
    if args.samples < 4:
        raise UsageError(f"{args.samples} samples have no neighbours; type --samples 4 or more")
    digits = session.problem.event_shape == torch.Size((1, 8, 8))
    shown = tuple(args.features or (("classifier", "pixels") if digits else ("pixels",)))
    names = tuple(dict.fromkeys((*shown, "pixels")))
    looks = features(names, session.problem)
    rows = plan(session, args.steps or args.nfe or BUDGETS)
    groups = _cells(session, rows, names, looks)
    cells = [cell for group in groups for cell in group]
    if args.dry_run:
        _announce(session, cells)
        return []

    failures: dict[str, str] = {}

    def failed(cell: Cell, error: Exception) -> None:
        failures[_curve(cell.config)] = str(error) or type(error).__name__

    with pool(args.workers, args.scheduler) as who:
        results = iter(run("fid", cells, session.store, fresh=args.fresh, pool=who, failed=failed))
    truth, accurate, *measured = [[next(results) for _ in group] for group in groups]
    for made in (truth, accurate):
        if reason := failures.get(_curve(made[0].config)):
            raise ArithmeticError(f"{made[0].config['what']} could not be made: {reason}")
    done = iter(measured)
    found = [(row, [] if row.note else next(done)) for row in rows]
    kept = [
        (replace(row, note=failures.get(_curve(parts[0].config), "")) if parts else row, parts)
        for row, parts in found
    ]
    if all(row.note for row, _ in kept):
        raise ArithmeticError(f"no row could be measured; {kept[-1][0].solver}: {kept[-1][0].note}")
    unit = "steps" if args.steps else "nfe"
    table = tabulate(session, kept, truth, accurate).rename(columns={"budget": f"{unit}_budget"})
    seen = [f.name for f in looks[: len(shown)]]
    report(table, {f.name: f.distance for f in looks}, seen, f"{unit}_budget", args.samples)
    sheets = _sheets(session, kept) if args.sheets else []
    return [*session.save(table, draw(table, seen, f"{unit}_budget")), *sheets]


def _cells(
    session: Session, rows: Sequence[Row], names: tuple[str, ...], looks: Sequence[Features]
) -> list[list[Cell]]:
    """Return the cells, one for each shard: of data, of accurate samples, then of every row."""
    args = session.args
    config = {k: v for k, v in session.config.items() if k != "samples"}
    parts = (*session.parts, *(part for f in looks for part in f.parts), *names, shards.sampled, str(SIZE))

    def shard(index: int) -> Shard:
        return Shard(args.problem, config["dtype"], args.device, names, args.seed, index)

    def cell(index: int, about: Mapping[str, Any], method: tuple[object, ...], do: Any, work: float) -> Cell:
        about = {**config, **about, "shard": index}
        return Cell(about, (*method, *parts), partial(do, shard(index)), SIZE * work)

    samples = range(math.ceil(args.samples / SIZE))
    groups = [
        [cell(i, {"what": "data"}, (), shards.data, 1.0) for i in range(max(len(samples), DATA // SIZE))],
        [cell(i, {"what": "accurate samples"}, (), shards.exact, EXACTLY) for i in samples],
    ]
    for row in rows:
        if not row.note:
            about = {"what": "samples", **row.factors, "steps": row.steps}
            work = row.method.bill(session.problem, row.steps).cost(Tariff(1.2, 0.2))
            make = partial(shards.sampled, method=row.method, steps=row.steps)
            groups.append([cell(i, about, row.method.parts, make, work) for i in samples])
    return groups


def _curve(config: Mapping[str, Any]) -> str:
    """Return what all shards of a row share."""
    return repr({k: v for k, v in config.items() if k != "shard"})


def _announce(session: Session, cells: Sequence[Cell]) -> None:
    """Print what would be measured, and how long it would take in this process."""
    absent = list(cells) if session.args.fresh else missing("fid", cells, session.store)
    x = session.cast(session.latents()[:SIZE])
    t = session.problem.schedule.start
    session.working(x, t)
    began = time.perf_counter()
    session.working(x, t)
    seconds = (time.perf_counter() - began) / len(x) * sum(cell.work for cell in absent)
    lines: dict[str, dict[str, Any]] = {}
    for cell in absent:
        about = {k: word(v) for k, v in cell.config.items() if k not in ("shard", *session.config)}
        lines.setdefault(repr(about), {**about, "shards": 0})["shards"] += 1
    tables.show(
        "To be measured",
        pd.DataFrame(list(lines.values())).fillna("-"),
        [
            f"{len(absent)} of {len(cells)} shards of {SIZE} samples; the others are in {session.store.path}",
            f"about {seconds / 60:.1f} minutes in one process",
        ],
    )


def tabulate(
    session: Session, rows: Sequence[Found], truth: list[Result], accurate: list[Result]
) -> pd.DataFrame:
    """Return the tidy table: a line for each row and each feature, the accurate solution's first.

    Parameters
    ----------
    session
        The run.
    rows
        The rows, each with its shards.
    truth, accurate
        The shards of data and of accurate samples.
    """
    n = session.args.samples
    bootstrap = Bootstrap(n)
    states = next(name for name in truth[0].arrays if name in ("pixels", "coordinates"))
    own_error = max(float(r.arrays["reference_error"]) for r in accurate)
    everywhere = {**session.config, "reference_error": own_error}

    def gathered(parts: Sequence[Result], name: str) -> Array:
        return np.concatenate([part.arrays[name] for part in parts])

    lines: list[dict[str, Any]] = []
    for name in truth[0].arrays:
        judge = Judge(gathered(truth, name), bootstrap)
        for denoised in (False, True):
            samples = gathered(accurate, _prefix(denoised) + name)[:n]
            about = {"solver": "accurate", "denoise": denoised, "note": "", "feature": name}
            lines.append({**everywhere, **about, **judge(samples)})
        for row, parts in rows:
            line = {**everywhere, **row.factors, "budget": row.budget, "steps": row.steps or None}
            line |= {"feature": name, "note": row.note, **dict.fromkeys(MEASURED, math.nan)}
            if not row.note:
                bills = ("nfe", "jvp", "head")
                line |= {bill: float(np.mean([part.arrays[bill] for part in parts])) for bill in bills}
                line["budget"] = row.budget or line["nfe"]  # methods that choose their own steps have none
                line |= judge(gathered(parts, name)[:n])
            if not row.note and not row.method.random:
                apart = gathered(parts, states) - gathered(accurate, _prefix(row.method.denoise) + states)
                error = bootstrap.means(np.linalg.norm(apart[:n], axis=1)[None])
                line |= {"error": float(error.value[0])}
                line |= {"error_low": float(error.low[0]), "error_high": float(error.high[0])}
            lines.append(line)
    return pd.DataFrame(lines)


def _prefix(denoised: bool) -> str:
    return "denoised " if denoised else ""


class Judge:
    """Compares samples with data in one feature space.

    Parameters
    ----------
    data
        The data, (m, d).
    bootstrap
        Resampling of the samples.
    """

    def __init__(self, data: Array, bootstrap: Bootstrap) -> None:
        self._bootstrap = bootstrap
        self._moments = Moments.of(data)
        self._few = data[: min(bootstrap.samples, NEIGHBOURS)]
        self._near = Manifold.of(self._few)

    def __call__(self, x: Array) -> dict[str, float]:
        """Return the distances of samples (n, d) from the data, with intervals, by name.

        The Fréchet distance with the interval of the bootstrap of its influence function, and extrapolated
        to infinitely many samples; the kernel distance; precision and recall with Wilson's intervals.
        """
        value = frechet(Moments.of(x), self._moments)
        ends = self._bootstrap.means(influence(x, self._moments)[None])
        few = x[:NEIGHBOURS]
        found = {
            "frechet": value,
            "frechet_low": max(0.0, value + float(ends.low[0])),
            "frechet_high": value + float(ends.high[0]),
            **self._of_fewer(x),
            "kernel": kernel_distance(few, self._few),
        }
        inside = {"precision": self._near.holds(few), "recall": Manifold.of(few).holds(self._few)}
        for name, hits in inside.items():
            found[name], found[f"{name}_low"], found[f"{name}_high"] = share(float(hits.sum()), len(hits))
        return found

    def _of_fewer(self, x: Array) -> dict[str, float]:
        """Return mean distances of halves and of quarters of the samples, and a of the fit a + b/n."""
        sets = {parts: np.array_split(x, parts) for parts in (1, 2, 4)}
        if len(sets[4][-1]) < 2:
            return dict.fromkeys(("frechet_half", "frechet_quarter", "frechet_infinite"), math.nan)
        found = {k: [frechet(Moments.of(part), self._moments) for part in parts] for k, parts in sets.items()}
        inverse = np.array([1.0 / len(part) for parts in sets.values() for part in parts])
        distances = np.array([d for values in found.values() for d in values])
        return {
            "frechet_half": float(np.mean(found[2])),
            "frechet_quarter": float(np.mean(found[4])),
            "frechet_infinite": float(np.polyfit(inverse, distances, 1, w=inverse**-0.5)[1]),
        }


def report(
    table: pd.DataFrame, distances: Mapping[str, str], shown: Sequence[str], budget: str, samples: int
) -> None:
    """Print the tables of distances and errors, keep these and all others for the files.

    Parameters
    ----------
    table
        The tidy table.
    distances
        What the Fréchet distance is called, by feature.
    shown
        The features whose distances are printed.
    budget
        The column of the budget.
    samples
        How many samples there are.
    """
    unit = "NFE" if budget == "nfe_budget" else "steps"
    solvers = table[table["solver"] != "accurate"]
    sections: list[tuple[str, pd.DataFrame, list[str]]] = []
    others: list[tuple[str, pd.DataFrame, list[str]]] = []
    for name in distances:
        here = solvers[solvers["feature"] == name]
        floor = table[(table["feature"] == name) & (table["solver"] == "accurate")]
        notes = [f"{samples} samples; fewer give larger distances"] + [
            _floor_in_words(r) for _, r in floor[floor["denoise"].isin(here["denoise"])].iterrows()
        ]
        title = distances[name]
        full = wide(here, budget, unit, interval_of("frechet"))
        (sections if name in shown else others).extend(
            [
                (f"{title}, best of all variants (95%)", _best(here, budget, unit), notes),
                (f"{title} (95%){common(here)}", full, notes),
            ]
        )
        for what in ("precision", "recall"):
            others.append((f"Improved {what}, {name} (95%)", wide(here, budget, unit, interval_of(what)), []))
        kernel = wide(here, budget, unit, lambda row: f"{row['kernel']:.3g}")
        others.append((f"Kernel distance, {name}", kernel, []))
    first = solvers[solvers["feature"] == next(iter(distances))]
    errors = first[first["error"].notna() | (first["note"] != "")]
    notes = [f"N/A: {solver} {note}" for solver, note in reasons(first)]
    notes += [f"accurate solution: own error {first['reference_error'].max():.1e}"]
    if (first["jvp"] > 0).any():
        notes.append("Jacobian-vector products come on top of the NFE (column jvp of the CSV)")
    text = f"Mean L2 error of the end point in x (95%){common(errors)}"
    sections.append((text, wide(errors, budget, unit, interval_of("error")), notes))
    for section in sections:
        tables.show(*section)
    for section in others:
        tables.keep(*section)


def _floor_in_words(row: Any) -> str:
    name = "accurate solution, denoised" if row["denoise"] else "accurate solution"
    fewer = f"with half of the samples {row['frechet_half']:.3g}, with a quarter {row['frechet_quarter']:.3g}"
    return (
        f"{name}: {interval_of('frechet')(row)}; {fewer}, with infinitely many {row['frechet_infinite']:.3g}"
    )


def _best(rows: pd.DataFrame, budget: str, unit: str) -> pd.DataFrame:
    """Return the smallest distance of each solver at each budget, and the variant that has it (Table 1)."""
    lines = []
    for solver, group in rows.groupby("solver", sort=False):
        line = {"solver": str(solver)}
        for value, same in group.groupby(budget, sort=True):
            measured = same[same["note"] == ""].sort_values("frechet")
            line[f"{value:g} {unit}"] = "N/A" if measured.empty else _variant(measured.iloc[0])
        lines.append(line)
    return pd.DataFrame(lines).fillna("-")


def _variant(row: Any) -> str:
    tricks = "".join(f", {name}" for name in ("afs", "denoise") if row[name])
    return f"{interval_of('frechet')(row)} {row['grid']}{tricks}"


def draw(table: pd.DataFrame, shown: Sequence[str], budget: str) -> Figure:
    """Draw Fig. 5, a row for each grid: distances and errors against NFE, best over AFS and denoising."""
    rows = table[(table["note"] == "") & (table["solver"] != "accurate")]
    grids, solvers = list(dict.fromkeys(rows["grid"])), list(dict.fromkeys(rows["solver"]))
    columns = [*((name, "frechet") for name in shown), (shown[0], "error")]
    with plots.style():
        size = (plots.WIDTH, 1.9 * len(grids) + 0.6)
        figure, axes = plots.panels(len(grids), len(columns), figsize=size, sharex=True, sharey="col")
        for line, grid in zip(axes, grids, strict=True):
            line[0].set_ylabel(f"{grid} grid")
            for ax, (name, measure) in zip(line, columns, strict=True):
                here = rows[(rows["feature"] == name) & (rows["grid"] == grid) & rows[measure].notna()]
                best = here.sort_values(measure).drop_duplicates(["solver", budget])
                band = (f"{measure}_low", f"{measure}_high")
                plots.curves(ax, best, budget, measure, band=band, among=solvers)
                ax.set(yscale="log")
                if measure == "frechet":
                    _floor(ax, table[(table["feature"] == name) & (table["solver"] == "accurate")], here)
        for ax, (name, measure) in zip(axes[0], columns, strict=True):
            ax.set_title(f"Fréchet, {name}" if measure == "frechet" else "mean $L_2$ error in $x$")
        for ax in axes[-1]:
            ax.set_xlabel("NFE" if budget == "nfe_budget" else "steps")
        plots.legend_below(figure, list(axes.flat))
        return figure


def _floor(ax: Any, accurate: pd.DataFrame, rows: pd.DataFrame) -> None:
    """Draw the distance of the accurate solution."""
    row = accurate[accurate["denoise"].isin(rows["denoise"])].sort_values("frechet").iloc[0]
    ax.axhline(row["frechet"], color="0.4", linestyle=":", linewidth=0.9, label="accurate solution")
    ax.axhspan(row["frechet_low"], row["frechet_high"], color="0.4", alpha=0.15, linewidth=0)


def _sheets(session: Session, rows: Sequence[Found]) -> list[Path]:
    """Write a sheet of the first samples of each row, and return the files."""
    shape, written = session.problem.event_shape, []
    if len(shape) != 3:
        raise UsageError(f"{session.args.problem} has no images; leave out --sheets")
    for row, parts in rows:
        if row.note:
            continue
        m = row.method
        tricks = [trick for trick, on in (("afs", m.afs), ("denoised", m.denoise)) if on]
        name = "-".join([row.solver, m.form.name, m.grid.name, *tricks, str(row.steps)])
        with plots.style():
            figure, axes = plots.panels(1, 1, figsize=(3.25, 3.25))
            axes[0, 0].set_axis_off()
            plots.sheet(axes[0, 0], parts[0].arrays["pixels"][:64].reshape(-1, *shape), 8, 8)
            written += plots.save(figure, session.path("-sheets") / name)
    return written


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return main("fid", arguments(), experiment, argv)


if __name__ == "__main__":
    raise SystemExit(command())
