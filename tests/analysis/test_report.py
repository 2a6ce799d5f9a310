"""The command of the page: a run as it is typed, its numbers those of the CSV file, and all experiments."""

import importlib
import json
import math
import pkgutil
import re
import shlex
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import analysis
from analysis import fid, heads, lte, report
from analysis.command.arguments import parser
from analysis.command.experiment import PLUGGED, Outcome, experiments
from analysis.command.run import main
from analysis.measure.case import Case
from analysis.measure.comparison import Comparison
from analysis.measure.features import Features
from analysis.measure.shards import Made, View
from analysis.show import plots, tables
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


def test_captions_name_model_data_and_features(page):
    said = "model toy (Mixture), data of the model, features x, 20 samples"
    assert [text for text in page.texts if said in text] == [f"lte.png: {said}", said]


def test_two_folders_stand_side_by_side(results, manifest, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    about = {**manifest, "about": {"model": "mine"}, "files": [], "arguments": {}}
    for name in ("lte", "gte"):
        (other / f"{name}.json").write_text(json.dumps({**about, "experiment": name}), "utf-8")
    assert report.command(["--out", str(results), "--beside", str(other)]) == 0
    page = Page((results / "beside.html").read_text("utf-8"))
    places = [i for i, text in enumerate(page.texts) if text in (str(results), str(other))][2:]
    sides = [(page.texts[i], "No results here." in page.texts[i : i + 4]) for i in places]
    assert sides == [(str(results), False), (str(other), False), (str(results), True), (str(other), False)]
    assert page.texts.count("model mine") == 2
    with pytest.raises(SystemExit, match="2"):
        report.command(["--out", str(results), "--beside", str(tmp_path / "nowhere")])


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


def recorded(folder, experiment, session, outcome):
    """Write the manifest of a run that measured this, without its files, and return the page."""
    with tables.collected() as kept:
        experiment.report(session, outcome)
    cells = [(table, *table.cells()) for table in kept]
    shown = [{"title": t.title, "columns": c, "rows": r, "notes": list(t.notes)} for t, c, r in cells]
    about = {"experiment": experiment.name, "command": experiment.typed(), "files": [], "tables": shown}
    (folder / f"{experiment.name}.json").write_text(json.dumps(about), "utf-8")
    assert report.command(["--out", str(folder)]) == 0
    return Page((folder / "report.html").read_text("utf-8"))


def banded(**estimates):
    """Return columns of estimates with their intervals."""
    return {f"{k}{end}": v for k, x in estimates.items() for end, v in (("", x), ("_low", x), ("_high", x))}


def test_tables_1_and_7_stand_beside_distances(tmp_path):
    unused = dict.fromkeys(("features", "steps", "folders", "decode", "data", "reference", "write_reference"))
    session = SimpleNamespace(args=SimpleNamespace(**unused), case=Case("gaussian", 250))
    about = {"feature": "pixels", "form": "ddim", "afs": False, "denoise": False, "billed": False, "note": ""}
    about |= {"kernel": 0.1, "jvp": 0, "reference_error": 1e-13, "frechet_infinite": 0.2}
    about |= {
        "frechet_half": 0.5,
        "frechet_quarter": 0.6,
        **banded(precision=0.7, recall=0.8, error=0.9, gap=0.1),
    }
    distances = {("ddim", 5): 0.75, ("ddim", 6): 0.5, ("accurate", math.nan): 0.25}
    rows = [
        {**about, "solver": solver, "grid": "linear", "nfe_budget": budget, **banded(frechet=value)}
        for (solver, budget), value in distances.items()
    ]
    look = Features("pixels", torch.flatten)
    extra = (Comparison(View((look,)), View((look,)), ("pixels",)), Made([], [], []))
    outcome = Outcome(pd.DataFrame(rows), extra=extra)
    page = recorded(tmp_path, fid.EXPERIMENT, session, outcome)
    above = [text for text in page.texts if text.endswith("(95%), form ddim, afs off, denoise off")]
    assert page.texts.index(above[0]) < page.texts.index("Table 7: FID by the exponent ρ of the grid ")
    assert len([text for text in page.texts if text.startswith(("Table 1: ", "Table 7: "))]) == 2
    shown = page.table("grid", "5 NFE").iloc[0]
    assert (float(shown["5 NFE"].split()[0]), float(shown["6 NFE"].split()[0])) == (0.75, 0.5)


def test_table_2_stands_beside_heads(tmp_path):
    line = {"head": "exact", "derivative_error": math.nan, "seeds": 0, "nfe": 5, "reference_error": 0.0}
    page = recorded(tmp_path, heads.EXPERIMENT, None, Outcome(pd.DataFrame([{**line, **banded(error=1.0)}])))
    assert "Table 2: " in page.text


def test_an_announcement_leaves_results_as_they_are(tmp_path, capsys):
    (tmp_path / "lte.json").write_text("{}")
    assert main(replace(lte.EXPERIMENT, measure=lambda session: None), ["--out", str(tmp_path)]) == 0
    assert (tmp_path / "lte.json").read_text() == "{}"
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".sqlite"}
    assert "written" not in capsys.readouterr().out


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
