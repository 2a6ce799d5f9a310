"""What happens when an experiment is typed: plugins, arguments, measurement, files, manifest, exit code."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from analysis.command.arguments import parser
from analysis.command.experiment import Experiment, Outcome
from analysis.command.session import Session
from analysis.measure.features import DECODED, classifier
from analysis.methods import plugins
from analysis.show import plots, tables
from analysis.study.cells import Result, Study
from analysis.study.libraries import package_version
from analysis.study.pools import NoPoolError, pool
from analysis.study.progress import preparing
from analysis.study.store import Store
from problems.console import Parser, UsageError, attempt
from problems.files import atomically, sweep
from problems.labelled import Labelled

MODULE = "python -m analysis."
"""What is typed before the name of a command, unless it is the console script."""


def start(name: str, argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run a command by its name, in the module of that name, and return the exit code.

    A module that is run as a script is called ``__main__``. Functions of such a module have other keys than
    the same ones imported, and cannot be sent to workers. So a script starts its own module by its name.
    """
    command = importlib.import_module(f"analysis.{name}").command
    return int(command(argv, launcher))


def parsed(
    experiment: Experiment, argv: Sequence[str] | None, launcher: str
) -> tuple[Parser, argparse.Namespace]:
    """Return the parser of an experiment, with what plugins add, and the arguments."""
    words = sys.argv[1:] if argv is None else list(argv)
    plugins.installed()
    bare = Parser(f"analysis.{experiment.name}", "", "")
    bare.prog = experiment.typed(launcher=launcher)
    try:
        for file in plugins.files_in(words):
            plugins.from_file(file)
    except UsageError as error:
        bare.error(str(error))
    p = parser(experiment, launcher)
    return p, p.parse_args(words)


def main(experiment: Experiment, argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Parse the arguments, run the experiment, write its tables, figures and manifest.

    An experiment that only announced what it would do writes nothing.

    Returns
    -------
    The exit code: 0; 1 for a failure of the whole or of some rows, which are then listed; 2 for a mistake in
    the arguments; 130 when interrupted; or the experiment's own.
    """
    p, args = parsed(experiment, argv, launcher)
    code, silent = 0, args.quiet or args.json

    def action() -> None:
        nonlocal code
        began = time.perf_counter()
        store = Store(args.out / "store.sqlite")
        sweep(args.out)
        try:
            with pool(args.workers, args.scheduler) as who, tables.collected() as shown:
                with preparing(f"{experiment.name}: preparing {args.problem}", silent):
                    session = Session.of(experiment, args, Study(store, who, args.fresh, silent))
                with redirect_stdout(io.StringIO()) if silent else nullcontext():
                    outcome = experiment.measure(session)
                    if outcome is not None:
                        experiment.report(session, outcome)
                with redirect_stdout(sys.stderr) if silent else nullcontext():
                    report_failures(session.study.failures)
        except NoPoolError as error:
            raise UsageError(str(error)) from error
        finally:
            store.close()
        if outcome is None:
            if args.json:
                print(json.dumps({"experiment": experiment.name, "tables": [_recorded(t) for t in shown]}))
            return
        code = 1 if session.study.failures else outcome.code
        name = outcome.name or experiment.name
        files = [
            *(
                tables.to_csv(part, session.path(f"{suffix}.csv", name))
                for suffix, part in outcome.further.items()
            ),
            tables.to_csv(outcome.table, session.path(".csv", name)),
            *drawn(experiment.draw(session, outcome), session.path("", name)),
            *(tables.write(session.path("", name), shown) if shown else ()),
        ]
        words = [*p.prog.split(), *(sys.argv[1:] if argv is None else argv)]
        about = {
            "experiment": experiment.name,
            "command": shlex.join(words),
            "about": subject(session, outcome),
            **_manifest(args, time.perf_counter() - began),
            "files": [Path(os.path.relpath(file, args.out)).as_posix() for file in files],
            "tables": [_recorded(table) for table in shown],
        }
        text = json.dumps(about, indent=2, default=str) + "\n"
        manifest = session.path(".json", name)
        atomically(manifest, lambda file: file.write_text(text, encoding="utf-8"))
        if args.json:
            print(text, end="")
        elif not args.quiet:
            print("\nwritten: " + ", ".join(str(f) for f in (*files, manifest)))

    return attempt(p, action, "what was measured is kept, the same command resumes") or code


def subject(session: Session, outcome: Outcome) -> dict[str, str]:
    """Return in words which model was measured, with which data it was compared, and in which features."""
    problem, table = session.problem, outcome.table
    own = "of the model" if not isinstance(problem, Labelled) or problem.has_data else "none"
    seen, decode = ["x"], vars(session.args).get("decode")
    if "feature" in table:
        seen = list(dict.fromkeys(table["feature"]))
    elif "feature_error" in table:
        look = classifier(problem)
        seen += [DECODED] if decode else [look.name] if look else []
    given = vars(session.args).get("data") or vars(session.args).get("reference") or own
    kind = type(problem).__name__
    model = f"{session.case.name} ({kind}{f', decoded by {decode}' if decode else ''})"
    return {"model": model, "data": str(given), "features": ", ".join(seen)}


def drawn(figures: Figure | Mapping[str, Figure], path: Path) -> list[Path]:
    """Write the figures of an experiment as PDF and PNG, and return their paths.

    A suffix with a slash, such as ``-sheets/ddim``, is a file in a folder of its own.
    """
    by_suffix = {"": figures} if isinstance(figures, Figure) else figures
    return [
        file
        for suffix, figure in by_suffix.items()
        for file in plots.save(figure, path.parent / f"{path.name}{suffix}")
    ]


def report_failures(failures: Sequence[Result]) -> None:
    """Tell what could not be measured, and why."""
    if not failures:
        return
    common = {
        name
        for name, value in failures[0].config.items()
        if len(failures) > 1 and all(result.config.get(name) == value for result in failures)
    }
    lines = [
        {
            **{name: str(value) for name, value in result.config.items() if name not in common},
            "because": result.failure,
        }
        for result in failures
    ]
    tables.show("Could not be measured, and is left out", pd.DataFrame(lines).fillna("-"))


def _recorded(table: tables.Table) -> dict[str, Any]:
    columns, rows = table.cells()
    about = {"title": table.title, "columns": columns, "rows": rows, "notes": list(table.notes)}
    return about | ({"code": table.code} if table.code else {})


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
