"""What every command has in common: its arguments, its manifest, its manners."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis import plots, tables
from analysis.methods import ALIASES, FAMILIES, FLOWS, FORMS, GRIDS, METHODS, Grid, Method, crossed, grid_of
from analysis.problems import DTYPES, PROBLEMS, has_head, latents, prepared
from analysis.reference import reference
from analysis.study import Store, package_version
from problems import Brownian, Noise, Problem
from problems.console import Parser, UsageError, attempt, device, positive
from problems.files import atomically
from solvers.adaptive_taylor import AdaptiveTaylor


def parser(name: str, description: str, examples: str) -> Parser:
    """Return a parser with the arguments that all experiments share."""
    p = Parser(f"analysis.{name}", description, examples)
    group = p.add_argument_group("common arguments")
    group.add_argument(
        "--problem", default="toy", help=f"what to solve: {', '.join(PROBLEMS)}, or the path of a checkpoint"
    )
    group.add_argument("--samples", type=positive, default=1000, help="number of trajectories")
    group.add_argument("--seed", type=int, default=0, help="seed of the initial states and of all noise")
    group.add_argument("--device", default="cpu", help="torch device on which the methods run")
    group.add_argument(
        "--dtype", choices=DTYPES, help="precision in which they run (default: float64; float32 for networks)"
    )
    group.add_argument(
        "--out", type=Path, default=Path("results"), help="folder of figures, tables, manifests and the store"
    )
    group.add_argument("--fresh", action="store_true", help="measure anew what the store already holds")
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


V = TypeVar("V")
MANY = 20
"""From a longer table than this a mistake is answered with the names that are like it."""


def named(kind: str, table: dict[str, V], name: str) -> V:
    """Look a name up in one of the suite's tables."""
    if name not in table:
        near = get_close_matches(name, table, n=5) if len(table) > MANY else list(table)
        advice = f"choose from {', '.join(near)}" if near else "choose one that --help lists"
        raise UsageError(f"unknown {kind} {name!r}; {advice}")
    return table[name]


@dataclass(frozen=True)
class Session:
    """What a run works with.

    Attributes
    ----------
    name
        The experiment.
    args
        The parsed arguments.
    problem
        The problem on the CPU: references and initial states are made from it. Exact ones are in float64.
    working
        The same problem in the dtype and on the device in which methods run.
    dtype
        The precision in which methods run.
    store
        The results store.
    """

    name: str
    args: argparse.Namespace
    problem: Problem
    working: Problem
    dtype: torch.dtype
    store: Store

    @property
    def config(self) -> dict[str, Any]:
        """The part of every cell's configuration that comes from the common arguments."""
        a = self.args
        return {
            "problem": a.problem,
            "samples": a.samples,
            "seed": a.seed,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": a.device,
        }

    def on(self, name: str) -> Session:
        """Return the same run on another problem, by its name or checkpoint."""
        args = argparse.Namespace(**{**vars(self.args), "problem": name})
        return replace(self, args=args, **_problem(args))

    def drawn(self, samples: int, seed: int) -> Session:
        """Return the same run on other trajectories."""
        return replace(self, args=argparse.Namespace(**{**vars(self.args), "samples": samples, "seed": seed}))

    def usual(self, solvers: Sequence[str]) -> Session:
        """Return the same run with these solvers, and GENIE where there is a head, if none were chosen."""
        if self.args.solvers is not None:
            return self
        named = [*solvers, *(["genie"] if has_head(self.problem) else [])]
        return replace(self, args=argparse.Namespace(**{**vars(self.args), "solvers": named}))

    def methods(self) -> dict[str, Method]:
        """Return the chosen methods, by their names in ``METHODS``, each tried on a rehearsal of the problem.

        Raises
        ------
        UsageError
            If there is no such method, or it cannot solve the problem.
        """
        names = dict.fromkeys(ALIASES.get(name, name) for name in self.args.solvers)
        methods = {name: named("solver", METHODS, name) for name in names}
        for name, method in methods.items():
            try:
                method.bill(self.problem, max(1, method.solver.reach))
            except ValueError as error:
                raise UsageError(f"{name} cannot solve {self.args.problem}: {error}") from error
        return methods

    def crossed(self) -> list[tuple[str, Method]]:
        """Return the chosen methods on the chosen forms and grids (see ``add_factors``), with their names."""
        flows = {name: FORMS[name] for name in FLOWS}
        names = self.args.forms
        forms = None if names is None else [named("form", flows, name) for name in names]
        return crossed(self.methods(), forms, [self.grid(name) for name in self.args.grids])

    def grid(self, name: str) -> Grid:
        """Return the grid of a name, or of a list of times."""
        if "," not in name:
            return named("grid", GRIDS, name)
        try:
            grid = grid_of(name)
            grid.times(grid.steps or 0, self.problem.schedule)
        except ValueError as error:
            raise UsageError(str(error)) from error
        return grid

    def cast(self, x: Tensor) -> Tensor:
        """Return states in the dtype and on the device in which methods run."""
        return x.to(device=self.args.device, dtype=self.dtype)

    def noise(self) -> Noise:
        """Return the noise of all trajectories: Brownian paths, the same for every method and grid."""
        return Brownian(self.args.seed + 1)

    @property
    def parts(self) -> tuple[object, ...]:
        """What every result of the run rests on, whatever the method; see ``study.Cell``."""
        maker = PROBLEMS.get(self.args.problem)
        source = "" if maker is None else inspect.getsource(maker)
        problem = self.problem
        return (source, problem, problem.schedule, *problem.parts, reference, AdaptiveTaylor)

    def latents(self) -> Tensor:
        """Return the initial states of all trajectories, float64, on the CPU."""
        return latents(self.problem, self.args.samples, self.args.seed)

    def path(self, suffix: str) -> Path:
        """Return the path of a file of this experiment in ``--out``."""
        return Path(self.args.out) / f"{self.name}{suffix}"

    def save(self, table: pd.DataFrame, figure: Figure) -> list[Path]:
        """Write the tidy table as CSV and the figure as PDF and PNG, and return their paths."""
        return [tables.to_csv(table, self.path(".csv")), *plots.save(figure, self.path(""))]


