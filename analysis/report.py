"""One page of all results: every figure and table on disk, with the command that made it and its provenance.

The page is made of manifests, ``NAME.json``, and of the figures that they list, in a folder of results and in
the folders within it. It is one file that needs no network, and the same results make the same page. What
manifests say is text, whatever it looks like: all of it is escaped.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from analysis.published import ABLATION, BEST, CAVEAT, STRIDING, Published
from problems.console import Parser, UsageError, attempt
from problems.files import atomically


@dataclass(frozen=True)
class Experiment:
    """An experiment as the page presents it.

    Attributes
    ----------
    name
        Name of its files.
    title
        Headline.
    sentence
        What it shows.
    after
        What of the paper it is after.
    arguments
        What is typed after ``python -m analysis.`` to have it.
    published
        Tables of the paper, each with the pattern of the titles beside which it belongs.
    """

    name: str
    title: str
    sentence: str
    after: str = ""
    arguments: str = ""
    published: tuple[tuple[str, Published], ...] = ()

    def command(self, out: Path) -> str:
        """Return the command that makes it, with its files in ``out``."""
        place = "" if out == Path("results") else f" --out {shlex.quote(str(out))}"
        return f"python -m analysis.{self.arguments or self.name}{place}"


EXPERIMENTS = (
    Experiment(
        "lte",
        "Local truncation error",
        "How far a single step leads away from the exact solution, against its size, with an exact past.",
        "Figs. 3 (top), 10 and 15",
    ),
    Experiment(
        "derivatives",
        "Finite differences",
        "How far finite differences, which multistep methods use, are from the exact derivative dε/dγ.",
        "Fig. 3 (bottom)",
    ),
    Experiment(
        "orders",
        "Certificate of orders",
        "Whether every solver, on every form and grid, has the order of convergence that it declares.",
    ),
    Experiment(
        "work_precision",
        "Work and precision",
        "Error at the end against evaluations and against seconds; what nothing beats is the Pareto front.",
    ),
    Experiment(
        "recommend",
        "Which method to take",
        "A race of all methods, forms and grids under a budget, decided on latents that did not choose.",
    ),
    Experiment(
        "schedule",
        "Schedules",
        "The best times for a solver and a budget, against quadratic ones, and on another problem.",
        "Tab. 7",
    ),
    Experiment(
        "weak",
        "Weak errors",
        "How far the distribution of samples is from the exact one, for stochastic methods and others.",
    ),
    Experiment(
        "gte",
        "Global error",
        "How far trajectories end from the exact ones, against the evaluations or steps that they took.",
        "Fig. 14",
    ),
    Experiment(
        "gte-encode",
        "Encoding and decoding",
        "How far data end from themselves that are sent to t = 1 and back, at the same cost each way.",
        "Fig. 8",
        "gte --encode",
    ),
    Experiment(
        "samples",
        "Samples",
        "What samples look like after a few steps, and how many are where no data are or in a wrong mode.",
        "Figs. 2 and 12",
    ),
    Experiment(
        "fid",
        "Quality of samples",
        "How far samples are from data, beside the accurate solution's distance, against evaluations.",
        "Fig. 5; Tables 1, 6, 7 and 8",
        published=((r"best of all variants", BEST), (r"(?<!variants) \(95%\)", STRIDING)),
    ),
    Experiment(
        "heads",
        "Distilled heads",
        "What distilled heads make of the steps of TTM-2, beside the exact derivative and beside none.",
        "Table 2",
        published=((r"by the derivative that is used", ABLATION),),
    ),
    Experiment(
        "overhead",
        "Cost of derivatives",
        "What a distilled head and exact derivatives cost, in evaluations of the network.",
        "Table 5; App. C.2.5",
    ),
    Experiment(
        "budget",
        "Error budget",
        "Which part of a learned sampler's error is the solver's, the derivative's and the score network's.",
        "Eqs. 9 and 14",
    ),
    Experiment(
        "smoothness",
        "Smoothness in time",
        "What Taylor methods of higher order gain or lose where a network is told the time smoothly or fast.",
        "Fig. 11",
    ),
    Experiment(
        "guidance",
        "Classifier-free guidance",
        "What the scale of guidance does to the errors and orders of solvers, with either derivative.",
        "Figs. 6 and 7; Eqs. 16 and 81",
    ),
    Experiment(
        "interpolate",
        "Interpolation",
        "How well images and those on the path between two survive encoding, mixing and decoding.",
        "Figs. 8 and 13; Eq. 82",
    ),
)
"""All experiments, in the order of the page."""

PROVENANCE = {
    "version": "version",
    "revision": "git revision",
    "finished": "finished",
    "wall_seconds": "wall seconds",
    "seed": "seed",
    "python": "Python",
    "packages": "packages",
    "machine": "machine",
    "arguments": "arguments",
    "files": "files",
}
"""Entries of a manifest that are shown, and what they are called."""

ENLARGED = 1.35
"""How much larger than on paper figures are shown."""

NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?%?( \[.*\]\S*)?|nan|inf|N/A|-|")
"""Cells that are numbers, perhaps with an interval, or stand for one."""


@dataclass(frozen=True)
class Grid:
    """A table of the page.

    Attributes
    ----------
    title
        What it shows.
    columns
        Names of the columns, each with whether it holds numbers.
    rows
        Cells.
    notes
        Lines below it.
    published
        Tables of the paper that belong beside it.
    """

    title: str
    columns: list[tuple[str, bool]]
    rows: list[list[str]]
    notes: list[str]
    published: tuple[Grid, ...] = ()

    @classmethod
    def of(
        cls, title: Any, columns: Any, rows: Any, notes: Any = (), published: Sequence[Published] = ()
    ) -> Grid:
        """Return a table with cells that may be anything, and what belongs beside it."""
        cells = [[str(cell) for _, cell in zip(columns, row, strict=True)] for row in rows]
        numbers = [all(NUMBER.fullmatch(row[i]) for row in cells) for i in range(len(columns))]
        beside = (cls.of(f"{p.source}: {p.what}", p.columns, p.rows, p.notes) for p in published)
        named = [(str(name), number) for name, number in zip(columns, numbers, strict=True)]
        return cls(str(title), named, cells, [str(note) for note in notes], tuple(beside))


@dataclass(frozen=True)
class Picture:
    """A figure, with the bytes in the page.

    Attributes
    ----------
    name
        Name of its file.
    source
        Its bytes, as a data URI.
    width, height
        Its size on the page, in pixels of CSS.
    """

    name: str
    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Run:
    """A run of an experiment, as its manifest tells it.

    Attributes
    ----------
    experiment
        What was run.
    place
        The folder, seen from that of the results.
    command
        What was typed.
    tables, pictures
        Its tables and figures.
    provenance
        What it was made by, with and on: names and values.
    samples
        How many samples it took, in words.
    """

    experiment: Experiment
    place: str
    command: str
    tables: list[Grid]
    pictures: list[Picture]
    provenance: list[tuple[str, str]]
    samples: str


def read(path: Path, out: Path) -> Run:
    """Read the manifest of a run, and the figures that it lists.

    Parameters
    ----------
    path
        The manifest.
    out
        The folder of all results; nothing outside is read.

    Raises
    ------
    OSError, KeyError, TypeError, ValueError
        If it is no manifest, or not one of this version.
    """
    known = {e.name: e for e in EXPERIMENTS}
    experiment = known.get(path.stem) or Experiment(path.stem, path.stem, "An experiment of your own.")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    waiting = list(experiment.published)
    tables = []
    for table in manifest["tables"]:
        beside = [(pattern, paper) for pattern, paper in waiting if re.search(pattern, str(table["title"]))]
        waiting = [pair for pair in waiting if pair not in beside]
        shown = [paper for _, paper in beside]
        tables.append(Grid.of(table["title"], table["columns"], table["rows"], table["notes"], shown))
    images = [path.parent / str(name) for name in manifest["files"] if str(name).endswith(".png")]
    inside = [image for image in images if image.resolve().is_relative_to(out.resolve())]
    return Run(
        experiment,
        path.parent.relative_to(out).as_posix(),
        str(manifest["command"]),
        tables,
        [picture(image, path.parent) for image in inside],
        [(label, told(manifest[key])) for key, label in PROVENANCE.items() if key in manifest],
        told(dict(manifest.get("arguments", {})).get("samples")),
    )


def picture(path: Path, folder: Path) -> Picture:
    """Read a figure; it is named as seen from ``folder``."""
    with Image.open(path, formats=["PNG"]) as image:
        pixels, dpi = image.size, float(image.info.get("dpi", (96.0,))[0])
    source = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
    width, height = (round(ENLARGED * 96.0 * n / dpi) for n in pixels)
    return Picture(path.relative_to(folder).as_posix(), source, width, height)


def told(value: Any) -> str:
    """Return an entry of a manifest in words."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {told(v)}" for key, v in value.items())
    if isinstance(value, list):
        return " ".join(told(v) for v in value)
    return "none" if value is None else str(value)


