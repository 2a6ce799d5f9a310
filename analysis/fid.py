"""Quality of samples against their cost (Fig. 5, Tables 1 and 6 to 8), solver by solver, factor by factor.

Samples of every method, from the same latents, are compared with data in one feature space or several. A
Fréchet distance has a bias that shrinks with the number of samples, and a floor: the distance of the accurate
solution, below which a solver gets by chance or by an error that happens to help. So both are shown with it,
and so are two numbers that know no floor: how much farther from the data the samples are than the accurate
ones from the same latents, a paired difference, and the error of the end points against the accurate ones.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.command.arguments import add_budget, add_data, add_decoder, add_factors, add_solvers
from analysis.command.experiment import Experiment, Outcome
from analysis.command.run import MODULE, main, start
from analysis.command.session import Session
from analysis.measure import moments
from analysis.measure.case import Case, case_of
from analysis.measure.comparison import Comparison, comparison, gathered, tabulated
from analysis.measure.features import FEATURES, Features, is_image
from analysis.measure.folders import folder_quality, folder_statistics, notes_of
from analysis.measure.metrics import Moments
from analysis.measure.named import Decoder
from analysis.measure.rows import BUDGETS, rows_of
from analysis.measure.shards import COMPARED, EACH, SIZE, made_of, shards_of
from analysis.methods import Coordinates, Grid, Method
from analysis.methods.table import Asked
from analysis.show import folders, plots, quality, tables
from analysis.show.factors import common, interval_of, reasons, wide, word
from analysis.show.published import BEST, STRIDING
from analysis.study.cells import Cell, Study
from problems import Problem
from problems.console import Parser, UsageError, positive

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
        help=f"what samples are compared in: {', '.join(FEATURES)}; a file of Inception-v3 weights, for the "
        "FID; or your own, module:function, file.py:function or a TorchScript file, whose code is run "
        "(default: classifier, where one is shipped for such images, and pixels)",
    )
    add_data(p, "data with which samples are compared")
    p.add_argument(
        "--data-samples",
        type=positive,
        metavar="N",
        help=f"data with which samples are compared (default: {EACH} a sample, at most {COMPARED} or as many "
        "as samples; never more than --data holds)",
    )
    p.add_argument(
        "--reference",
        type=Path,
        metavar="STATS.npz",
        help="statistics with which samples are compared in the first of the features, instead of data: mu "
        "and sigma, as EDM and pytorch-fid write them",
    )
    p.add_argument(
        "--write-reference",
        type=Path,
        metavar="STATS.npz",
        help="write such a file of the data, in the first of the features",
    )
    p.add_argument(
        "--folders",
        nargs="+",
        metavar="PATH",
        help="compare two folders, zip or npz files of images instead, the first with the second, without a "
        "model; with --write-reference one is enough",
    )
    add_decoder(p, "samples are compared after it, with --data that are images")
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
    decode: str | None = None,
    reference: str | Path | None = None,
    data: int | None = None,
    study: Study | None = None,
) -> pd.DataFrame:
    """Return how far the samples of methods are from data, as a tidy table.

    Parameters
    ----------
    problem
        What is sampled; anything that ``Case`` takes, or a case of at least 4 samples. Data of one's own are
        ``Case(problem, given=given(PATH))``; both are in ``analysis.api``.
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
    decode
        A latent decoder that is applied to samples first; see ``analysis.measure.named.Decoder``.
    reference
        File of statistics that stand for the data in the first of the features.
    data
        Number of data; by default 20 a sample, at most 10,000 or as many as samples.
    study
        Where results are kept; nowhere by default.

    Returns
    -------
    A row for each method, factor, budget and feature, the accurate solution's first (``solver`` is
    ``accurate``). Columns: those of ``analysis.measure.quality.quality_of``; ``gap``, how much larger the
    Fréchet distance is than that of the accurate samples, paired, with its interval; ``error``, the mean L2
    distance in x from the accurate ends with its 95% interval, for methods that are not random; ``nfe``,
    ``jvp``, ``head``; ``note``, why a row could not be measured.

    Raises
    ------
    ValueError
        If there are too few samples, no such features or no data, or a method cannot do what is asked for.
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
    decoder = None if decode is None else Decoder(decode, case.problem.event_shape)
    file = None if reference is None else Path(reference)
    compared = comparison(case, features, decoder=decoder, reference=file, data=data)
    made = made_of(case, rows, compared.view, study or Study(), compared.against, data)
    return tabulated(case, made, compared, "steps" if steps else "nfe")


