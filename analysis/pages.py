"""The tables in the pages of ``docs/methods``, made from the table of methods and from measured results.

A page says by a comment where a table belongs, ``<!-- methods: FAMILY -->``, and what stands between that
and ``<!-- end -->`` is replaced. What is declared comes from the code; measured orders from ``orders.csv``,
errors of end points from ``gte.csv``, weak errors from ``weak.csv`` in the folder of results.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from analysis import tables
from analysis.methods import FAMILIES, GRIDS, METHODS, Method
from analysis.problems import PROBLEMS
from problems import Model
from problems.console import Parser, UsageError, attempt
from problems.files import atomically

MARK = re.compile(r"(<!-- methods: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
NFE = 10
"""The budget of the errors in the tables."""


def arguments() -> Parser:
    """Return the parser of this command."""
    p = Parser(
        "analysis.pages",
        "Fill the tables in the pages on the families of methods.",
        "  python -m analysis.pages --results results --pages docs/methods",
    )
    p.add_argument("--results", type=Path, default=Path("results"), help="folder of what was measured")
    p.add_argument("--pages", type=Path, default=Path("docs/methods"), help="folder of the pages")
    return p


def filled(text: str, results: Path) -> str:
    """Return a page with its tables made anew.

    Parameters
    ----------
    text
        The page, in Markdown.
    results
        Folder of the measured results.

    Raises
    ------
    UsageError
        If a mark names no family.
    """

    def table(match: re.Match[str]) -> str:
        if match[2] not in FAMILIES:
            raise UsageError(f"there is no family {match[2]!r}; a page can have {', '.join(FAMILIES)}")
        return f"{match[1]}\n{tables.markdown(family(match[2], results))}\n\n{match[3]}"

    return MARK.sub(table, text)


def family(name: str, results: Path) -> pd.DataFrame:
    """Return the table of a family: a line per method, what is declared and what was measured."""
    network, mixture = PROBLEMS["digits"](), PROBLEMS["toy"]()
    orders, ends, weak = (_read(results / f"{file}.csv") for file in ("orders", "gte", "weak"))
    lines = [
        {
            "name": f"`{method}`",
            "solver": ", then ".join(f"`{spelled(s)}`" for s in (m.solver, *m.last)),
            "form": m.form.name,
            **_orders(orders, m),
            "cost of N steps": cost(m, network if m.form.name == "distilled" else mixture),
            **({} if m.random else _columns(ends, method, m, "error", "error")),
            **(_columns(weak, method, m, "energy", "energy distance") if m.random else {}),
        }
        for method, m in FAMILIES[name].items()
    ]
    return pd.DataFrame(lines).fillna("")


def spelled(value: object) -> str:
    """Return what one would type to make a solver or a clock, defaults left out."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, tuple):
        return f"({', '.join(map(spelled, value))})"
    if not is_dataclass(value):
        return str(value)
    given = [(f.name, getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) != f.default]
    return f"{type(value).__name__}({', '.join(f'{name}={spelled(v)}' for name, v in given)})"


def cost(method: Method, model: Model) -> str:
    """Return what N steps cost, found by rehearsing some: "N", "2 N - 1", "N + 9", with what comes on top.

    A method that chooses its own steps has no such cost.
    """
    if method.adaptive:
        return "as needed"
    few, more = (method.bill(model, n) for n in (16, 17))
    words = [_linear(few.nfe, more.nfe - few.nfe, 16, "N")]
    if more.jvp:
        words.append(f"{_linear(few.jvp, more.jvp - few.jvp, 16, 'N')} derivatives")
    if more.head:
        words.append(f"{_linear(few.head, more.head - few.head, 16, 'N')} calls of the head")
    return ", ".join(words)


def _linear(value: float, slope: float, at: int, name: str) -> str:
    constant = value - slope * at
    product = "" if not slope else name if slope == 1 else f"{slope:g} {name}"
    sign = "" if not constant else f" {'+' if constant > 0 else '-'} {abs(constant):g}"
    return f"{product}{sign}".strip() or "0"


def _read(path: Path) -> pd.DataFrame | None:
    return pd.read_csv(path) if path.exists() else None


def _orders(orders: pd.DataFrame | None, method: Method) -> dict[str, str]:
    """Return what is declared, and the slopes on the method's own form, on smooth grids and rough ones."""
    if method.adaptive:
        return {}
    declared = {"order": f"{method.order:g}"}
    if orders is None:
        return declared
    # A solver is certified once, under the first of its names.
    names = [n for n, m in METHODS.items() if (m.solver, m.last) == (method.solver, method.last)]
    here = orders["solver"].isin(names) & (orders["form"] == method.form.name)
    rows = orders[here & orders["slope"].notna()]
    smooth, paths = rows["grid"].map(lambda grid: GRIDS[grid].smooth).astype(bool), rows["kind"] == "paths"
    parts = {"measured": smooth & ~paths, "on rough grids": ~smooth & ~paths, "along paths": smooth & paths}
    return {
        **declared,
        **{column: _range(rows["slope"][part]) for column, part in parts.items() if part.any()},
    }


def _range(slopes: pd.Series[float]) -> str:
    low, high = f"{slopes.min():.2f}", f"{slopes.max():.2f}"
    return low if low == high else f"{low} to {high}"


def _columns(
    results: pd.DataFrame | None, name: str, method: Method, column: str, words: str
) -> dict[str, str]:
    """Return what was measured for a method under the budget, by grid; or as it was, where it had none."""
    if results is None:
        return {}
    if "nfe_budget" not in results:
        raise UsageError(f"the results are by steps; measure them again with --nfe {NFE}")
    rows = results[(results["solver"] == name) & (results["form"] == method.form.name)]
    rows = rows[~rows["afs"] & ~rows["denoise"] & rows[column].notna()]
    rows = rows[rows["nfe_budget"].isna() | (rows["nfe_budget"] == NFE)]
    return {
        f"{words}, {row['grid']}": tables.cell(row, column)
        + (f" at {row['nfe']:.3g} NFE" if math.isnan(row["nfe_budget"]) else "")
        for _, row in rows.iterrows()
    }


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = arguments()
    args = p.parse_args(argv)

    def action() -> None:
        pages = sorted(args.pages.glob("*.md"))
        if not pages:
            raise UsageError(f"there are no pages in {args.pages}; type their folder after --pages")
        for page in pages:
            text = filled(page.read_text(encoding="utf-8"), args.results)
            atomically(page, partial(Path.write_text, data=text, encoding="utf-8"))

    return attempt(p, action, "pages that were written are whole")


if __name__ == "__main__":
    raise SystemExit(command())
