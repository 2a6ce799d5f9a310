"""Figures in the style of a paper: they read tidy tables and never run solvers.

Colours are Okabe and Ito's, told apart by colour-blind readers; every curve also has a marker of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from problems.files import atomically

WIDTH = 6.75
"""Width of a page of text, in inches; a column is 3.25."""

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")

LABELS = {
    "ddim": "DDIM",
    "ttm2": "TTM-2",
    "genie": "GENIE (head)",
    "ttm3": "TTM-3",
    "ttm4": "TTM-4",
    "s-pndm": "S-PNDM",
    "f-pndm": "F-PNDM",
    "euler-maruyama": "Euler–Maruyama",
    "adaptive-sde": "adaptive SDE",
    "ddpm": "DDPM",
    "ddpm-beta": "DDPM, variance β",
    "ddim-eta0.5": "DDIM (η = 0.5)",
    "dpm2-ancestral": "DPM2 ancestral",
    "sde-dpm-solver++2m": "SDE-DPM-Solver++(2M)",
    "sde-dpm-solver++3m": "SDE-DPM-Solver++(3M)",
    "sde-dpm-solver++3m-exact": "SDE-DPM-Solver++(3M), exact",
    "edm-churn": "EDM, stochastic",
    "vesde-pc": "VESDE-PC",
    "analytic-ddim": "Analytic-DDIM",
    "optimal-ddim": "DDIM, optimal covariance",
    "analytic-ddpm": "Analytic-DDPM",
    "optimal-ddpm": "DDPM, optimal covariance",
    "sde-sscs": "SDE, SSCS",
    "sde-strang": "SDE, Strang",
    "cld-em": "CLD, Euler–Maruyama",
    "cld-sscs": "CLD, SSCS",
    "cld-strang": "CLD, Strang",
    "rk45": "RK45",
    "rk45-each": "RK45 per trajectory",
    "taylor-each": "Taylor per trajectory",
    "heun": "Heun",
    "midpoint": "Midpoint",
    "ralston": "Ralston",
    "rk3": "RK3",
    "heun3": "Heun, third order",
    "rk4": "RK4",
    "ab2": "AB2",
    "ab3": "AB3",
    "ab4": "AB4",
    "lms": "LMS",
    "rho-deis2": "ρAB-DEIS2",
    "fon": "FON",
    "ipndm": "iPNDM",
    "ipndm-v": "iPNDM_v",
    "adams22": "Adams(2, 2)",
    "adams32": "Adams(3, 2)",
    "tab-deis1": "tAB-DEIS1",
    "tab-deis2": "tAB-DEIS2",
    "tab-deis3": "tAB-DEIS3",
    "dpm-solver-2": "DPM-Solver-2",
    "dpm-solver-3": "DPM-Solver-3",
    "dpm-solver-2m": "DPM-Solver(2M)",
    "dpm-solver-3m": "DPM-Solver(3M)",
    "dpm-solver++2s": "DPM-Solver++(2S)",
    "dpm-solver++3s": "DPM-Solver++(3S)",
    "dpm-solver++2m": "DPM-Solver++(2M)",
    "dpm-solver++2m-lower": "DPM-Solver++(2M), last DDIM",
    "dpm-solver++3m": "DPM-Solver++(3M)",
    "dpm-solver++3m-lower": "DPM-Solver++(3M), last DDIM",
    "dpm-solver++3m-exact": "DPM-Solver++(3M), exact",
    "log-deis1": "log-ρ AB-DEIS1",
    "log-deis1-lower": "log-ρ AB-DEIS1, last DDIM",
    "log-deis2": "log-ρ AB-DEIS2",
    "log-deis2-lower": "log-ρ AB-DEIS2, last DDIM",
    "log-deis3": "log-ρ AB-DEIS3",
    "exp-ttm2": "exponential TTM-2",
    "exp-ttm3": "exponential TTM-3",
    "unipc1": "UniPC-1",
    "unipc2": "UniPC-2",
    "unipc2-lower": "UniPC-2, last DDIM",
    "unipc3": "UniPC-3",
    "unipc2-b1": "UniPC-2, $B_1$",
    "unipc3-b1": "UniPC-3, $B_1$",
    "unipc3-lower": "UniPC-3, last DDIM",
    "ttm2-pf": "TTM-2, PF ODE",
    "ttm2-ideal-ddim": "ideal TTM-2",
    "ttm2-ideal-pf": "ideal TTM-2, PF ODE",
    "ttm2-combined": "TTM-2, combined",
}


class Look(NamedTuple):
    """How a method is drawn, in every figure alike."""

    label: str
    colour: str
    marker: str


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Return the looks of the named methods: the paper's first, each with a colour and marker of its own."""
    known = list(LABELS)
    order = sorted(dict.fromkeys(names), key=lambda n: known.index(n) if n in known else len(known))
    pairs = zip(order, cycle(_COLOURS), cycle(_MARKERS), strict=False)
    return {name: Look(LABELS.get(name, name), colour, marker) for name, colour, marker in pairs}


