"""The pages are honest: their examples run, their commands parse, and what they name exists."""

from __future__ import annotations

import builtins
import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
import shlex
import sys
import tomllib
from argparse import ArgumentParser
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

from analysis.__main__ import script
from analysis.command.arguments import parser
from analysis.command.experiment import PLUGGED
from analysis.measure.problems import PROBLEMS
from analysis.methods import FLOWS, GRIDS, METHODS, plugins

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
PAGE = "docs/extending.md"
PACKAGES = ("solvers", "problems", "analysis")
FOLDERS = (*PACKAGES, "benchmarks", "tests", "docs")
SUFFIXES = ("py", "md", "toml", "ini", "txt", "cff", "mplstyle")


class Block(NamedTuple):
    """A block of Python on a page, and the output that the page promises."""

    page: str
    line: int
    code: str
    output: str | None

    @property
    def path(self) -> str | None:
        """The file that the block says it is, in its first line."""
        first = re.match(r"# ((?:\w+/)?\w+\.py)\n", self.code)
        return first and first[1]


def blocks(page: str, text: str) -> list[Block]:
    fence = re.compile(r"^```python\n(.*?)^```\n(?:\n*^```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in fence.finditer(text)]


def without(text: str, languages: str = r"\w*") -> str:
    """Return a page without its blocks."""
    return re.sub(rf"^```({languages})\n.*?^```\n", "", text, flags=re.MULTILINE | re.DOTALL)


BLOCKS = [block for page, text in PAGES.items() for block in blocks(page, text)]
CREATED = {block.path: block for block in BLOCKS if block.path}


@pytest.fixture(autouse=True)
def _tables():
    """What a page adds to the tables is taken back."""
    with (
        mock.patch.dict(METHODS),
        mock.patch.dict(PROBLEMS),
        mock.patch.dict(PLUGGED),
        mock.patch.dict(plugins._FILES),
    ):
        yield


def execute(block: Block, folder: Path, name: str = "__main__") -> dict[str, Any]:
    """Run a block as a script, or as a module of another name, in a folder of its own."""
    file = folder / Path(block.path or "example.py").name
    file.write_text(block.code, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [str(file)])
        return runpy.run_path(str(file), run_name=name)


def agrees(promised: str, printed: str) -> bool:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(promised, printed, flags)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_examples_run_and_print_what_the_page_says(block, tmp_path, capsys):
    experiment = (block.path or "").startswith("analysis/")  # as a script it would start the module
    execute(block, tmp_path, name="example" if experiment else "__main__")
    printed = capsys.readouterr().out
    assert block.output is None or agrees(block.output, printed), printed


def test_the_experiment_of_the_page_runs_explains_itself_and_resumes(tmp_path, monkeypatch, capsys, written):
    monkeypatch.chdir(tmp_path)
    Path("rho.py").write_text(CREATED["analysis/rho.py"].code, "utf-8")
    fence = re.search(
        r"^```sh\ngenie-bench (rho [^\n]*)\n```\n\n```text\n(.*?)^```", PAGES[PAGE], re.M | re.S
    )
    line, promised = fence[1].split(), fence[2]
    assert script(line) == 0
    printed = capsys.readouterr().out
    assert agrees(promised, printed), printed
    assert len(written) == 6
    assert script([*line, "4"]) == 0
    assert len(written) == 8
    assert script(line) == 0
    assert len(written) == 8
    with pytest.raises(SystemExit, match="2"):
        script([*line, "-1"])
    assert "an exponent must be positive; type --rho 1 2 3" in capsys.readouterr().err


def commands() -> list[tuple[str, str, list[str]]]:
    """Return page, name and arguments of every command on the pages, typed in any of three ways."""
    begin = r"(python -m analysis\.|genie-bench |tox run [^\n`|]*-e )"
    line = re.compile(begin + r"([a-z]\w*)((?:\\\n|[^\n`|])*)")
    found = []
    for page, text in PAGES.items():
        for match in line.finditer(without(text, "python|text")):
            words = shlex.split(match[3].replace("\\\n", " "), comments=True)
            if not match[1].startswith("tox"):
                found.append((page, match[2], words))
            elif words[:1] == ["--"] and match[2] != "bench":
                found.append((page, match[2], words[1:]))
    return found


@lru_cache
def added() -> dict[str, set[str]]:
    """Return the names that pages and the example package add, by group."""
    about = tomllib.loads((ROOT / "docs" / "example" / "pyproject.toml").read_text("utf-8"))
    groups = about["project"]["entry-points"]
    names = {group.removeprefix(plugins.PREFIX): set(entries) for group, entries in groups.items()}
    for block in BLOCKS:
        for group, entries in re.findall(r"^    \"(\w+)\": \{(.*)\},$", block.code, re.MULTILINE):
            names[group] |= set(re.findall(r"\"(\w+)\":", entries))
    return names


def shown(problem: str) -> bool:
    """Return whether a problem is a checkpoint, or a function or folder that a block of a page makes."""
    file, colon, function = problem.partition(":")
    if colon:
        return file in CREATED and f"def {function}()" in CREATED[file].code
    return problem.endswith(".safetensors") or any(f'save_pretrained("{problem}")' in b.code for b in BLOCKS)


def parser_of(name: str, folder: Path) -> ArgumentParser:
    if f"analysis/{name}.py" in CREATED:
        return parser(execute(CREATED[f"analysis/{name}.py"], folder, name=name)["EXPERIMENT"])
    if name in added()["experiments"]:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(ROOT / "docs" / "example"))
            return parser(importlib.import_module("genie_bench_example.experiment").RADIAL)
    module = importlib.import_module(f"analysis.{name}")
    return parser(module.EXPERIMENT) if hasattr(module, "EXPERIMENT") else module.parser()


