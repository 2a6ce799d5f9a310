"""The command of the page: a run as it is typed, its numbers those of the CSV file, and all experiments."""

import importlib
import json
import math
import pkgutil
import re
import shlex
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import analysis
from analysis import lte, report
from analysis.command.arguments import parser
from analysis.command.experiment import PLUGGED, experiments
from analysis.show import plots
from tests.html import Page

LTE = ["--t", "0.3", "--samples", "20", "--points", "3", "--solvers", "ddim", "ttm2"]


def blank(figure, path):
    """Write files without drawing."""
    files = [path.with_suffix(".pdf"), path.with_suffix(".png")]
    for file in files:
        Image.new("RGB", (4, 2)).save(file)
    return files


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("all") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", blank)
        assert lte.command([*LTE, "--out", str(folder)]) == 0
    assert report.command(["--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def page(results):
    return Page((results / "report.html").read_text("utf-8"))


@pytest.fixture(scope="module")
def manifest(results):
    return json.loads((results / "lte.json").read_text("utf-8"))


def test_a_run_stands_with_its_command_its_figure_and_its_provenance(results, page, manifest):
    assert page.texts.count(shlex.join(["python", "-m", "analysis.lte", *LTE, "--out", str(results)])) == 1
    assert [tag for tag, _ in page.tags].count("img") == 1
    for said in (manifest["revision"] or "none", manifest["version"], manifest["finished"]):
        assert said in page.texts
    assert f"torch {manifest['packages']['torch']}" in page.text
    assert f"processor {manifest['machine']['processor']}" in page.text
    assert str(manifest["wall_seconds"]) in page.texts


def test_numbers_are_those_of_the_csv(results, page):
    data = pd.read_csv(results / "lte.csv")
    shown = page.table("slope (95%)").set_index("solver")
    for solver, rows in data.groupby("solver"):
        near = rows.loc[(np.log(rows["dt"]) - math.log(0.05 * 0.3)).abs().idxmin()]
        assert shown.loc[solver, "median"] == f"{near['median']:.2e}"
        assert shown.loc[solver, "mean error (95%)"].startswith(f"{near['error']:.2e}".replace("e-0", "e-"))


def test_all_that_was_shown_is_in_the_manifest_and_in_markdown(results, page, manifest):
    text = (results / "lte.md").read_text("utf-8")
    for table in manifest["tables"]:
        assert f"## {table['title']}\n" in text
        assert table["title"] in page.texts
    assert manifest["experiment"] == "lte"
    assert set(manifest["files"]) == {f"lte.{suffix}" for suffix in ("csv", "pdf", "png", "md", "tex")}


def test_what_is_missing_is_listed_with_a_command_that_parses(results, page):
    listed = page.table("What it shows", "Command")["Command"]
    known = {e.name: e for e in experiments()}
    assert len(listed) == sum(1 + len(e.variants) for e in known.values()) - 1
    for line in listed:
        name, *arguments = re.fullmatch(r"python -m analysis\.(.*)", line)[1].split()
        assert parser(known[name]).parse_args(arguments).out == results


def test_every_command_is_an_experiment_with_a_place_of_its_own():
    names = [m.name for m in pkgutil.iter_modules(analysis.__path__) if not m.ispkg]
    assert {*names} - {"__main__", "api", "report", "pages"} == {e.name for e in experiments()}
    assert len({e.place for e in experiments()}) == len(experiments())


def test_every_experiment_has_a_headline_and_a_sentence():
    for heading in report.headings():
        assert not heading.title.endswith(".")
        assert heading.title[0].isupper()
        assert heading.finding.endswith(".")


def test_experiments_of_plugins_are_typed_after_a_space(monkeypatch):
    other = replace(experiments()[0], name="other", place=99.0)
    monkeypatch.setitem(PLUGGED, "other", other)
    assert report.headings()[-1].command == "python -m analysis other"
    assert [h.command for h in report.headings(launcher="genie-bench ")][:: len(report.headings()) - 1] == [
        "genie-bench lte",
        "genie-bench other",
    ]


def test_no_folder_gets_one_sentence_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        report.command(["--out", str(tmp_path / "nowhere")])
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert "run an experiment first, such as python -m analysis.lte" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("name", ["report", "pages"])
@pytest.mark.parametrize("launcher", ["python -m analysis.", "genie-bench "])
def test_help_has_examples_that_parse(name, launcher, capsys):
    module = importlib.import_module(f"analysis.{name}")
    with pytest.raises(SystemExit) as left:
        module.command(["--help"], launcher)
    assert left.value.code == 0
    start = f"  {launcher}{name}"
    lines = [s.removeprefix(start) for s in capsys.readouterr().out.splitlines() if s.startswith(start)]
    assert len(lines) >= 2
    for line in lines:
        module.parser().parse_args(line.split())
