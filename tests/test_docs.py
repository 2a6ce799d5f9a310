"""The pages are honest: their examples run, their commands parse, and what they name exists."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

from analysis.methods import FLOWS, GRIDS, METHODS
from analysis.plots import LABELS
from analysis.problems import PROBLEMS
from analysis.study import Store

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
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
        first = re.match(r"# (\w+/\w+\.py)\n", self.code)
        return first and first[1]


def blocks(page: str, text: str) -> list[Block]:
    fence = re.compile(r"^```python\n(.*?)^```\n(?:\n*^```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in fence.finditer(text)]


def without(text: str, languages: str = r"\w*") -> str:
    """Return a page without its blocks."""
    return re.sub(rf"^```({languages})\n.*?^```\n", "", text, flags=re.MULTILINE | re.DOTALL)


BLOCKS = [block for page, text in PAGES.items() for block in blocks(page, text)]
CREATED = {block.path: block for block in BLOCKS if block.path}


def execute(block: Block, folder: Path, *arguments: str, name: str = "__main__") -> dict[str, Any]:
    """Run a block as a script in a folder of its own; its additions to the tables are taken back."""
    script = folder / Path(block.path or "example.py").name
    script.write_text(block.code, "utf-8")
    with (
        pytest.MonkeyPatch.context() as patch,
        mock.patch.dict(METHODS),
        mock.patch.dict(PROBLEMS),
        mock.patch.dict(LABELS),
    ):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [str(script), *arguments])
        try:
            return runpy.run_path(str(script), run_name=name)
        except SystemExit as left:
            if left.code:
                raise AssertionError(f"exit code {left.code}") from left
            return {}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_examples_run_and_print_what_the_page_says(block, tmp_path, capsys):
    execute(block, tmp_path)
    printed = capsys.readouterr().out
    if block.output is not None:
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        assert doctest.OutputChecker().check_output(block.output, printed, flags), printed


def test_the_experiment_explains_itself_and_resumes(tmp_path, capsys, monkeypatch):
    block, small = CREATED["analysis/rho.py"], ["--samples", "20", "--solvers", "ddim", "--rho", "1", "2"]
    execute(block, tmp_path, "--help")
    assert "examples:\n  python -m analysis.rho\n" in capsys.readouterr().out
    execute(block, tmp_path, *small)
    for suffix in (".csv", ".png", ".pdf", ".json"):
        assert (tmp_path / "results" / f"rho{suffix}").stat().st_size > 0

    written: list[str] = []
    write = Store.write
    monkeypatch.setattr(Store, "write", lambda self, *cell: (written.append(cell[0]), write(self, *cell)))
    execute(block, tmp_path, *small, "3")
    assert len(written) == 1
    execute(block, tmp_path, *small, "3")
    assert len(written) == 1


def commands() -> list[tuple[str, str, list[str]]]:
    """Return page, module and arguments of every command line on the pages, typed with Python or tox."""
    line = re.compile(r"(python -m analysis\.|tox run [^\n`|]*-e )([a-z]\w*)((?:\\\n|[^\n`|])*)")
    found = []
    for page, text in PAGES.items():
        for match in line.finditer(without(text, "python|text")):
            words = shlex.split(match[3].replace("\\\n", " "), comments=True)
            if match[1].startswith("python"):
                found.append((page, match[2], words))
            elif words[:1] == ["--"] and match[2] != "bench":
                found.append((page, match[2], words[1:]))
    return found


def arguments_of(name: str, folder: Path) -> ArgumentParser:
    block = CREATED.get(f"analysis/{name}.py")
    if block is None:
        return importlib.import_module(f"analysis.{name}").arguments()
    return execute(block, folder, name=name)["arguments"]()


@pytest.mark.parametrize(
    ("page", "name", "words"), commands(), ids=lambda v: " ".join(v) if isinstance(v, list) else v
)
def test_commands_parse_and_their_names_exist(page, name, words, tmp_path, capsys):
    command = arguments_of(name, tmp_path)
    if words == ["--help"]:
        return
    args = command.parse_args(words)
    added = re.findall(r'^(?:METHODS|PROBLEMS)\["(.+?)"\] = ', PAGES[page], re.MULTILINE)
    problem = getattr(args, "problem", None)
    assert problem is None or problem.endswith(".safetensors") or {problem} <= {*PROBLEMS, *added}
    assert set(getattr(args, "solvers", None) or ()) <= {*METHODS, *added}
    assert set(getattr(args, "forms", None) or ()) <= set(FLOWS)
    assert {grid for grid in getattr(args, "grids", None) or () if "," not in grid} <= set(GRIDS)


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
    assert [f"{page}: {path}" for page, path in paths if not (ROOT / path).exists()] == []


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


def is_there(name: str, call: bool, ours: dict[str, Any], members: set[str]) -> bool:
    """Whether a name exists that begins with a package or a capital, or is called; others are not ours."""
    head, *rest = name.split(".")
    if head in PACKAGES:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            return False
        return True
    if rest:
        owner = ours.get(head)
        fields = {f for cls in getattr(owner, "__mro__", ()) for f in vars(cls).get("__annotations__", ())}
        return not head[0].isupper() or hasattr(owner, rest[0]) or rest[0] in fields
    return head in ours or head in members or not (call or head[0].isupper())


def test_names_in_backticks_exist():
    ours: dict[str, Any] = {}
    for package in PACKAGES:
        folder = ROOT / package
        for path in (folder, *folder.rglob("*.py")):
            ours |= vars(importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts)))
    members = {name for cls in ours.values() if inspect.isclass(cls) for name in dir(cls)}
    for block in BLOCKS:
        ours |= dict.fromkeys(re.findall(r"^class (\w+)", block.code, re.MULTILINE))
    missing = []
    for page, code in quoted():
        match = re.fullmatch(r"([A-Za-z_]\w*(?:\.\w+)*)(\(.*\))?", code)
        if match is None or code.split(".")[-1] in SUFFIXES:
            continue
        if not is_there(match[1], bool(match[2]), ours, members):
            missing.append(f"{page}: {code}")
    assert missing == []