def runs(out: Path) -> Iterator[Run | Path]:
    """Yield the runs in a folder and those within it; where one cannot be read, the path of its manifest.

    Experiments of the suite come first, in their order, then others, by their names.
    """
    order = [e.name for e in EXPERIMENTS]
    visible = [p for p in out.rglob("*.json") if not any(part[0] == "." for part in p.relative_to(out).parts)]
    paths = sorted(visible, key=lambda p: (len(p.parts), p))
    places = {path: order.index(path.stem) if path.stem in order else len(order) for path in paths}
    for path in sorted(paths, key=lambda p: places[p]):
        try:
            yield read(path, out)
        except (OSError, KeyError, TypeError, ValueError):
            if path.stem in order:
                yield path


def page(out: Path) -> str:
    """Return the page of the results in a folder."""
    found = list(runs(out))
    there = [run for run in found if isinstance(run, Run)]
    have = {run.experiment.name for run in there}
    sizes = {run.samples for run in there if run.experiment.name == "fid"}
    text = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(text)
    return template.render(
        runs=there,
        broken=[path.relative_to(out).as_posix() for path in found if isinstance(path, Path)],
        missing=[(e, e.command(out)) for e in EXPERIMENTS if e.name not in have],
        caveat=CAVEAT,
        uneven=sorted(sizes, key=lambda n: (len(n), n)) if len(sizes) > 1 else [],
    )


def arguments() -> Parser:
    """Return the parser of this command."""
    p = Parser(
        "analysis.report",
        "One page, report.html, of all figures and tables in a folder of results, to be opened from disk.",
        "  python -m analysis.report\n  python -m analysis.report --out results/mixture",
    )
    p.add_argument("--out", type=Path, default=Path("results"), help="folder of the results, and of the page")
    return p


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = arguments()
    out: Path = p.parse_args(argv).out

    def action() -> None:
        if not out.is_dir():
            first = EXPERIMENTS[0].command(out)
            raise UsageError(f"there is no folder {out}; run an experiment first, such as {first}")
        text = page(out)
        target = out / "report.html"
        print(f"written: {atomically(target, partial(Path.write_text, data=text, encoding='utf-8'))}")

    return attempt(p, action, "the page is as it was")


if __name__ == "__main__":
    raise SystemExit(command())
