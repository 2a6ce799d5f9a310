"""Taylor methods on networks that are told the time smoothly or fast (Fig. 11, explained).

A truncated Taylor method of order p uses derivatives of ε along the flow up to the order p - 1. A network
that is told the time by waves of high frequency can have the same loss as one that is told it smoothly, and
higher derivatives that are larger by orders of magnitude: each brings down a factor of the frequency. With a
step h = r γ the terms of the method's step (Eq. 8) are

    h ε, h²/2 dε/dγ, h³/6 d²ε/dγ² = γ (r ε, r²/2 γ dε/dγ, r³/6 γ² d²ε/dγ²),

so that the sizes of γᵏ dᵏε/dγᵏ relative to that of ε say for which r each further term is smaller than the
one before. They are measured along the exact flow of each network, next to the errors at its end and to the
loss with which the networks were trained, on which they hardly differ.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis import plots, tables
from analysis.cli import Session, add_solvers, main, parser
from analysis.methods import Method
from analysis.reference import SETTLED, STEPS, Reference, reference
from analysis.statistics import Bootstrap, Interval
from analysis.study import Cell, Result, frame, run
from problems import Model
from problems.console import Parser, UsageError, positive
from problems.images.training import stratified
from problems.score import align

NETWORKS = ("digits", "digits-positional", "digits-fourier")
"""Networks that differ in how they are told the time; the last one has no Gaussian skip either."""

POWERS = {1: "γ dε/dγ", 2: "γ² d²ε/dγ²"}
"""The derivatives of which the sizes are measured, by their order."""

ORDERS = len(POWERS)
"""The highest order of them."""

DRAWS = 2000
"""Noisy images on which the loss is measured, the same ones for all networks."""

TILES = 9
"""Images on a sheet."""


def arguments() -> Parser:
    """Return the parser of this command."""
    p = parser(
        "smoothness",
        "Taylor methods on networks that are told the time smoothly or fast (Fig. 11, explained).",
        "  python -m analysis.smoothness\n"
        "  python -m analysis.smoothness --solvers ddim ttm2 ttm3 ttm4 --nfe 5 10 25 50 --show 25\n"
        "  python -m analysis.smoothness --networks digits mine.safetensors --samples 50",
    )
    p.set_defaults(problem=NETWORKS[0], samples=100)
    p.add_argument(
        "--networks",
        nargs="+",
        action=_Networks,
        default=list(NETWORKS),
        metavar="NAME",
        help="problems or checkpoints to compare, instead of one --problem",
    )
    add_solvers(p, ("ddim", "ttm2", "ttm3"))
    p.add_argument("--nfe", nargs="+", type=positive, default=[5, 10, 15, 20, 25], help="budgets")
    p.add_argument("--show", type=positive, default=10, help="the budget whose images are shown")
    p.add_argument(
        "--t", nargs="+", type=float, default=[0.1, 0.3, 0.5, 0.7, 0.9], help="times of the derivatives"
    )
    return p


class _Networks(argparse.Action):
    """Keeps the networks, and the first of them as the problem of the run."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        namespace.networks, namespace.problem = list(dict.fromkeys(values)), values[0]


def experiment(session: Session) -> Sequence[Path]:
    """Measure, then write tables and figure."""
    args = session.args
    results = [r for each in compared(session) for r in measured(each)]
    ends, points, losses = ([r for r in results if key in r.arrays] for key in ("x", "order 0", "loss"))
    table, sizes, networks = errors(ends), derivatives(points), training(losses)
    report(table, sizes, networks)
    kept = (("sizes", sizes), ("networks", networks))
    written = [tables.to_csv(part, session.path(f"-{name}.csv")) for name, part in kept]
    return [*written, *session.save(table, draw(table, sizes, ends, args.show))]


def compared(session: Session) -> list[Session]:
    """Return the run on each of the networks.

    Raises
    ------
    UsageError
        If they do not have the latents in common, or a time or ``--problem`` makes no sense.
    """
    args, problem, schedule = session.args, session.problem, session.problem.schedule
    if args.problem != args.networks[0]:
        raise UsageError(f"type --networks {args.problem} and further ones instead of --problem")
    if outside := [t for t in args.t if not schedule.stop <= t <= schedule.start]:
        raise UsageError(f"--t {outside[0]:g} is outside [{schedule.stop:g}, {schedule.start:g}]")
    sessions = [session.on(name) for name in args.networks]
    for name, each in zip(args.networks, sessions, strict=True):
        if (each.problem.event_shape, each.problem.schedule) != (problem.event_shape, schedule):
            raise UsageError(f"{name} and {args.problem} differ in images or schedule; choose alike ones")
    return sessions