@pytest.mark.parametrize(
    ("page", "name", "words"), commands(), ids=lambda v: " ".join(v) if isinstance(v, list) else v
)
def test_commands_parse_and_their_names_exist(page, name, words, tmp_path, capsys):
    command = parser_of(name, tmp_path)
    if words == ["--help"]:
        return
    args, new = command.parse_args(words), added()
    problem = getattr(args, "problem", None)
    assert problem is None or shown(problem) or problem in {*PROBLEMS, *new["problems"]}
    assert set(getattr(args, "solvers", None) or ()) <= {*METHODS, *new["methods"]}
    assert set(getattr(args, "forms", None) or ()) <= {*FLOWS, *new["forms"]}
    grids = {grid for grid in getattr(args, "grids", None) or () if "," not in grid}
    assert grids <= {*GRIDS, *new["grids"]}


def test_jobs_exist():
    sections = re.findall(r"^\[testenv:\{?([\w,]+)\}?\]", (ROOT / "tox.ini").read_text("utf-8"), re.MULTILINE)
    jobs = {job for section in sections for job in section.split(",")}
    named = {job for text in PAGES.values() for job in re.findall(r"tox run [^\n`|]*-e ([a-z]\w*)", text)}
    assert named
    assert named <= jobs


def quoted() -> Iterator[tuple[str, str]]:
    """Yield page and text of everything in backticks, code blocks left out."""
    for page, text in PAGES.items():
        yield from dict.fromkeys((page, code) for code in re.findall(r"`([^`\n]+)`", without(text)))


def test_files_in_backticks_exist():
    ours = re.compile(rf"({'|'.join(FOLDERS)})/[\w./-]*|[\w.-]+\.({'|'.join(SUFFIXES)})")
    paths = [(page, code) for page, code in quoted() if ours.fullmatch(code) and code not in CREATED]
    assert paths
    places = (ROOT, ROOT / "analysis")
    missing = [
        f"{page}: {path}" for page, path in paths if not any((place / path).exists() for place in places)
    ]
    assert missing == []


def test_links_lead_somewhere():
    links = [
        (page, link.split("#")[0])
        for page, text in PAGES.items()
        for link in re.findall(r"\]\(([^)\s]+)\)", text)
        if "://" not in link
    ]
    assert links
    assert [
        f"{page}: {link}" for page, link in links if not (ROOT / page).parent.joinpath(link).exists()
    ] == []


def is_there(name: str, call: bool, ours: dict[str, list[Any]], members: set[str]) -> bool:
    """Whether a name exists that begins with a package or a capital, or is called; others are not ours."""
    head, *rest = name.split(".")
    if head in PACKAGES:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            return False
        return True
    if rest:
        return not head[0].isupper() or any(rest[0] in attributes(owner) for owner in ours.get(head, ()))
    known = head in ours or head in members or hasattr(builtins, head)
    return known or not (call or head[0].isupper())


def attributes(owner: Any) -> set[str]:
    fields = (vars(cls).get("__annotations__", {}) for cls in getattr(owner, "__mro__", ()))
    return {*dir(owner), *(name for part in fields for name in part)}


def test_names_in_backticks_exist():
    ours: dict[str, list[Any]] = {}
    for package in PACKAGES:
        folder = ROOT / package
        for path in (folder, *folder.rglob("*.py")):
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            for name, value in vars(module).items():
                ours.setdefault(name, []).append(value)
    members = {
        name for values in ours.values() for cls in values if inspect.isclass(cls) for name in dir(cls)
    }
    for block in BLOCKS:
        for name in re.findall(r"^(?:class )?(\w+)(?: = |\(|:)", block.code, re.MULTILINE):
            ours.setdefault(name, [])
    missing = []
    for page, code in quoted():
        match = re.fullmatch(r"([A-Za-z_]\w*(?:\.\w+)*)(\(.*\))?", code)
        if match is None or code.split(".")[-1] in SUFFIXES:
            continue
        if not is_there(match[1], bool(match[2]), ours, members):
            missing.append(f"{page}: {code}")
    assert missing == []