def measure(session: Session) -> Outcome | None:
    """Measure what was asked for, or only tell what that would be."""
    if session.args.folders:
        return of_folders(session)
    session = session.usual(DEFAULT)
    args, case, decoder = session.args, session.case, session.decoder
    if args.sheets and not is_image(case.problem.event_shape if decoder is None else decoder.shape):
        raise UsageError(f"{case.name} has no images; leave out --sheets")
    compared = comparison(
        case, args.features, decoder=decoder, reference=args.reference, data=args.data_samples
    )
    if args.write_reference and compared.shown[0] not in {f.name for f in compared.against.features}:
        raise UsageError(
            "there are no data of which to write statistics; leave out --reference, or type --data"
        )
    rows = session.rows(args.steps or args.nfe or BUDGETS)
    how = (compared.against, compared.data)
    try:
        if args.dry_run:
            announce(
                session, [cell for group in shards_of(case, rows, compared.view, *how) for cell in group]
            )
            return None
        made = made_of(case, rows, compared.view, session.study, *how)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if args.write_reference:
        moments.written(
            args.write_reference, Moments.of(gathered(made.truth, compared.shown[0])), compared.shown[0]
        )
    return Outcome(tabulated(case, made, compared, "steps" if args.steps else "nfe"), extra=(compared, made))


def of_folders(session: Session) -> Outcome:
    """Compare two folders or files of images, or write the statistics of one."""
    args = session.args
    if len(args.folders) > 2 or (len(args.folders) == 1 and not args.write_reference):
        raise UsageError("type two folders after --folders, or one and --write-reference STATS.npz")
    if args.dry_run or args.data or args.reference or args.decode:
        raise UsageError("--folders takes no model: leave out --data, --reference, --decode and --dry-run")
    how: dict[str, Any] = {"device": args.device, "study": session.study}
    if args.write_reference:
        found, look = folder_statistics(args.folders[-1], args.features, **how)
        moments.written(args.write_reference, found, look.name)
        print(f"{args.write_reference}: mu and sigma of {found.n} images of {args.folders[-1]}, {look.name}")
    if len(args.folders) == 1:
        return Outcome(pd.DataFrame([{"data": args.folders[0], "images": found.n}]), name="fid-reference")
    one, two = args.folders
    table = folder_quality(one, two, args.features, seed=args.seed, **how)
    return Outcome(table, name="fid-folders")


def announce(session: Session, cells: Sequence[Cell]) -> None:
    """Print what would be measured, and how long it would take in this process."""
    absent = session.study.missing(cells)
    case = session.case.but(samples=min(SIZE, session.case.samples, session.case.batch))
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
    notes = [f"{len(absent)} of {len(cells)} shards of {SIZE} samples, or of what is left of them"]
    if store is not None:
        notes[0] += f"; the others are in {store.path}"
    notes.append(f"about {seconds / 60:.1f} minutes in one process")
    tables.show("To be measured", pd.DataFrame(list(lines.values())).fillna("-"), notes)


