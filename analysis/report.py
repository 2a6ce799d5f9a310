"""One page of all figures and tables in a folder, with the commands that made them; see ``show.page``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from analysis.command.experiment import Experiment, commands, experiments
from analysis.command.run import MODULE, start
from analysis.methods import plugins
from analysis.show.page import Heading, page
from problems.console import Parser, UsageError, attempt
from problems.files import atomically

RESULTS = Path("results")
"""Where experiments write if they are not told."""


def headings(out: Path = RESULTS, launcher: str = MODULE) -> list[Heading]:
    """Return what the page says of each experiment and of its variants, in the order of the page.

    Parameters
    ----------
    out
        The folder in which the commands write.
    launcher
        What is typed before the name of a command. Experiments of plugins have no module that Python could
        run, so a space stands before their names.
    """
    place = "" if out == RESULTS else f" --out {shlex.quote(str(out))}"
    modules = set(commands())

    def typed(experiment: Experiment, arguments: str = "") -> str:
        before = launcher if experiment.name in modules else f"{launcher[:-1]} "
        return experiment.typed(arguments, before) + place

    found = []
    for e in experiments():
        found.append(Heading(e.name, e.title, e.finding, e.paper, typed(e), e.published))
        found += [Heading(v.name, v.title, v.finding, v.paper, typed(e, v.arguments)) for v in e.variants]
    return found


def parser(launcher: str = MODULE) -> Parser:
    """Return the parser of this command."""
    name = f"{launcher}report"
    p = Parser(
        "analysis.report",
        "One page, report.html, of all figures and tables in a folder of results, to be opened from disk; or "
        "beside.html, of two folders side by side.",
        f"  {name}\n  {name} --out results/mixture\n  {name} --out results/mine --beside results/digits",
    )
    p.prog = name
    p.add_argument("--out", type=Path, default=RESULTS, help="folder of the results, and of the page")
    p.add_argument(
        "--beside", type=Path, metavar="OTHER", help="another folder of results, to stand beside it"
    )
    p.add_argument(
        "--plugin", nargs="+", type=Path, default=(), metavar="FILE", help="Python files that add experiments"
    )
    return p


def command(argv: Sequence[str] | None = None, launcher: str = MODULE) -> int:
    """Run the command; returns the exit code."""
    p = parser(launcher)
    args = p.parse_args(argv)
    out: Path = args.out

    def action() -> None:
        plugins.installed()
        for file in args.plugin:
            plugins.from_file(file)
        listed = headings(out, launcher)
        absent = [folder for folder in (out, args.beside) if folder is not None and not folder.is_dir()]
        if absent:
            raise UsageError(
                f"there is no folder {absent[0]}; run an experiment first, such as {listed[0].command}"
            )
        text = page(out, listed, args.beside)
        target = out / ("beside.html" if args.beside else "report.html")
        print(f"written: {atomically(target, partial(Path.write_text, data=text, encoding='utf-8'))}")

    return attempt(p, action, "the page is as it was")


if __name__ == "__main__":
    raise SystemExit(start("report"))
