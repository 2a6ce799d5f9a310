"""The error budget of a learned sampler: how much is the solver's, the head's and the score network's.

The network was trained on samples of a distribution whose flow is known. From one latent there are four
ends: that of the exact flow, x*; that of the network's own flow, x_net; that of a method with the network's
exact derivatives, x_jets; and, for TTM-2 with a distilled head (GENIE, Eqs. 9 and 14), x_head. The error
telescopes,

    x_head - x* = (x_head - x_jets) + (x_jets - x_net) + (x_net - x*),

into the parts of the derivative, the discretisation and the score network. The share of a part in an error
e is its component along it, ⟨part, e⟩/|e|: shares add up to |e|, and are negative where a part makes up for
others. Along the exact flow, ε, its derivative dε/dγ (Eq. 10) and the head are compared point by point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from analysis import plots, tables
from analysis.cli import Session, main, named, parser
from analysis.methods import FORMS, GRIDS, METHODS, Method
from analysis.problems import has_head
from analysis.reference import Reference, reference
from analysis.statistics import Bootstrap, Interval
from analysis.study import Cell, Result, frame, run
from problems import Gaussian, Mixture, Model
from problems.console import Parser, UsageError, positive

SOLVERS = ("ddim", "ttm2", "genie")
"""The methods that are compared, each at one evaluation of the network per step."""

PARTS = ("derivative", "discretisation", "score network")
"""The parts of an error, in the order in which they lead from the end of a method to the exact end."""

PAIRS = {
    "eps": "network's ε to the exact one",
    "slope": "network's dε/dγ to the exact one",
    "head": "head to the network's dε/dγ",
    "head_exact": "head to the exact dε/dγ",
}
"""What is compared point by point."""


def arguments() -> Parser:
    """Return the parser of this command."""
    p = parser(
        "budget",
        "Error of a learned sampler, split into derivative, discretisation and score network.",
        "  python -m analysis.budget\n"
        "  python -m analysis.budget --nfe 5 10 --t 0.05 0.5 --samples 100\n"
        "  python -m analysis.budget --problem mine.safetensors --truth digits-gaussians",
    )
    p.set_defaults(problem="digits-gaussians-network", samples=400)
    p.add_argument("--truth", default="digits-gaussians", help="the distribution the network was trained on")
    p.add_argument("--nfe", nargs="+", type=positive, default=[5, 10, 15, 20, 25], help="budgets")
    p.add_argument("--grid", default="quadratic", metavar="NAME", help=f"grid: {', '.join(GRIDS)}")
    p.add_argument(
        "--t",
        nargs="+",
        type=float,
        default=[0.01, 0.05, 0.1, 0.2, 0.5, 0.9],
        help="times at which ε and its derivatives are compared",
    )
    return p


def experiment(session: Session) -> Sequence[Path]:
    """Measure, then write tables and figure."""
    args, schedule = session.args, session.problem.schedule
    truth = known(session)
    times = list(dict.fromkeys(args.t))
    for t in times:
        if not schedule.stop <= t <= schedule.start:
            raise UsageError(f"--t {t:g} is outside [{schedule.stop:g}, {schedule.start:g}]")
    grid = named("grid", GRIDS, args.grid)
    names = SOLVERS if has_head(session.problem) else SOLVERS[:-1]
    methods = {name: replace(METHODS[name], grid=grid) for name in names}
    bootstrap = Bootstrap(args.samples)

    @cache
    def exact() -> Reference:
        stops = sorted({schedule.start, schedule.stop, *times}, reverse=True)
        return reference(truth.problem, session.latents(), stops)

    @cache
    def own() -> Reference:
        return reference(session.problem, session.latents(), (schedule.start, schedule.stop))

    def measure(method: Method, steps: int) -> dict[str, Any]:
        ends = chain(session.working, method, steps, session.cast(session.latents()), own().x[-1])
        errors = {"exact_error": np.array(exact().error), "own_error": np.array(own().error)}
        return {**split(ends, exact().x[-1]), **errors}

    def compare(t: float) -> dict[str, Any]:
        x = exact().x[exact().times.index(t)]
        return pointwise(session.working, truth.problem, session.cast(x), x, t)

    config = {**session.config, "truth": args.truth}
    parts = (*session.parts, *truth.parts, split)
    ends = run(
        "budget",
        [
            Cell(
                {**config, "grid": grid.name, "solver": name, "nfe": nfe},
                (*parts, *method.parts),
                partial(measure, method, nfe),
            )
            for name, method in methods.items()
            for nfe in dict.fromkeys(args.nfe)
        ],
        session.store,
        fresh=args.fresh,
    )
    points = run(
        "budget",
        [Cell({**config, "t": t}, parts, partial(compare, t)) for t in times],
        session.store,
        fresh=args.fresh,
    )

    table, local = shares(ends, bootstrap), relative(points, bootstrap)
    errors = [float(ends[0].arrays[name]) for name in ("exact_error", "own_error")]
    report(table, local, errors)
    written = tables.to_csv(local, session.path("-pointwise.csv"))
    return [written, *session.save(table, draw(table, local))]


def known(session: Session) -> Session:
    """Return the same run on the truth.

    Raises
    ------
    UsageError
        If that is not known exactly, or is no truth of this problem.
    """
    truth, name = session.on(session.args.truth), session.args.truth
    if not isinstance(truth.problem, Mixture | Gaussian):
        raise UsageError(
            f"{name} is no exact problem; choose the distribution that the network was trained on, such as "
            "--truth digits-gaussians"
        )
    for what in ("event_shape", "schedule"):
        if getattr(truth.problem, what) != getattr(session.problem, what):
            raise UsageError(
                f"{name} and {session.args.problem} differ in {what.replace('_', ' ')}; "
                "choose the distribution that the network was trained on"
            )
    return truth


def chain(model: Model, method: Method, steps: int, x: Tensor, own: Tensor) -> dict[str, Tensor]:
    """Return where a method ends, and the ends between that one and the exact one.

    Parameters
    ----------
    model
        The model.
    method
        The method; with a distilled head, the same one with exact derivatives is one of the ends.
    steps
        Number of steps.
    x
        Latents, shape (N, *event).
    own
        The ends of the model's own flow.

    Returns
    -------
    By the name of a part of the error, the end where it begins; it leads to the next.
    """
    ends = {"discretisation": method.sample(model, steps, x), "score network": own}
    if method.form.name != "distilled":
        return ends
    jets = replace(method, form=FORMS["ddim"]).sample(model, steps, x)
    return {"derivative": ends["discretisation"], **ends, "discretisation": jets}


def split(ends: Mapping[str, Tensor], exact: Tensor) -> dict[str, Any]:
    """Split errors into parts.

    Parameters
    ----------
    ends
        By the name of a part, where it begins (N, *event); it leads to the next, the last one to ``exact``.
    exact
        The exact ends.

    Returns
    -------
    Arrays (N,): the L2 norm of each part by its name, its share as ``NAME share``, and the norm of the error
    itself, which is its own share, as ``total``.
    """
    points = [x.double().cpu().flatten(1) for x in (*ends.values(), exact)]
    error = points[0] - points[-1]
    size = error.norm(dim=1)
    along = error / size.where(size > 0.0, 1.0)[:, None]
    arrays = {"total": size.numpy(), "total share": size.numpy()}
    for name, (a, b) in zip(ends, pairwise(points), strict=True):
        arrays[name] = (a - b).norm(dim=1).numpy()
        arrays[f"{name} share"] = ((a - b) * along).sum(1).numpy()
    return arrays


def pointwise(model: Model, truth: Model, x: Tensor, x_exact: Tensor, t: float) -> dict[str, Any]:
    """Compare ε and its derivatives at given states, each along the flow of its own model.

    Parameters
    ----------
    model, truth
        The model and the exact one.
    x, x_exact
        The states as each of them takes them, shape (N, *event).
    t
        Their time.

    Returns
    -------
    Arrays (N,) by the names of ``PAIRS``, without a head the first two: the squared L2 norm of the difference
    of a pair and, as ``NAME size``, of its second.
    """
    exact, said = truth.jet(x_exact, t, 2), model.jet(x, t, 2)
    pairs = {"eps": (said[0], exact[0]), "slope": (said[1], exact[1])}
    if has_head(model):
        head = model.distilled.jet(x, t, 2)[1]
        pairs |= {"head": (head, said[1]), "head_exact": (head, exact[1])}
    arrays = {}
    for name, pair in pairs.items():
        a, b = (v.double().cpu().flatten(1) for v in pair)
        arrays[name] = (a - b).square().sum(1).numpy()
        arrays[f"{name} size"] = b.square().sum(1).numpy()
    return arrays


def shares(results: list[Result], bootstrap: Bootstrap) -> pd.DataFrame:
    """Return a row for each part of each result: its mean norm and share, and that over the mean error."""
    rows = [(r, part) for r in results for part in ("total", *PARTS) if part in r.arrays]
    norms, along, totals = (
        np.stack([r.arrays[name.format(part)] for r, part in rows]) for name in ("{}", "{} share", "total")
    )
    return frame(
        [r for r, _ in rows],
        part=[part for _, part in rows],
        **bootstrap.means(norms).columns("norm"),
        **bootstrap.means(along).columns("share"),
        **bootstrap.ratios(along, totals).columns("fraction"),
    )


def relative(results: list[Result], bootstrap: Bootstrap) -> pd.DataFrame:
    """Return a row for each pair at each time: |a - b|/|b|, both root mean squares."""
    rows = [(r, pair) for r in results for pair in PAIRS if pair in r.arrays]
    apart, size = (np.stack([r.arrays[pair + end] for r, pair in rows]) for end in ("", " size"))
    ratio = Interval(*map(np.sqrt, bootstrap.ratios(apart, size)))
    return frame([r for r, _ in rows], pair=[pair for _, pair in rows], **ratio.columns("error"))


def report(table: pd.DataFrame, local: pd.DataFrame, errors: Sequence[float]) -> None:
    """Print the norms of the parts, their shares, and the errors point by point."""

    def wide(frame: pd.DataFrame, lines: Sequence[str], columns: str, value: str) -> pd.DataFrame:
        text = [tables.cell(row, value) for _, row in frame.iterrows()]
        across = frame.assign(text=text).pivot_table("text", list(lines), columns, "first", sort=False)
        order = dict.fromkeys(c for c in ("total", *PARTS, *frame[columns]) if c in across)
        return across.reindex(columns=list(order)).reset_index().fillna("-")

    notes = [
        f"reference: own error {errors[0]:.1e} of the exact flow, {errors[1]:.1e} of the network's",
        "ttm2, and the derivative part of genie, rest on Jacobian-vector products on top of the NFE",
    ]
    if "genie" not in set(table["solver"]):
        notes.append("no genie: this network has no distilled head")
    title = "Mean L2 norm of the error in x at t_cut and of its parts (95%)"
    tables.show(title, wide(table, ("solver", "nfe"), "part", "norm"), notes)
    share = wide(table[table["part"] != "total"], ("solver", "nfe"), "part", "share")
    tables.show("Mean signed shares, which add up to the mean norm of the error (95%)", share)
    fraction = wide(table[table["part"] != "total"], ("solver", "nfe"), "part", "fraction")
    tables.show("The same as fractions of it (95%)", fraction)
    title = "Along the exact flow: distance of the first to the second, over the second's size, rms (95%)"
    compared = local.assign(distance=local["pair"].map(PAIRS), t=local["t"].map("t = {:g}".format))
    note = "ε changes ever less towards t = 1, so that relative errors of dε/dγ say little there"
    tables.show(title, wide(compared, ("distance",), "t", "error"), [note])


def draw(table: pd.DataFrame, local: pd.DataFrame) -> Figure:
    """Draw the shares as stacked bars, a group for each NFE; below, the norms of the parts and the points."""
    with plots.style():
        figure, axes = plots.panels(2, 2, figsize=(plots.WIDTH, 5.2), height_ratios=(1.25, 1.0))
        for ax in axes[0]:
            ax.remove()
        _bars(figure.add_subplot(axes[0, 0].get_gridspec()[0, :]), table)
        _norms(axes[1, 0], table)
        _points(axes[1, 1], local)
        return figure


def _bars(ax: Any, table: pd.DataFrame) -> None:
    looks, solvers = plots.looks(PARTS), list(dict.fromkeys(table["solver"]))
    budgets = sorted(set(table["nfe"]))
    width, ticks = 0.8 / len(solvers), {}
    mark: Any = {"marker": "_", "markersize": 7, "linewidth": 0.8}
    for solver, nfe in dict.fromkeys(zip(table["solver"], table["nfe"], strict=True)):
        rows = table[(table["solver"] == solver) & (table["nfe"] == nfe)].set_index("part")
        place = budgets.index(nfe) + width * (solvers.index(solver) - (len(solvers) - 1) / 2)
        ticks[place] = plots.LABELS[solver]
        ends = {True: 0.0, False: 0.0}  # of what is stacked above zero, and below
        for part, share in rows["share"].reindex(PARTS[::-1]).dropna().items():
            ax.bar(place, share, 0.9 * width, ends[share > 0], color=looks[str(part)].colour)
            ends[share > 0] += share
        norm, low, high = rows.loc["total", ["norm", "norm_low", "norm_high"]]
        ax.errorbar(place, norm, [[norm - low], [high - norm]], color="0.1", **mark)
    for part in reversed(PARTS):
        if part in set(table["part"]):
            ax.bar(0, 0, color=looks[part].colour, label=looks[part].label)
    ax.errorbar([], [], [], color="0.1", label="total (95%)", **mark)
    ax.axhline(0.0, color="0.1", linewidth=0.6)
    ax.set_xticks(list(ticks), list(ticks.values()), rotation=30, ha="right", rotation_mode="anchor", size=6)
    ax.tick_params(axis="x", length=0)
    ax.grid(visible=False, axis="x")
    for place, nfe in enumerate(budgets):
        ax.text(place, 1.0, f"{nfe} NFE", transform=ax.get_xaxis_transform(), ha="center", va="bottom")
    ax.set_ylabel("mean share of the $L_2$ error")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=4)


def _norms(ax: Any, table: pd.DataFrame) -> None:
    looks, budgets = plots.looks(PARTS), sorted(set(table["nfe"]))
    curves = (
        ("score network", "ddim", "-", "score network"),
        ("discretisation", "ddim", "-", "discretisation, DDIM"),
        ("discretisation", "ttm2", "--", "discretisation, TTM-2 and GENIE"),
        ("derivative", "genie", "-", "derivative, GENIE"),
    )
    for part, solver, line, label in curves:
        rows = table[(table["part"] == part) & (table["solver"] == solver)].sort_values("nfe")
        if (rows["norm"] > 0.0).any():
            look, band = looks[part], (rows["nfe"], rows["norm_low"], rows["norm_high"])
            ax.plot(rows["nfe"], rows["norm"], line, color=look.colour, marker=look.marker, label=label)
            ax.fill_between(*band, color=look.colour, alpha=0.2, linewidth=0)
    ax.set(xscale="log", yscale="log", xlabel="NFE", ylabel="mean $L_2$ norm of a part")
    ax.set_xticks(budgets, [str(b) for b in budgets])
    ax.set_xticks([], minor=True)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24))


def _points(ax: Any, local: pd.DataFrame) -> None:
    rows = local.assign(what=local["pair"].map(PAIRS))
    plots.curves(ax, rows, "t", "error", by="what", band=("error_low", "error_high"))
    scale = "log" if (rows["error"] > 0.0).any() else "linear"
    ax.set(xscale="log", yscale=scale, xlabel="$t$, along the exact flow", ylabel="relative error (rms)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24))


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return main("budget", arguments(), experiment, argv)


if __name__ == "__main__":
    raise SystemExit(command())
