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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.command.arguments import add_budget, add_factors, add_solvers
from analysis.command.experiment import Experiment, Outcome
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure.case import Case, case_of
from analysis.measure.features import FEATURES, Features, classifier
from analysis.measure.features import features as named
from analysis.measure.quality import Judge
from analysis.measure.rows import BUDGETS, rows_of
from analysis.measure.shards import SIZE, Made, made_of, shards_of
from analysis.measure.statistics import Bootstrap
from analysis.methods import Coordinates, Grid, Method
from analysis.methods.table import Asked
from analysis.show import plots, quality, tables
from analysis.show.factors import common, interval_of, reasons, wide, word
from analysis.show.published import BEST, STRIDING
from analysis.study.cells import Cell, Result, Study
from problems import Problem
from problems.console import Parser, UsageError

Array = NDArray[np.float64]

MEASURED = ("nfe", "jvp", "head", "error", "error_low", "error_high")
DEFAULT = ("ddim", "ttm2", "s-pndm", "f-pndm", "euler-maruyama")


def arguments(p: Parser) -> None:
    """Add the arguments of this command."""
    add_solvers(p, DEFAULT, heads=True)
    add_factors(p, None, ("linear", "quadratic"))
    add_budget(p)
    p.add_argument(
        "--features",
        nargs="+",
        metavar="NAME",
        help=f"what samples are compared in: {', '.join(FEATURES)}, or a file of Inception-v3 weights, for "
        "the FID (default: classifier, where one is shipped for such images, and pixels)",
    )
    p.add_argument("--sheets", action="store_true", help="write sheets of samples too")
    p.add_argument("--dry-run", action="store_true", help="only list what would be measured, and how long")


def sample_quality(
    problem: Case | Problem | str | Path,
    methods: Asked | Sequence[Asked] | Mapping[str, Method] = DEFAULT,
    nfe: Sequence[int] = BUDGETS,
    *,
    steps: Sequence[int] = (),
    forms: Sequence[str | Coordinates] | None = None,
    grids: Sequence[str | Grid] = ("linear", "quadratic"),
    bill: str = "nfe",
    afs: str = "off",
    denoise: str = "on",
    features: Sequence[str | Features] | None = None,
    study: Study | None = None,
) -> pd.DataFrame:
    """Return how far the samples of methods are from data, as a tidy table.

    Parameters
    ----------
    problem
        What is sampled; anything that ``Case`` takes, or a case of at least 4 samples.
    methods
        The methods; see ``analysis.methods.chosen``.
    nfe, steps
        Budgets in score evaluations, or numbers of steps instead.
    forms
        Names in ``FLOWS``, or forms, with which methods are crossed; None is each method's own.
    grids
        Names in ``GRIDS``, or grids.
    bill
        ``nfe``, ``cost`` or ``both``: whether a budget pays for evaluations alone, or for derivatives too.
    afs, denoise
        ``off``, ``on`` or ``both``.
    features
        In which samples are compared: names, see ``analysis.measure.features.features``, or values. By
        default the shipped classifier of such images, if there is one, and pixels, which are always added.
    study
        Where results are kept; nowhere by default.

    Returns
    -------
    A row for each method, factor, budget and feature, the accurate solution's first (``solver`` is
    ``accurate``). Columns: those of ``analysis.measure.quality.quality_of``; ``error``, the mean L2 distance
    in x from the accurate ends with its 95% interval, for methods that are not random; ``nfe``, ``jvp``,
    ``head``; ``note``, why a row could not be measured.

    Raises
    ------
    ValueError
        If there are too few samples, no such features, or a method cannot do what is asked for.
    ArithmeticError
        If no row could be measured.
    """
    case = case_of(problem)
    rows = rows_of(
        case.problem,
        methods,
        nfe,
        steps,
        forms=forms,
        grids=grids,
        bill=bill,
        afs=afs,
        denoise=denoise,
    )
    made = made_of(case, rows, looks(case.problem, features), study or Study())
    return tabulated(case, made, "steps" if steps else "nfe")


def looks(problem: Problem, features: Sequence[str | Features] | None) -> tuple[Features, ...]:
    """Return the features in which samples are compared: those asked for, in their order, then pixels."""
    asked = features or (("pixels",) if classifier(problem) is None else ("classifier", "pixels"))
    found = [one if isinstance(one, Features) else named([one], problem)[0] for one in (*asked, "pixels")]
    return tuple({look.name: look for look in found}.values())


