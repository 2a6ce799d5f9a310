"""The arguments that commands share."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from analysis.command.experiment import Experiment
from analysis.measure.case import BATCH
from analysis.measure.problems import DTYPES, PROBLEMS
from analysis.measure.rows import BILLS, BUDGETS, SWITCH
from analysis.methods import ALIASES, FAMILIES, FLOWS, GRIDS, METHODS
from problems.console import Parser, UsageError, folder, positive, seed, size, up_to

V = TypeVar("V")

MANY = 20
"""From a longer table than this a mistake is answered with the names that are like it."""


def parser(experiment: Experiment, launcher: str = "python -m analysis.") -> Parser:
    """Return the parser of an experiment, with the arguments that all of them share."""
    examples = "\n".join(f"  {experiment.typed(line, launcher)}" for line in experiment.examples)
    p = Parser(f"analysis.{experiment.name}", experiment.help, examples)
    p.prog = experiment.typed(launcher=launcher)
    group = p.add_argument_group("common arguments")
    group.add_argument(
        "--problem",
        default="toy",
        help=f"what to solve: {', '.join(PROBLEMS)}; or a model of yours: the path of a file or folder "
        "(docs/models.md says of which makes), package.module:function or file.py:function",
    )
    group.add_argument("--samples", type=size, default=1000, help="number of trajectories")
    group.add_argument("--seed", type=seed, default=0, help="seed of the initial states and of all noise")
    group.add_argument("--device", default="cpu", help="torch device on which the methods run")
    group.add_argument(
        "--dtype", choices=DTYPES, help="precision in which they run (default: float64; float32 for networks)"
    )
    group.add_argument("--batch", type=size, default=BATCH, help="states that a model sees at once, at most")
    group.add_argument(
        "--out",
        type=folder,
        default=Path("results"),
        help="folder of figures, tables, manifests and the store",
    )
    said = group.add_mutually_exclusive_group()
    said.add_argument("--quiet", action="store_true", help="print nothing but what went wrong")
    said.add_argument(
        "--json", action="store_true", help="print the manifest, tables in it, and nothing else"
    )
    group.add_argument("--fresh", action="store_true", help="measure anew what the store already holds")
    group.add_argument(
        "--plugin", nargs="+", type=Path, metavar="FILE", help="Python files that add methods, problems, …"
    )
    who = group.add_mutually_exclusive_group()
    who.add_argument(
        "--workers", type=up_to(1024), default=1, help="processes on this machine (extra: cluster)"
    )
    who.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        default=os.environ.get("DASK_SCHEDULER_ADDRESS"),
        help="a Dask scheduler to ask, such as tcp://host:8786 (default: $DASK_SCHEDULER_ADDRESS, if set)",
    )
    experiment.arguments(p)
    p.set_defaults(**experiment.defaults)
    return p


def add_solvers(p: Parser, default: Sequence[str] | None, *, heads: bool = False) -> None:
    """Add ``--solvers``; with ``heads`` the default is left to ``Session.usual``, and None to the command."""
    usual = "" if default else " (default: all that solve the problem's flow)"
    if default and heads:
        usual = f" (default: {' '.join(default)}, and genie where the network has a head)"
    p.add_argument(
        "--solvers",
        nargs="+",
        default=list(default) if default and not heads else None,
        metavar="NAME",
        help=f"methods to compare, of those listed below{usual}",
    )
    p.epilog = f"{p.epilog}\n\n{_listed()}"


def _listed() -> str:
    """Return the end of a help text: the names of all methods by family, and their other names."""
    alike: dict[str, list[str]] = {}
    for alias, name in ALIASES.items():
        alike.setdefault(name, []).append(alias)
    lines = {family: " ".join(members) for family, members in FAMILIES.items()}
    own = {name for family in FAMILIES.values() for name in family}
    if plugged := [name for name in METHODS if name not in own]:
        lines["from plugins"] = " ".join(plugged)
    lines["also known as"] = ", ".join(f"{name} = {' = '.join(others)}" for name, others in alike.items())
    paragraphs = [
        textwrap.fill(
            f"{title}: {names}", 78, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
        )
        for title, names in lines.items()
    ]
    return "\n".join(["methods, by family (docs/methods says what they are):", *paragraphs])


def add_factors(p: Parser, forms: Sequence[str] | None, grids: Sequence[str]) -> None:
    """Add ``--forms`` and ``--grids``, with which the methods are crossed."""
    own = "" if forms else " (default: each method's own)"
    p.add_argument(
        "--forms",
        nargs="+",
        default=list(forms) if forms else None,
        metavar="NAME",
        help=f"coordinates in which to solve: {', '.join(FLOWS)}{own}",
    )
    p.add_argument(
        "--grids",
        nargs="+",
        default=list(grids),
        metavar="NAME",
        help=f"grids: {', '.join(GRIDS)}, or a list of times such as 1,0.4,0.1,0.001",
    )


def add_budget(p: Parser, also: str = "") -> None:
    """Add ``--nfe`` and ``--steps``, ``--bill``, ``--afs`` and ``--denoise``."""
    budget = p.add_mutually_exclusive_group()
    typical = " ".join(map(str, BUDGETS))
    budget.add_argument(
        "--nfe",
        nargs="+",
        type=positive,
        help=f"budgets of score evaluations (default: {typical}{also})",
    )
    budget.add_argument("--steps", nargs="+", type=positive, help="numbers of steps, instead of budgets")
    p.add_argument(
        "--bill",
        choices=BILLS,
        default="nfe",
        help="whether a budget pays for score evaluations alone, or for derivatives and heads at their cost",
    )
    p.add_argument("--afs", choices=SWITCH, default="off", help="analytical first step (saves one NFE)")
    p.add_argument("--denoise", choices=SWITCH, default="off", help="final denoising (costs one NFE)")


def add_data(p: Parser, why: str) -> None:
    """Add ``--data``, data of a user; ``why`` says what becomes of them."""
    p.add_argument(
        "--data",
        metavar="PATH",
        help=f"{why}, instead of the problem's own: a folder, zip or npz file of images, "
        "cifar-10-python.tar.gz, or an npz file with an array of states; larger images are averaged to the "
        "size of the states where blocks of pixels fit",
    )


def add_decoder(p: Parser, what: str) -> None:
    """Add ``--decode``, a latent decoder of a user; ``what`` says what is decoded."""
    p.add_argument(
        "--decode",
        metavar="FUNCTION",
        help=f"a latent decoder, module:function or file.py:function, which is run: {what}; it is given "
        "float32 states (n, *shape) and returns images (n, C, H, W) in [-1, 1]",
    )


def named(kind: str, table: dict[str, V], name: str) -> V:
    """Look a name up in one of the suite's tables.

    Raises
    ------
    UsageError
        If it is not there; the message lists names that are like it.
    """
    if name not in table:
        near = get_close_matches(name, table, n=5) if len(table) > MANY else list(table)
        advice = f"choose from {', '.join(near)}" if near else "choose one that --help lists"
        raise UsageError(f"unknown {kind} {name!r}; {advice}")
    return table[name]