@contextmanager
def style() -> Iterator[None]:
    """Use the paper style inside the block."""
    with mpl.rc_context(), plt.style.context(str(Path(__file__).with_name("paper.mplstyle"))):
        yield


def panels(rows: int, columns: int, **options: Any) -> tuple[Figure, Any]:
    """Return a new figure with a grid of axes, always two-dimensional."""
    return plt.subplots(rows, columns, squeeze=False, **options)


class Later(Mapping[str, Figure]):
    """Figures by name, each drawn when it is asked for, so that few are open at a time.

    Parameters
    ----------
    makers
        Functions that draw them.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Figure]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Figure:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PDF and PNG, each whole or not at all, and close it.

    Parameters
    ----------
    figure
        The figure.
    path
        Path without suffix.
    """
    with style():  # which also says how files are written: fonts that can be searched, dots per inch
        written = []
        for suffix in (".pdf", ".png"):
            written.append(atomically(path.with_name(path.name + suffix), figure.savefig))
            figure.set_layout_engine("none")  # it has done its work, which takes as long as drawing
    plt.close(figure)
    return written


def curves(
    ax: Axes,
    frame: pd.DataFrame,
    x: str,
    y: str,
    by: str = "solver",
    band: tuple[str, str] | None = None,
    among: Sequence[str] | None = None,
    **line: Any,
) -> None:
    """Draw one curve per method, with its interval as a band.

    Parameters
    ----------
    ax
        Axes to draw on.
    frame
        Tidy rows.
    x, y
        Columns of the coordinates.
    by
        Column that tells the methods apart.
    band
        Columns of the lower and upper end of the interval.
    among
        All names in the figure, where the panels do not have the same ones, so that their looks agree.
    """
    for name, look in looks(list(among if among is not None else frame[by])).items():
        rows = frame[frame[by] == name].sort_values(x)
        if rows.empty:
            continue
        ax.plot(rows[x], rows[y], color=look.colour, marker=look.marker, label=look.label, **line)
        if band:
            ax.fill_between(rows[x], rows[band[0]], rows[band[1]], color=look.colour, alpha=0.2, linewidth=0)


def sheet(ax: Axes, images: Any, rows: int, columns: int) -> None:
    """Draw images as a sheet, row by row, with lines of white between them.

    Parameters
    ----------
    ax
        Axes to draw on.
    images
        Shape (N, 1 or 3, H, W), values in [-1, 1]; those beyond the sheet are left out.
    rows, columns
        Number of rows and columns; places without an image are white.
    """
    colours, height, width = images.shape[1:]
    shown = images[: rows * columns]
    gap = max(1, height // 16)
    tiles = np.ones((rows * columns, height + gap, width + gap, colours))
    tiles[: len(shown), :height, :width] = 0.5 + 0.5 * np.moveaxis(shown, 1, -1).clip(-1.0, 1.0)
    tiles = tiles.reshape(rows, columns, height + gap, width + gap, colours).swapaxes(1, 2)
    whole = tiles.reshape(rows * (height + gap), columns * (width + gap), colours)[:-gap, :-gap]
    ax.imshow(whole.squeeze(-1) if colours == 1 else whole, cmap="gray", vmin=0.0, vmax=1.0)


def legend_below(figure: Figure, axes: Sequence[Axes], columns: int = 6) -> None:
    """Put one legend for all panels under the figure, without repetitions."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=min(columns, len(entries))
    )
