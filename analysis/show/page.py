"""One page of all results: every figure and table on disk, with the command that made it and its provenance.

The page is made of manifests, ``NAME.json``, and of the figures that they list, in a folder of results and in
the folders within it. It is one file that needs no network, and the same results make the same page. What
manifests say is text, whatever it looks like: all of it is escaped.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from analysis.show.published import CAVEAT, Published

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

BIASED = "fid"
"""The experiment whose numbers depend on the number of samples."""

ENLARGED = 1.35
"""How much larger than on paper figures are shown."""

NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?%?( \[.*\]\S*)?|nan|inf|N/A|-|")
"""Cells that are numbers, perhaps with an interval, or stand for one."""


@dataclass(frozen=True)
class Heading:
    """What the page says of an experiment that its manifests do not.

    Attributes
    ----------
    name
        Name of its files.
    title
        Headline.
    finding
        What it shows, in a sentence.
    paper
        What of the paper it is after.
    command
        The line that makes it, with its files in the folder of the page.
    published
        Tables of the paper, each with the pattern of the titles beside which it belongs.
    """

    name: str
    title: str
    finding: str = "An experiment of your own."
    paper: str = ""
    command: str = ""
    published: tuple[tuple[str, Published], ...] = ()


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
    code
        What is to be typed, instead of cells.
    """

    title: str
    columns: list[tuple[str, bool]]
    rows: list[list[str]]
    notes: list[str]
    published: tuple[Grid, ...] = ()
    code: str = ""

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
    heading
        What was run.
    place, name
        The folder, seen from that of the results, and the name of the files.
    command
        What was typed.
    tables, pictures
        Its tables and figures.
    provenance
        What it was made by, with and on: names and values.
    samples
        How many samples it took, in words.
    caption
        Which model, data and features its figures and tables are of.
    """

    heading: Heading
    place: str
    name: str
    command: str
    tables: list[Grid]
    pictures: list[Picture]
    provenance: list[tuple[str, str]]
    samples: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A section of the page: a run, or two of one experiment side by side.

    Attributes
    ----------
    heading
        What was run.
    place
        The folder, seen from that of the results.
    sides
        The folders of results, each with its run; None where it has none.
    """

    heading: Heading
    place: str
    sides: list[tuple[str, Run | None]]


def read(path: Path, manifest: Mapping[str, Any], heading: Heading, out: Path) -> Run:
    """Read the figures that a manifest lists, and return the run.

    Parameters
    ----------
    path, manifest
        The manifest, its file and what that says.
    heading
        What was run.
    out
        The folder of all results; nothing outside is read.

    Raises
    ------
    OSError, KeyError, TypeError, ValueError
        If it is no manifest, not one of this version, or a figure is missing.
    """
    waiting = list(heading.published)
    tables = []
    for table in manifest["tables"]:
        beside = [(pattern, paper) for pattern, paper in waiting if re.search(pattern, str(table["title"]))]
        waiting = [pair for pair in waiting if pair not in beside]
        shown = [paper for _, paper in beside]
        grid = Grid.of(table["title"], table["columns"], table["rows"], table["notes"], shown)
        tables.append(replace(grid, code=str(table.get("code", ""))))
    images = [path.parent / str(name) for name in manifest["files"] if str(name).endswith(".png")]
    inside = [image for image in images if image.resolve().is_relative_to(out.resolve())]
    return Run(
        heading,
        path.parent.relative_to(out).as_posix(),
        path.stem,
        str(manifest["command"]),
        tables,
        [picture(image, path.parent) for image in inside],
        [(label, told(manifest[key])) for key, label in PROVENANCE.items() if key in manifest],
        told(dict(manifest.get("arguments", {})).get("samples")),
        caption(manifest),
    )


def caption(manifest: Mapping[str, Any]) -> str:
    """Return which model, data and features the figures and tables of a manifest are of."""
    arguments = dict(manifest.get("arguments", {}))
    about = dict(manifest.get("about", {})) or {"model": told(arguments.get("problem"))}
    words = [f"{key} {told(value)}" for key, value in about.items()]
    words += [f"{told(arguments[key])} {key}" for key in ("samples",) if key in arguments]
    return ", ".join(words)


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


def runs(out: Path, headings: Sequence[Heading]) -> list[Run | Path]:
    """Return the runs in a folder and those within it; where one cannot be read, the path of its manifest.

    Experiments with a heading come first, in the order of these, then others, by their names. A heading is
    that of the files' name, such as ``gte-encode``, or else that of the experiment which the manifest names.
    """
    known = {heading.name: (i, heading) for i, heading in enumerate(headings)}
    visible = [p for p in out.rglob("*.json") if not any(part[0] == "." for part in p.relative_to(out).parts)]
    found: list[tuple[int, Run | Path]] = []
    for path in sorted(visible, key=lambda p: (len(p.parts), p)):
        manifest = _manifest(path)
        own = len(known), Heading(path.stem, path.stem)
        place, heading = known.get(path.stem) or known.get(str(manifest.get("experiment"))) or own
        try:
            found.append((place, read(path, manifest, heading, out)))
        except (OSError, KeyError, TypeError, ValueError):
            if path.stem in known or "experiment" in manifest:  # other JSON files are not ours
                found.append((place, path))
    return [what for _, what in sorted(found, key=lambda pair: pair[0])]


def _manifest(path: Path) -> dict[str, Any]:
    """Return what a file says; nothing if it is no JSON object."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        return {}


def sections(found: Mapping[str, Sequence[Run]]) -> list[Section]:
    """Return the sections of the runs in folders of results; those of the first folder come first."""
    sides = {
        folder: {(run.heading, run.place, run.name): run for run in there} for folder, there in found.items()
    }
    keys = dict.fromkeys(key for there in sides.values() for key in there)
    return [
        Section(key[0], key[1], [(folder, there.get(key)) for folder, there in sides.items()]) for key in keys
    ]


def page(out: Path, headings: Sequence[Heading], beside: Path | None = None) -> str:
    """Return the page of the results in a folder, or in two side by side, as HTML.

    Parameters
    ----------
    out
        The folder.
    headings
        The experiments, in the order of the page; those without results are listed as missing.
    beside
        Another folder, whose results stand on the right of those of the first.
    """
    folders = {str(folder): runs(folder, headings) for folder in (out, *([beside] if beside else []))}
    there = {name: [run for run in found if isinstance(run, Run)] for name, found in folders.items()}
    order = {heading.name: i for i, heading in enumerate(headings)}
    shown = sections(there)
    if beside:
        shown.sort(key=lambda s: (order.get(s.heading.name, len(order)), s.heading.name, s.place))
    have = {section.heading.name for section in shown}
    sizes = {run.samples for found in there.values() for run in found if run.heading.name == BIASED}
    broken = [path for found in folders.values() for path in found if isinstance(path, Path)]
    text = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(text)
    return template.render(
        sections=shown,
        folders=list(folders) if beside else [],
        broken=[path.as_posix() if beside else path.relative_to(out).as_posix() for path in broken],
        missing=[heading for heading in headings if heading.name not in have],
        caveat=CAVEAT,
        biased=BIASED,
        uneven=sorted(sizes, key=lambda n: (len(n), n)) if len(sizes) > 1 else [],
    )