def tabulated(case: Case, made: Made, unit: str) -> pd.DataFrame:
    """Return the tidy table: a line for each row and each feature, the accurate solution's first.

    Parameters
    ----------
    case
        Whose samples were made.
    made
        The samples; see ``analysis.measure.shards.made_of``.
    unit
        Of the budgets: ``nfe`` or ``steps``.
    """
    n = case.samples
    bootstrap = Bootstrap(n)
    states = next(name for name in made.truth[0].arrays if name in ("pixels", "coordinates"))
    own_error = max(float(r.arrays["reference_error"]) for r in made.accurate)
    everywhere = {**case.config, "reference_error": own_error}

    def gathered(parts: Sequence[Result], name: str) -> Array:
        return np.concatenate([part.arrays[name] for part in parts])

    lines: list[dict[str, Any]] = []
    for name in made.truth[0].arrays:
        judge = Judge(gathered(made.truth, name), bootstrap)
        for denoised in (False, True):
            samples = gathered(made.accurate, _prefix(denoised) + name)[:n]
            about = {"solver": "accurate", "denoise": denoised, "note": "", "feature": name}
            lines.append({**everywhere, **about, **judge(samples)})
        for row, parts in made.rows:
            line = {**everywhere, **row.factors, "budget": row.budget, "steps": row.steps or None}
            line |= {"feature": name, "note": row.note, **dict.fromkeys(MEASURED, math.nan)}
            if not row.note:
                bills = ("nfe", "jvp", "head")
                line |= {bill: float(np.mean([part.arrays[bill] for part in parts])) for bill in bills}
                line["budget"] = row.budget or line["nfe"]  # methods that choose their own steps have none
                line |= judge(gathered(parts, name)[:n])
            if not row.note and not row.method.random:
                exact = gathered(made.accurate, _prefix(row.method.denoise) + states)
                apart = gathered(parts, states) - exact
                error = bootstrap.means(np.linalg.norm(apart[:n], axis=1)[None])
                line |= {"error": float(error.value[0])}
                line |= {"error_low": float(error.low[0]), "error_high": float(error.high[0])}
            lines.append(line)
    return pd.DataFrame(lines).rename(columns={"budget": f"{unit}_budget"})


def _prefix(denoised: bool) -> str:
    return "denoised " if denoised else ""


def measure(session: Session) -> Outcome | None:
    """Measure what was asked for, or only tell what that would be."""
    session = session.usual(DEFAULT)
    args, case = session.args, session.case
    if args.sheets and len(case.problem.event_shape) != 3:
        raise UsageError(f"{case.name} has no images; leave out --sheets")
    seen = looks(case.problem, args.features)
    rows = session.rows(args.steps or args.nfe or BUDGETS)
    try:
        if args.dry_run:
            announce(session, [cell for group in shards_of(case, rows, seen) for cell in group])
            return None
        made = made_of(case, rows, seen, session.study)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Outcome(tabulated(case, made, "steps" if args.steps else "nfe"), extra=(seen, made.rows))


def announce(session: Session, cells: Sequence[Cell]) -> None:
    """Print what would be measured, and how long it would take in this process."""
    absent = session.study.missing(cells)
    case = session.case.but(samples=min(SIZE, session.case.batch))
    x, t = case.cast(case.latents), case.problem.schedule.start
    case.working(x, t)
    began = time.perf_counter()
    case.working(x, t)
    seconds = (time.perf_counter() - began) / len(x) * sum(cell.work for cell in absent)
    lines: dict[str, dict[str, Any]] = {}
    for cell in absent:
        about = {k: word(v) for k, v in cell.config.items() if k not in ("shard", *session.config)}
        lines.setdefault(repr(about), {**about, "shards": 0})["shards"] += 1
    store = session.study.store
    notes = [f"{len(absent)} of {len(cells)} shards of {SIZE} samples"]
    if store is not None:
        notes[0] += f"; the others are in {store.path}"
    notes.append(f"about {seconds / 60:.1f} minutes in one process")
    tables.show("To be measured", pd.DataFrame(list(lines.values())).fillna("-"), notes)


