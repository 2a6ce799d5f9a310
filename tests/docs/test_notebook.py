"""The notebook runs in a kernel and shows what it says; edited classes of its cells are measured anew."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
NotebookClient = pytest.importorskip("nbclient").NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"
NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"


def shown(book):
    """The results of the cells, as text."""
    return [
        output["data"]["text/plain"]
        for cell in book.cells
        for output in cell.get("outputs", ())
        if output["output_type"] == "execute_result"
    ]


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    """The notebook as it is kept, and as it runs here."""
    kept, here = (nbformat.read(NOTEBOOK, as_version=4) for _ in range(2))
    for cell in here.cells:
        cell.pop("outputs", None)
    where = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    NotebookClient(here, timeout=300, resources=where).execute()
    return kept, here


def test_the_results_are_those_that_the_notebook_shows(books):
    kept, here = map(shown, books)
    assert len(kept) == len(here) == 9
    for one, other in zip(kept, here, strict=True):
        assert re.sub(NUMBER, "", one).split() == re.sub(NUMBER, "", other).split()
        numbers = [[float(number) for number in re.findall(NUMBER, text)] for text in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=2e-3)


def test_an_edited_class_and_another_problem_are_measured_anew_and_nothing_else(books):
    certified, again, wrong, edited, problem = (shown(books[1])[i] for i in (0, 5, 6, 7, 8))
    assert certified.count("pass") == 4
    assert again == "True"
    assert (wrong.count("FAIL"), wrong.count("pass")) == (2, 2)
    assert dict(re.findall(r"^(\w+) +(\d+)$", edited, re.MULTILINE)) == {
        "ends": "0",
        "lte": "0",
        "orders": "2",
    }
    assert dict(re.findall(r"^(\w+) +(\d+)$", problem, re.MULTILINE)) == {
        "ends": "2",
        "lte": "0",
        "orders": "0",
    }