def report(session: Session, outcome: Outcome) -> None:
    """Print the tables of distances and errors, keep these and all others for the files."""
    if session.args.folders:
        if outcome.name == "fid-folders":
            one, two = session.args.folders
            folders.report(outcome.table, one, two, notes_of(one, two))
        return
    table, (compared, made) = outcome.table, outcome.extra
    budget, unit = ("steps_budget", "steps") if session.args.steps else ("nfe_budget", "NFE")
    solvers = table[table["solver"] != "accurate"]
    sections: list[tuple[str, pd.DataFrame, list[str]]] = []
    others: list[tuple[str, pd.DataFrame, list[str]]] = []
    for look in compared.judged:
        here = solvers[solvers["feature"] == look.name]
        floor = table[(table["feature"] == look.name) & (table["solver"] == "accurate")]
        size = sum(len(part.arrays[look.name]) for part in made.truth if look.name in part.arrays)
        about = _against(session, compared, look, size)
        notes = [f"{session.case.samples} samples; fewer give larger distances", *about] + [
            _floor_in_words(r) for _, r in floor[floor["denoise"].isin(here["denoise"])].iterrows()
        ]
        full = wide(here, budget, unit, interval_of("frechet"))
        gaps = wide(here, budget, unit, interval_of("gap"))
        (sections if look.name in compared.shown else others).extend(
            [
                (f"{look.distance}, best of all variants (95%)", _best(here, budget, unit), notes),
                (f"{look.distance} (95%){common(here)}", full, notes),
                (
                    f"{look.distance} above the accurate samples' from the same latents (95%){common(here)}",
                    gaps,
                    ["an interval above 0: worse than the accurate solution; its upper end: at most by this"],
                ),
            ]
        )
        if here["kernel"].isna().all():
            continue
        for what in ("precision", "recall"):
            title = f"Improved {what}, {look.name} (95%)"
            others.append((title, wide(here, budget, unit, interval_of(what)), about))
        kernel = wide(here, budget, unit, lambda row: f"{row['kernel']:.3g}")
        others.append((f"Kernel distance, {look.name}", kernel, about))
    first = solvers[solvers["feature"] == compared.judged[0].name]
    errors = first[first["error"].notna() | (first["note"] != "")]
    notes = [f"N/A: {solver} {note}" for solver, note in reasons(first)]
    notes += [f"accurate solution: own error {first['reference_error'].max():.1e}"]
    if (first["jvp"] > 0).any():
        notes.append("Jacobian-vector products come on top of the NFE (column jvp of the CSV)")
    where = "x, before decoding" if session.args.decode else "x"
    text = f"Mean L2 error of the end point in {where} (95%){common(errors)}"
    sections.append((text, wide(errors, budget, unit, interval_of("error")), notes))
    for section in sections:
        tables.show(*section)
    for section in others:
        tables.keep(*section)
    if session.args.write_reference:
        print(f"\nmu and sigma of the data, {compared.shown[0]}: {session.args.write_reference}")


def _against(session: Session, compared: Comparison, look: Features, size: int) -> list[str]:
    """Return what is to be said of the data, for the notes under a table."""
    case, args = session.case, session.args
    data = f"{size} data of {case.name}"
    if case.given is not None:
        data = f"{size} of the {len(case.given)} data in {args.data}"
    if compared.reference is not None and look.name == compared.shown[0]:
        known = f"mu and sigma in {args.reference}"
        data = f"{known}; precision and recall with {data}" if size else known
    note = case.note if size else ""
    return [f"compared with {data}", *([note] if note else [])]


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
    if session.args.folders:
        return {}
    compared, made = outcome.extra
    budget = "steps_budget" if session.args.steps else "nfe_budget"
    shown = [look.name for look in compared.judged if look.name in compared.shown]
    figures = {"": partial(quality.curves, outcome.table, shown, budget)}
    for row, parts in made.rows if session.args.sheets else ():
        if not row.note:
            m = row.method
            tricks = [trick for trick, on in (("afs", m.afs), ("denoised", m.denoise)) if on]
            name = "-".join([row.solver, m.form.name, m.grid.name, *tricks, str(row.steps)])
            decoder = compared.view.decoder
            shape = session.problem.event_shape if decoder is None else decoder.shape
            images = parts[0].arrays["pixels"][:64].reshape(-1, *shape)
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
        "--problem mine.py:make --data photos.zip --features mine.py:features",
        "--problem digits --samples 250 --data digits --write-reference digits.npz",
        "--folders samples/ photos.zip --features classifier",
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
