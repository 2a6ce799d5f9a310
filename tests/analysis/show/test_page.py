"""The page of all results: whole, from disk, in the order of its headings, with nothing but text."""

import base64
import json

import pytest
from PIL import Image

from analysis.show import published
from analysis.show.page import Heading, page
from tests.html import Page

LTE = Heading("lte", "Local error", "How far.", "Fig. 3", "python -m analysis.lte")
FID = Heading(
    "fid", "Quality", published=((r"best of all", published.BEST), (r"\(95%\)", published.STRIDING))
)
GTE = Heading("gte", "Global error")
ENCODED = Heading("gte-encode", "Encoding")
HEADINGS = (LTE, FID, GTE, ENCODED)


def shown(folder):
    return Page(page(folder, HEADINGS))


def record(folder, name="lte", experiment=None, **changes):
    """Write the manifest of a run."""
    table = {"title": "Errors", "columns": ["solver", "5 NFE"], "rows": [["ddim", "0.1"]], "notes": ["few"]}
    about = {"experiment": experiment or name, "command": f"python -m analysis.{name}", "seed": 0}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**about, "files": [], "tables": [table], **changes})
    (folder / f"{name}.json").write_text(text, "utf-8")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two runs with a figure each, one of them in a folder of its own."""
    folder = tmp_path_factory.mktemp("all") / "results"
    titles = ["Distance, best of all variants", "Distance (95%)", "Other distance (95%)"]
    tables = [{"title": t, "columns": ["solver"], "rows": [["ddim"]], "notes": []} for t in titles]
    record(folder, files=["lte.csv", "lte.png"])
    record(folder / "gaussian", "fid", files=["fid.png"], tables=tables)
    for path, size in ((folder / "lte.png", (4, 2)), (folder / "gaussian" / "fid.png", (3, 1))):
        Image.new("RGB", size).save(path, dpi=(48, 48))
    return folder


@pytest.fixture(scope="module")
def made(results):
    return shown(results)


def test_figures_are_in_the_page_at_their_size(results, made):
    images = [about for tag, about in made.tags if tag == "img"]
    files = [results / "lte.png", results / "gaussian" / "fid.png"]
    bytes_ = [base64.b64decode(about["src"].removeprefix("data:image/png;base64,")) for about in images]
    assert bytes_ == [file.read_bytes() for file in files]
    assert [(about["width"], about["height"]) for about in images] == [("11", "5"), ("8", "3")]


def test_the_page_loads_nothing_and_its_links_lead_to_sections(results, made):
    assert not {tag for tag, _ in made.tags} & {"script", "link", "iframe", "object", "embed", "base"}
    for _, about in made.tags:
        assert about.get("src", "data:").startswith("data:")
        assert about.get("href", "#").startswith("#")
        assert not {"srcset", "poster", "data", "background"} & set(about)
        assert not [name for name in about if name.startswith("on")]
    text = page(results, HEADINGS)
    assert "url(" not in text
    assert "@import" not in text
    policy = next(about for _, about in made.tags if about.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy["content"]
    names = {about["id"] for _, about in made.tags if "id" in about}
    links = {about["href"].removeprefix("#") for tag, about in made.tags if tag == "a"}
    assert links
    assert links <= names


def test_what_is_missing_is_listed_with_its_command(tmp_path):
    tmp_path.joinpath("empty").mkdir()
    listed = shown(tmp_path / "empty").table("What it shows", "Command")
    assert list(listed["Experiment"]) == [heading.title for heading in HEADINGS]
    assert list(listed.iloc[0])[1:] == ["How far.", "Fig. 3", "python -m analysis.lte"]
    record(tmp_path / "some", "gte-encode", "gte")
    assert "Encoding" not in list(shown(tmp_path / "some").table("Command")["Experiment"])


def test_the_same_results_make_the_same_page(results):
    assert page(results, HEADINGS) == page(results, HEADINGS)


def test_the_papers_figures_stand_once_beside_ours_and_are_marked(made):
    for source in ("Table 1", "Table 7"):
        assert len([text for text in made.texts if text.startswith(f"{source}: ")]) == 1
    assert made.texts.count(f"({published.CAVEAT})") == 2
    frame = made.table("method", "ρ")
    assert list(frame[(frame["method"] == "GENIE") & (frame["ρ"] == "1.5")].iloc[0])[2:] == [
        "11.2", "5.28", "5.03", "4.35", "3.97",
    ]  # fmt: skip


def test_what_manifests_say_is_text(tmp_path):
    evil = "<script>alert('&amp;')</script>"
    table = {"title": evil, "columns": [evil], "rows": [[evil]], "notes": [evil]}
    about = {"command": f"python -m analysis.lte --problem {evil}", "tables": [table], "revision": evil}
    record(tmp_path, **about, arguments={"problem": evil, evil: 1})
    assert "<script" not in page(tmp_path, HEADINGS)
    made = shown(tmp_path)
    assert about["command"] in made.texts
    assert made.texts.count(evil) == 5  # revision, and the table
    assert f"problem {evil}" in made.text


def test_images_outside_the_folder_stay_there(results, tmp_path):
    (tmp_path / "other.png").write_bytes((results / "lte.png").read_bytes())
    record(tmp_path / "results", files=["../other.png", str(results / "lte.png"), "lte.csv"])
    assert "<img" not in page(tmp_path / "results", HEADINGS)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"command": "python -m analysis.lte"}', '{"tables": 1, "files": [], "command": ""}']
)
def test_a_manifest_that_is_none_is_listed(tmp_path, text):
    (tmp_path / "lte.json").write_text(text)
    (tmp_path / "something.json").write_text(text)  # which is nobody's
    made = shown(tmp_path)
    assert "lte.json" in made.texts
    assert "python -m analysis.lte" in made.text
    assert "something.json" not in made.text


def test_a_missing_figure_makes_a_run_unreadable(tmp_path):
    for name in ("lte", "abc"):
        record(tmp_path, name, files=["lte.png"])
    texts = shown(tmp_path).texts
    assert texts.index("lte.json") < texts.index("abc.json")


def test_files_have_the_heading_of_their_name_or_else_of_the_experiment(tmp_path):
    """Experiments of one's own come last, under the name of their files."""
    for name, experiment in (("abc", ""), ("gte-encode", "gte"), ("gte-far", "gte"), ("lte", "lte")):
        record(tmp_path, name, experiment)
    made = shown(tmp_path)
    listed = made.table("Experiment", "After the paper's")
    assert list(listed["Experiment"]) == ["Local error", "Global error", "Encoding", "abc"]
    assert "An experiment of your own." in made.texts
    assert list(made.table("Command")["Experiment"]) == ["Quality"]


@pytest.mark.parametrize("sizes", [("500", "500"), ("500", "2000")])
def test_grids_of_different_size_are_not_to_be_compared(tmp_path, sizes):
    for folder, n in zip("ab", sizes, strict=True):
        record(tmp_path / folder, "fid", arguments={"samples": int(n)})
    assert ("cannot\nbe compared" in page(tmp_path, HEADINGS)) == (len(set(sizes)) > 1)
