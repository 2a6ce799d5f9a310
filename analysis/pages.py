"""The tables in the pages of ``docs/methods``, made from the table of methods and from measured results.

A page says by a comment where a table belongs, ``<!-- methods: FAMILY -->``, and what stands between that
and ``<!-- end -->`` is replaced. What is declared comes from the code; measured orders from ``orders.csv``,
errors of end points from ``gte.csv``, weak errors from ``weak.csv`` in the folder of results.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

import pandas as pd

from analysis import tables
from analysis.methods import FAMILIES, GRIDS, Method
from analysis.problems import PROBLEMS
from problems import Model
from problems.console import Parser, UsageError, attempt
from problems.files import atomically
from solvers.adaptive import Adaptive

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
    problem = PROBLEMS["digits"]()  # which has a head
    orders, ends, weak = (_read(results / f"{file}.csv") for file in ("orders", "gte", "weak"))
    lines = [
        {
            "name": f"`{method}`",
            "solver": f"`{spelled(m.solver)}`",
            "form": m.form.name,
            **({} if _free(m) else {"order": str(m.order)}),
            **_measured(orders, method, m),
            "cost of N steps": cost(m, problem),
            **_errors(ends, method),
            **_weak(weak, method),
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
    if isinstance(method.solver, Adaptive):
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


def _free(method: Method) -> bool:
    """Return whether a method has no order to be certified."""
    return method.random or isinstance(method.solver, Adaptive)


def _read(path: Path) -> pd.DataFrame | None:
    return pd.read_csv(path) if path.exists() else None


def _measured(orders: pd.DataFrame | None, name: str, method: Method) -> dict[str, str]:
    """Return the slopes on the method's own form: the range over smooth grids, and that on a rough one."""
    if orders is None or _free(method):
        return {}
    rows = orders[(orders["solver"] == name) & (orders["form"] == method.form.name) & orders["slope"].notna()]
    smooth = rows["grid"].map(lambda grid: GRIDS[grid].smooth)
    parts = {"measured": rows["slope"][smooth], "on rough grids": rows["slope"][~smooth]}
    return {
        column: f"{part.min():.2f}" + (f" to {part.max():.2f}" if len(part) > 1 else "")
        for column, part in parts.items()
        if len(part)
    }


def _errors(ends: pd.DataFrame | None, name: str) -> dict[str, str]:
    if ends is None:
        return {}
    rows = ends[(ends["solver"] == name) & ends["error"].notna()]
    if "nfe_budget" in rows:
        rows = rows[rows["nfe_budget"].isna() | (rows["nfe_budget"] == NFE)]
    return {
        f"error, {row['grid']}": tables.cell(row, "error")
        for _, row in rows.drop_duplicates("grid").iterrows()
    }


def _weak(weak: pd.DataFrame | None, name: str) -> dict[str, str]:
    if weak is None:
        return {}
    return {}


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = arguments()
    args = p.parse_args(argv)

    def action() -> None:
        pages = sorted(args.pages.glob("*.md"))
        if not pages:
            raise UsageError(f"there are no pages in {args.pages}; type their folder after --pages")
        for page in pages:
            text = filled(page.read_text(), args.results)
            atomically(page, lambda path, text=text: path.write_text(text))  # type: ignore[misc]

    return attempt(p, action, "pages that were written are whole")


if __name__ == "__main__":
    raise SystemExit(command())
