"""The page of all results: whole, from disk, with the numbers of the CSV files and nothing but text."""

import base64
import importlib
import json
import math
import pkgutil
import re
import shlex
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import fid, heads, lte, published, report, tables

LTE = ["--t", "0.3", "--samples", "20", "--points", "4", "--solvers", "ddim", "ttm2"]
FID = ["--problem", "gaussian", "--samples", "250", "--solvers", "ddim", "--nfe", "5", "6"]
VOID = {"meta", "img", "br", "hr", "link", "input", "source"}


class Page(HTMLParser):
    """A page taken apart; fails where a tag is closed that is not open, or the other way round."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.tables, self.rows = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.tables and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return "".join(self.texts)

    def table(self, *columns):
        """Return the first table with these columns, as a frame of strings."""
        found = next(t for t in self.tables if set(columns) <= set(t[0]))
        return pd.DataFrame(found[1:], columns=found[0])


def made(folder):
    assert report.command(["--out", str(folder)]) == 0
    return (folder / "report.html").read_text("utf-8")


def record(folder, name="lte", **changes):
    """Write the manifest of a run."""
    table = {"title": "Errors", "columns": ["solver", "5 NFE"], "rows": [["ddim", "0.1"]], "notes": ["few"]}
    manifest = {"command": f"python -m analysis.{name}", "files": [], "tables": [table], "seed": 0}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**manifest, **changes}), "utf-8")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("all") / "results"
    assert lte.command([*LTE, "--out", str(folder)]) == 0
    assert fid.command([*FID, "--out", str(folder / "gaussian")]) == 0
    return folder


@pytest.fixture(scope="module")
def page(results):
    return Page(made(results))


def test_commands_stand_as_they_were_typed(results, page):
    for name, typed, out in (("lte", LTE, results), ("fid", FID, results / "gaussian")):
        line = shlex.join(["python", "-m", f"analysis.{name}", *typed, "--out", str(out)])
        assert page.texts.count(line) == 1


def test_provenance_is_there(results, page):
    manifest = json.loads((results / "lte.json").read_text())
    for said in (manifest["revision"] or "none", manifest["version"], manifest["finished"]):
        assert said in page.texts
    assert f"torch {manifest['packages']['torch']}" in page.text
    assert f"processor {manifest['machine']['processor']}" in page.text
    assert str(manifest["wall_seconds"]) in page.texts


def test_figures_are_in_the_page(results, page):
    sources = [about["src"] for tag, about in page.tags if tag == "img"]
    files = [results / "lte.png", results / "gaussian" / "fid.png"]
    shown = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]
    assert shown == [file.read_bytes() for file in files]


def test_numbers_are_those_of_the_csv(results, page):
    data = pd.read_csv(results / "lte.csv")
    shown = page.table("slope (95%)").set_index("solver")
    for solver, rows in data.groupby("solver"):
        near = rows.loc[(np.log(rows["dt"]) - math.log(0.05 * 0.3)).abs().idxmin()]
        assert shown.loc[solver, "median"] == f"{near['median']:.2e}"
        assert shown.loc[solver, "mean error (95%)"].startswith(f"{near['error']:.2e}".replace("e-0", "e-"))

    data = pd.read_csv(results / "gaussian" / "fid.csv")
    data = data[data["solver"] == "ddim"].set_index(["grid", "nfe_budget"])
    shown = page.table("grid", "5 NFE").set_index("grid")
    for grid in ("linear", "quadratic"):
        for budget in (5, 6):
            value = float(shown.loc[grid, f"{budget} NFE"].split()[0])
            assert value == pytest.approx(data.loc[(grid, budget), "frechet"], rel=5e-3)


def test_all_that_was_shown_is_in_the_manifest_and_in_markdown(results, page):
    manifest = json.loads((results / "gaussian" / "fid.json").read_text())
    text = (results / "gaussian" / "fid.md").read_text("utf-8")
    assert len(manifest["tables"]) > 4
    for table in manifest["tables"]:
        assert f"## {table['title']}\n" in text
        assert table["title"] in page.texts
    assert {"fid.csv", "fid.pdf", "fid.png", "fid.md", "fid.tex"} == set(manifest["files"])


def test_the_page_loads_nothing(results, page):
    text = (results / "report.html").read_text("utf-8")
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base"}
    for _, about in page.tags:
        assert about.get("src", "data:").startswith("data:")
        assert about.get("href", "#").startswith("#")
        assert not {"srcset", "poster", "data", "background"} & set(about)
        assert not [name for name in about if name.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text
    policy = next(about for _, about in page.tags if about.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy["content"]


def test_links_lead_to_sections(page):
    names = {about["id"] for _, about in page.tags if "id" in about}
    links = {about["href"].removeprefix("#") for tag, about in page.tags if tag == "a"}
    assert links
    assert links <= names


def test_what_is_missing_is_listed_with_a_command_that_parses(results, page):
    listed = page.table("What it shows", "Command")["Command"]
    names = {e.name for e in report.EXPERIMENTS} - {"lte", "fid"}
    assert len(listed) == len(names)
    for line in listed:
        name, *arguments = re.fullmatch(r"python -m analysis\.(.*)", line)[1].split()
        args = importlib.import_module(f"analysis.{name}").arguments().parse_args(arguments)
        assert args.out == results


def test_every_experiment_has_its_place():
    names = [module.name for module in pkgutil.iter_modules(analysis.__path__)]
    ours = {n for n in names if hasattr(importlib.import_module(f"analysis.{n}"), "experiment")}
    assert ours == {e.name for e in report.EXPERIMENTS} - {"gte-encode"}


def test_every_experiment_has_a_headline_and_a_sentence():
    for experiment in report.EXPERIMENTS:
        assert not experiment.title.endswith(".")
        assert experiment.title[0].isupper()
        assert experiment.sentence.endswith(".")


def test_the_same_results_make_the_same_page(results):
    assert report.page(results) == report.page(results)


def test_the_papers_figures_stand_beside_ours_and_are_marked(page):
    for source in ("Table 1", "Table 7"):
        assert len([text for text in page.texts if text.startswith(f"{source}: ")]) == 1
    assert page.texts.count(f"({published.CAVEAT})") == 2
    frame = page.table("method", "ρ")
    assert list(frame[(frame["method"] == "GENIE") & (frame["ρ"] == "1.5")].iloc[0])[2:] == [
        "11.2", "5.28", "5.03", "4.35", "3.97",
    ]  # fmt: skip


def test_table_2_stands_beside_heads(tmp_path):
    line = {"head": "exact", "derivative_error": math.nan, "seeds": 0, "nfe": 5}
    with tables.collected() as shown:
        heads.report(pd.DataFrame([{**line, "error": 1.0, "error_low": 0.9, "error_high": 1.1}]), 0.0)
    columns, rows = shown[0].cells()
    table = {"title": shown[0].title, "columns": columns, "rows": rows, "notes": list(shown[0].notes)}
    record(tmp_path, "heads", tables=[table])
    assert "Table 2: " in Page(made(tmp_path)).text


def test_published_figures_agree_with_each_other():
    """Table 1 is the best of Table 7, and where ρ is 2 they are the same rows."""
    best = {row[0]: row[1:] for row in published.BEST.rows}
    for method in ("GENIE", "DDIM"):
        rows = {row[1]: row[2:] for row in published.STRIDING.rows if row[0] == method}
        assert rows["2.0"] == best[method]
        smallest = np.array([[float(cell) for cell in row] for row in rows.values()]).min(0)
        assert [float(cell) for cell in best[f"{method}, best ρ"]] == list(smallest)
    for table in (published.BEST, published.ABLATION, published.STRIDING):
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_what_manifests_say_is_text(tmp_path):
    evil = "<script>alert('&amp;')</script>"
    table = {"title": evil, "columns": [evil], "rows": [[evil]], "notes": [evil]}
    about = {"command": f"python -m analysis.lte --problem {evil}", "tables": [table], "revision": evil}
    record(tmp_path, **about, arguments={"problem": evil, evil: 1})
    text = made(tmp_path)
    assert "<script" not in text
    page = Page(text)
    assert about["command"] in page.texts
    assert page.texts.count(evil) == 5  # revision, and the table
    assert f"problem {evil}" in page.text


def test_images_outside_the_folder_stay_there(results, tmp_path):
    (tmp_path / "other.png").write_bytes((results / "lte.png").read_bytes())
    record(tmp_path / "results", files=["../other.png", str(results / "lte.png"), "lte.csv"])
    assert "<img" not in made(tmp_path / "results")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"command": "python -m analysis.lte"}', '{"tables": 1, "files": [], "command": ""}']
)
def test_a_manifest_that_is_none_is_listed(tmp_path, text):
    (tmp_path / "lte.json").write_text(text)
    (tmp_path / "something.json").write_text(text)  # which is nobody's
    page = Page(made(tmp_path))
    assert "lte.json" in page.texts
    assert "python -m analysis.lte" in page.text
    assert "something.json" not in page.text


def test_a_missing_figure_makes_a_run_unreadable(tmp_path):
    record(tmp_path, files=["lte.png"])
    assert "lte.json" in Page(made(tmp_path)).texts


def test_experiments_of_ones_own_come_last(tmp_path):
    for name in ("abc", "lte"):
        record(tmp_path, name)
    page = Page(made(tmp_path))
    assert page.texts.index("python -m analysis.lte") < page.texts.index("python -m analysis.abc")


def test_an_announcement_leaves_results_as_they_are(tmp_path, capsys):
    record(tmp_path, "fid")
    before = (tmp_path / "fid.json").read_bytes()
    assert fid.command([*FID, "--dry-run", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "fid.json").read_bytes() == before
    assert not (tmp_path / "fid.md").exists()
    assert "written" not in capsys.readouterr().out


def test_tables_are_collected_inside_the_block_alone(capsys):
    frame = pd.DataFrame({"n": [1, None]}, dtype=object)

    def stopped():
        with tables.collected():
            tables.show("one", frame)
            raise KeyError

    with tables.collected() as outer:
        with pytest.raises(KeyError):
            stopped()
        tables.keep("two", frame, ["note"])
    tables.show("three", frame)
    assert [table.title for table in outer] == ["two"]
    assert outer[0].cells() == (["n"], [["1"], [""]])
    printed = capsys.readouterr().out
    assert "one" in printed
    assert "two" not in printed


def test_no_folder_gets_one_sentence_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        report.command(["--out", str(tmp_path / "nowhere")])
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert "run an experiment first, such as python -m analysis.lte" in message
    assert message.count("\n") == 1


def test_help_has_examples_that_parse(capsys):
    with pytest.raises(SystemExit) as left:
        report.command(["--help"])
    assert left.value.code == 0
    lines = [s.split()[3:] for s in capsys.readouterr().out.splitlines() if s.startswith("  python -m")]
    assert len(lines) >= 2
    for line in lines:
        report.arguments().parse_args(line)


@pytest.mark.parametrize("sizes", [("500", "500"), ("500", "2000")])
def test_grids_of_different_size_are_not_to_be_compared(tmp_path, sizes):
    for folder, n in zip("ab", sizes, strict=True):
        record(tmp_path / folder, "fid", arguments={"samples": int(n)})
    assert ("cannot\nbe compared" in report.page(tmp_path)) == (len(set(sizes)) > 1)