def main(
    name: str, p: Parser, experiment: Callable[[Session], Sequence[Path]], argv: Sequence[str] | None
) -> int:
    """Parse the arguments, run the experiment, write the tables that it showed and its manifest.

    An experiment that writes no files, for it only announced what it would do, gets neither.

    Returns
    -------
    The exit code: 0, 2 for a mistake in the arguments, 1 for a failure, 130 when interrupted.
    """
    args = p.parse_args(argv)

    def action() -> None:
        began = time.perf_counter()
        session = _session(name, args)
        try:
            with tables.collected() as shown:
                files = experiment(session)
        finally:
            session.store.close()
        if not files:
            return
        files = [*files, *(tables.write(session.path(""), shown) if shown else ())]
        words = [*p.prog.split(), *(sys.argv[1:] if argv is None else argv)]
        about = {
            "command": shlex.join(words),
            **_manifest(args, time.perf_counter() - began),
            "files": [Path(os.path.relpath(file, args.out)).as_posix() for file in files],
            "tables": [_recorded(table) for table in shown],
        }
        text = json.dumps(about, indent=2, default=str) + "\n"
        manifest = session.path(".json")
        atomically(manifest, lambda file: file.write_text(text, encoding="utf-8"))
        print("\nwritten: " + ", ".join(str(f) for f in (*files, manifest)))

    return attempt(p, action, "what was measured is kept, the same command resumes")


def _session(name: str, args: argparse.Namespace) -> Session:
    return Session(name, args, **_problem(args), store=Store(args.out / "store.sqlite"))


def _problem(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a session knows of its problem: ``problem``, ``working`` and ``dtype``."""
    place = device(args.device)
    try:
        return prepared(args.problem, args.dtype, place)._asdict()
    except ValueError as error:
        raise UsageError(str(error)) from error


def _recorded(table: tables.Table) -> dict[str, Any]:
    columns, rows = table.cells()
    return {"title": table.title, "columns": columns, "rows": rows, "notes": list(table.notes)}


def _manifest(args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    packages = ("torch", "torchdiffeq", "numpy", "scipy", "pandas", "matplotlib", "scikit-learn")
    return {
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "seed": args.seed,
        "version": package_version(),
        "revision": _revision(),
        "packages": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_seconds": round(seconds, 3),
    }


def _revision() -> str | None:
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return None
    return done.stdout.strip() or None