def measured(session: Session) -> list[Result]:
    """Return what is measured on one network: ends of trajectories, sizes of derivatives, the loss."""
    args, problem, schedule = session.args, session.problem, session.problem.schedule
    times = list(dict.fromkeys(args.t))
    parts = (*session.parts, squares)

    @cache
    def exact() -> Reference:
        stops = sorted({schedule.start, schedule.stop, *times}, reverse=True)
        return reference(problem, session.latents(), stops)

    def aim() -> dict[str, Any]:
        x = exact().x[-1]
        return {"x": x[:TILES].numpy(), "error": np.full(len(x), exact().error)}

    def end(method: Method, steps: int) -> dict[str, Any]:
        x = method.sample(session.working, steps, session.cast(session.latents()), session.noise())
        x = x.double().cpu()
        return {"x": x[:TILES].numpy(), "error": (x - exact().x[-1]).flatten(1).norm(dim=1).numpy()}

    def size(t: float) -> dict[str, Any]:
        return squares(session.working, session.cast(exact().x[exact().times.index(t)]), t)

    plan = []
    for name, method in session.methods().items():
        for nfe in sorted({*args.nfe, args.show}):
            try:
                plan.append((name, method, nfe, method.steps(problem, nfe)))
            except ValueError as reason:
                told = f"{name} {reason}; type larger --nfe and --show, or other --solvers"
                raise UsageError(told) from reason

    cells = [
        Cell({**session.config, "solver": "exact", "nfe": 0}, parts, aim),
        *(
            Cell(
                {**session.config, "solver": name, "nfe": nfe},
                (*parts, *method.parts),
                partial(end, method, steps),
            )
            for name, method, nfe, steps in plan
        ),
        *(Cell({**session.config, "t": t}, parts, partial(size, t)) for t in times),
        Cell({**session.config, "draws": DRAWS}, parts, partial(loss, session)),
    ]
    return run("smoothness", cells, session.store, fresh=args.fresh)


def squares(model: Model, x: Tensor, t: float) -> dict[str, Any]:
    """Return |γᵏ dᵏε/dγᵏ|² at states (N, *event) and their time, as ``order k``, arrays (N,)."""
    gamma = float(model.schedule.gamma(t))
    jet = model.jet(x, t, ORDERS + 1)
    return {
        f"order {k}": (gamma**k * d.double().cpu()).flatten(1).square().sum(1).numpy()
        for k, d in enumerate(jet)
    }


def loss(session: Session) -> dict[str, Any]:
    """Return the mean of (ε - noise)² on each of ``DRAWS`` noisy images, t uniform as in training.

    NaN where what a network was trained on is not at hand.
    """
    schedule, source = session.problem.schedule, torch.Generator().manual_seed(session.args.seed)
    try:
        x0 = session.problem.sample(DRAWS, None, source)
    except ValueError:
        return {"loss": np.full(DRAWS, np.nan)}
    t = stratified(DRAWS, schedule.stop, schedule.start, source)
    noise = torch.randn(x0.shape, generator=source, dtype=torch.float64)
    x = align(schedule.alpha(t), x0) * x0 + align(schedule.sigma(t), x0) * noise
    with torch.inference_mode():
        said = session.working(session.cast(x), t.to(session.args.device)).double().cpu()
    return {"loss": (said - noise).flatten(1).square().mean(1).numpy()}


def errors(results: list[Result]) -> pd.DataFrame:
    """Return a row for each end: its mean error, that of the reference for the exact one."""
    found = np.stack([r.arrays["error"] for r in results])
    mean = Bootstrap(found.shape[1]).means(np.where(np.isfinite(found), found, np.nan))
    return frame(results, **mean.columns("error"))


def derivatives(results: list[Result]) -> pd.DataFrame:
    """Return a row for each derivative at each time: root mean squares of γᵏ dᵏε/dγᵏ over that of ε."""
    rows = [(r, k) for r in results for k in range(1, ORDERS + 1)]
    size, base = (
        np.stack([r.arrays[f"order {i}"] for r, i in each]) for each in (rows, [(r, 0) for r, _ in rows])
    )
    ratio = Interval(*map(np.sqrt, Bootstrap(size.shape[1]).ratios(size, base)))
    return frame([r for r, _ in rows], order=[k for _, k in rows], **ratio.columns("size"))


def training(results: list[Result]) -> pd.DataFrame:
    """Return a row for each network: its loss, and that over the loss of the first on the same images."""
    found, bootstrap = np.stack([r.arrays["loss"] for r in results]), Bootstrap(DRAWS)
    ratio = bootstrap.ratios(found, np.broadcast_to(found[0], found.shape))
    return frame(results, **bootstrap.means(found).columns("loss"), **ratio.columns("ratio"))