def report(session: Session, outcome: Outcome) -> None:
    """Print the tables of distances and errors, keep these and all others for the files."""
    table, (seen, _) = outcome.table, outcome.extra
    shown = _shown(session, seen)
    budget, unit = ("steps_budget", "steps") if session.args.steps else ("nfe_budget", "NFE")
    solvers = table[table["solver"] != "accurate"]
    sections: list[tuple[str, pd.DataFrame, list[str]]] = []
    others: list[tuple[str, pd.DataFrame, list[str]]] = []
    for look in seen:
        here = solvers[solvers["feature"] == look.name]
        floor = table[(table["feature"] == look.name) & (table["solver"] == "accurate")]
        said = [session.case.problem.note] if session.case.problem.note else []
        notes = [f"{session.case.samples} samples; fewer give larger distances", *said] + [
            _floor_in_words(r) for _, r in floor[floor["denoise"].isin(here["denoise"])].iterrows()
        ]
        full = wide(here, budget, unit, interval_of("frechet"))
        (sections if look.name in shown else others).extend(
            [
                (f"{look.distance}, best of all variants (95%)", _best(here, budget, unit), notes),
                (f"{look.distance} (95%){common(here)}", full, notes),
            ]
        )
        for what in ("precision", "recall"):
            title = f"Improved {what}, {look.name} (95%)"
            others.append((title, wide(here, budget, unit, interval_of(what)), []))
        kernel = wide(here, budget, unit, lambda row: f"{row['kernel']:.3g}")
        others.append((f"Kernel distance, {look.name}", kernel, []))
    first = solvers[solvers["feature"] == seen[0].name]
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


def _shown(session: Session, seen: Sequence[Features]) -> list[str]:
    """Return the names of the features that were asked for; pixels are measured anyway."""
    asked = session.args.features
    names = [look.name for look in seen]
    return names if asked is None or "pixels" in asked else names[:-1]


def _floor_in_words(row: Any) -> str:
    name = "accurate solution, denoised" if row["denoise"] else "accurate solution"
    fewer = f"with half of the samples {row['frechet_half']:.3g}, with a quarter {row['frechet_quarter']:.3g}"
    return (
        f"{name}: {interval_of('frechet')(row)}; {fewer}, with infinitely many {row['frechet_infinite']:.3g}"
    )


def _best(rows: pd.DataFrame, budget: str, unit: str) -> pd.DataFrame:
    """Return the smallest distance of each solver at each budget, and the variant that has it (Table 1)."""
    there = rows[rows[budget].notna()].sort_values([budget, "frechet"], na_position="last")
    best = there.drop_duplicates(["solver", budget])
    solvers = list(dict.fromkeys(rows["solver"]))
    best = best.sort_values("solver", key=lambda names: names.map(solvers.index), kind="stable")
    return tables.pivot(
        best,
        lambda row: {"solver": row["solver"]},
        lambda row: f"{row[budget]:g} {unit}",
        lambda row: "N/A" if row["note"] else _variant(row),
    )


def _variant(row: Any) -> str:
    tricks = "".join(f", {name}" for name in ("afs", "denoise") if row[name])
    return f"{interval_of('frechet')(row)} {row['grid']}{tricks}"


def draw(session: Session, outcome: Outcome) -> Mapping[str, Figure]:
    """Draw Fig. 5 and, with ``--sheets``, a sheet of the first samples of each row."""
    (seen, rows), budget = outcome.extra, "steps_budget" if session.args.steps else "nfe_budget"
    figures = {"": partial(quality.curves, outcome.table, _shown(session, seen), budget)}
    for row, parts in rows if session.args.sheets else ():
        if not row.note:
            m = row.method
            tricks = [trick for trick, on in (("afs", m.afs), ("denoised", m.denoise)) if on]
            name = "-".join([row.solver, m.form.name, m.grid.name, *tricks, str(row.steps)])
            images = parts[0].arrays["pixels"][:64].reshape(-1, *session.problem.event_shape)
            figures[f"-sheets/{name}"] = partial(quality.sheet, images)
    return plots.Later(figures)


EXPERIMENT = Experiment(
    name="fid",
    title="Quality of samples",
    finding="How far samples are from data, beside the accurate solution's distance, against evaluations.",
    help="Fréchet distances, precision, recall and errors of samples against NFE, in grids of all factors.",
    examples=(
        "--problem digits",
        "--problem digits --afs both --denoise both --samples 10000 --workers 2",
        "--problem digits-mixture --solvers ddim ttm2 --grids rho1.5 rho2.5",
        "--problem digits --scheduler tcp://localhost:8786",
        "--problem digits --samples 10000 --dry-run",
    ),
    arguments=arguments,
    measure=measure,
    report=report,
    draw=draw,
    place=11,
    paper="Fig. 5; Tables 1, 6, 7 and 8",
    defaults={"problem": "digits", "samples": 500, "denoise": "on"},
    published=((r"best of all variants", BEST), (r"(?<!variants) \(95%\)", STRIDING)),
)


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    return main(EXPERIMENT, argv, launcher)


if __name__ == "__main__":
    raise SystemExit(start("fid"))
