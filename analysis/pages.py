"""Lists of experiments and tables of methods on the pages of the repository, made from code and results.

A comment says where one belongs: ``<!-- methods: FAMILY -->`` on a page of ``docs/methods``,
``<!-- experiments -->`` in ``README.md``, ``# experiments`` above the jobs in ``tox.ini``. What stands after
it, up to ``<!-- end -->`` or ``# end``, is replaced. What is declared comes from the code, measured orders
from ``orders.csv``, errors of end points from ``gte.csv``, weak errors from ``weak.csv``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from analysis.command.experiment import REPORT, Experiment, commands, experiments
from analysis.command.run import MODULE, start
from analysis.measure.problems import PROBLEMS
from analysis.methods import FAMILIES, GRIDS, METHODS, Method
from analysis.show import tables
from analysis.show.certificates import spread
from problems import Model
from problems.console import Parser, UsageError, attempt
from problems.files import atomically

MARK = re.compile(r"(<!-- methods: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
LISTED = {
    "README.md": re.compile(r"(?<=<!-- experiments -->\n).*?(?=<!-- end -->)", re.DOTALL),
    "tox.ini": re.compile(r"(?<=# experiments\n).*?(?=# end\n)", re.DOTALL),
}
"""The files that list the experiments, each with the place of the list."""

NFE = 10
"""The budget of the errors in the tables."""


def parser(launcher: str = MODULE) -> Parser:
    """Return the parser of this command."""
    name = f"{launcher}pages"
    p = Parser(
        "analysis.pages",
        "Fill the list of experiments in README.md and tox.ini, and the tables of methods in docs/methods.",
        f"  {name}\n  {name} --results results",
    )
    p.prog = name
    p.add_argument("--root", type=Path, default=Path(), help="root of the repository")
    p.add_argument(
        "--results", type=Path, help="folder of what was measured; without it docs/methods is left as it is"
    )
    return p


def listed(root: Path) -> dict[Path, str]:
    """Return the files that list the experiments, as they should be.

    Parameters
    ----------
    root
        Root of the repository.

    Raises
    ------
    UsageError
        If a file is missing or says not where its list belongs.
    """
    modules = commands()
    found = [e for e in experiments() if e.name in modules]  # those of plugins are not in this repository
    texts = {"README.md": f"\n{tables.markdown(overview(found))}\n\n", "tox.ini": jobs(found)}
    files = {}
    for name, place in LISTED.items():
        path, text = root / name, texts[name]
        if not path.is_file():
            raise UsageError(f"there is no {path}; type the root of the repository after --root")
        around = place.split(path.read_text(encoding="utf-8"))
        if len(around) != 2:
            raise UsageError(f"{path} has {len(around) - 1} places for the list of experiments; mark one")
        files[path] = text.join(around)
    return files


def overview(found: Sequence[Experiment]) -> pd.DataFrame:
    """Return the table of experiments: command, finding, place in the paper."""
    lines = []
    for e in found:
        lines.append((e.name, e.finding, e.paper))
        lines += [(f"{e.name} {v.arguments}", v.finding, v.paper) for v in e.variants]
    lines.append(("report", REPORT, ""))
    cells = [(f"`{name}`", finding, paper or "–") for name, finding, paper in lines]
    return pd.DataFrame(cells, columns=["command", "what it shows", "in the paper"])


def jobs(found: Sequence[Experiment]) -> str:
    """Return the head of the section of ``tox.ini`` that runs any of the commands."""
    return f"[testenv:{{{','.join([*(e.name for e in found), 'report'])}}}]\n"


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
    orders, ends, weak = (_read(results / f"{file}.csv") for file in ("orders", "gte", "weak"))
    lines = [
        {
            "name": f"`{method}`",
            "solver": ", then ".join(f"`{spelled(s)}`" for s in (m.solver, *m.last)),
            "form": m.form.name,
            **_orders(orders, m),
            "cost of N steps": cost(m, PROBLEMS["digits" if m.form.name == "distilled" else "toy"]()),
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
    prior, interior = rows["interval"] == "prior", rows["interval"] == "interior"
    parts = {
        "prior": prior & smooth & ~paths,
        "interior": interior & smooth & ~paths,
        "on rough grids": interior & ~smooth & ~paths,
        "along paths": interior & smooth & paths,
    }
    if not method.random and method.prior_order != method.order:
        declared["order"] += f"; prior: {method.prior_order:g}"
    return {**declared, **{column: _measured(rows[part]) for column, part in parts.items() if part.any()}}


def _measured(rows: pd.DataFrame) -> str:
    """Return the range of the slopes that have settled, and on which grids they have not."""
    moving = rows["verdict"] == "unsettled"
    settled = [spread(rows["slope"][~moving])] if (~moving).any() else []
    names = ", ".join(rows["grid"][moving])
    return "; ".join([*settled, *([f"{names}: unsettled"] if names else [])])


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


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    p = parser(launcher)
    args = p.parse_args(argv)

    def action() -> None:
        texts = listed(args.root)
        if args.results is not None:
            pages = sorted((args.root / "docs" / "methods").glob("*.md"))
            texts |= {page: filled(page.read_text(encoding="utf-8"), args.results) for page in pages}
        for path, text in texts.items():
            atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))

    return attempt(p, action, "pages that were written are whole")


if __name__ == "__main__":
    raise SystemExit(start("pages"))