def report(table: pd.DataFrame, sizes: pd.DataFrame, networks: pd.DataFrame) -> None:
    """Print the errors, the sizes of the derivatives and the losses."""

    def text(row: Any, name: str) -> str:
        return tables.cell(row, name)

    lines: dict[Any, dict[str, str]] = {}
    exact = table[table["solver"] == "exact"].set_index("problem")["error"]
    for _, row in table[table["solver"] != "exact"].iterrows():
        start = {"network": _name(row["problem"]), "solver": row["solver"]}
        line = lines.setdefault((row["problem"], row["solver"]), start)
        line[f"{row['nfe']} NFE"] = text(row, "error")
    notes = [
        "each network against the end of its own flow; reference: the largest error of that, in x̄",
        "derivatives of a network are exact, and come on top of the NFE",
    ]
    if (exact > SETTLED).any():
        notes.append(f"a reference above {SETTLED:g} did not settle in {STEPS[1]} steps, and is left at that")
    if table["error"].isna().any():
        notes.append("nan: a trajectory left the range of numbers")
    for (network, _), line in lines.items():
        line["reference"] = f"{exact[network]:.1e}"
    title = "Mean L2 error of the end in x at t_cut (95%)"
    tables.show(title, pd.DataFrame(list(lines.values())).fillna("-"), notes)

    lines = {}
    for _, row in sizes.iterrows():
        start = {"network": _name(row["problem"]), "derivative": POWERS[row["order"]]}
        lines.setdefault((row["problem"], row["order"]), start)[f"t = {row['t']:g}"] = text(row, "size")
    title = "Derivatives of ε along the exact flow over ε, root mean squares (95%)"
    tables.show(title, pd.DataFrame(list(lines.values())))

    found = [
        {
            "network": _name(row["problem"]),
            "loss": text(row, "loss"),
            "over that of the first": text(row, "ratio"),
        }
        for _, row in networks.iterrows()
    ]
    tables.show(f"Training loss on the same {DRAWS} noisy images (95%)", pd.DataFrame(found))


def _name(network: str) -> str:
    return network.removesuffix(".safetensors").replace("\\", "/").split("/")[-1]


def draw(table: pd.DataFrame, sizes: pd.DataFrame, ends: list[Result], nfe: int) -> Figure:
    """Draw a row for each network: images and errors; below, the sizes of the derivatives."""
    networks = list(dict.fromkeys(table["problem"]))
    solvers = [s for s in dict.fromkeys(table["solver"]) if s != "exact"]
    with plots.style():
        height = plots.WIDTH / (len(solvers) + 2.9)  # of a row: sheets are square
        figure = Figure((plots.WIDTH, height * len(networks) + 2.5), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=(height * len(networks) + 0.4, 2.1))
        top, bottom = halves
        left, right = top.subfigures(1, 2, width_ratios=(len(solvers) + 1, 1.9))
        sheets = left.subplots(len(networks), len(solvers) + 1, squeeze=False)
        curves = right.subplots(len(networks), 1, squeeze=False, sharex=True, sharey=True)
        rows = table[table["solver"] != "exact"]
        for network, line, ax in zip(networks, sheets, curves[:, 0], strict=True):
            _sheets(line, [r for r in ends if r.config["problem"] == network], nfe)
            line[0].set_ylabel(_name(network))
            here = rows[rows["problem"] == network]
            plots.curves(ax, here, "nfe", "error", band=("error_low", "error_high"), among=solvers)
            ax.set(xscale="log", yscale="log", ylabel="mean $L_2$ error")
        for title, ax in zip(["exact", *solvers], sheets[0], strict=True):
            ax.set_title(plots.LABELS.get(title, title))
        budgets = sorted(set(rows["nfe"]))
        curves[-1, 0].set_xticks(budgets, [str(n) for n in budgets])
        curves[-1, 0].set_xticks([], minor=True)
        curves[-1, 0].set_xlabel("NFE")
        curves[0, 0].legend(loc="upper right")
        left.supxlabel(f"images at {nfe} NFE", size="medium")
        _sizes(bottom.subplots(1, len(POWERS)), sizes)
        return figure


def _sheets(line: Any, ends: list[Result], nfe: int) -> None:
    shown = [r.arrays["x"] for r in ends if r.config["nfe"] in (0, nfe)]
    for ax, x in zip(line, shown, strict=True):
        plots.sheet(ax, np.nan_to_num(x), 3, 3)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)


def _sizes(line: Any, sizes: pd.DataFrame) -> None:
    for ax, (order, power) in zip(line, POWERS.items(), strict=True):
        rows = sizes[sizes["order"] == order].assign(network=sizes["problem"].map(_name))
        plots.curves(ax, rows, "t", "size", by="network", band=("size_low", "size_high"))
        ax.set(yscale="log", xlabel="$t$, along the exact flow", ylabel=f"{power} over ε (rms)")
    line[0].legend(loc="lower left")


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return main("smoothness", arguments(), experiment, argv)


if __name__ == "__main__":
    raise SystemExit(command())
