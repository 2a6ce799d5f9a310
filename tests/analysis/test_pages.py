"""The lists of experiments and the pages on families of methods: their tables are those of the code."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import solvers
from analysis import pages
from analysis.command.experiment import REPORT, Variant, experiments
from analysis.measure.problems import PROBLEMS
from analysis.methods import FAMILIES, METHODS
from analysis.pages import cost, filled, jobs, listed, overview, spelled
from solvers import RK4, Adams, Exact, Index, Taylor, Time

ROOT = Path(__file__).parents[2]
PAGE = "# A page\n\nBefore.\n\n<!-- methods: runge-kutta -->\nold\n<!-- end -->\n\nAfter.\n"


@pytest.mark.parametrize("name", ["README.md", "tox.ini"])
def test_experiments_are_listed(name):
    """Type ``python -m analysis.pages`` where this fails."""
    assert listed(ROOT)[ROOT / name] == (ROOT / name).read_text("utf-8")


def test_an_experiment_and_its_variants_are_lines_and_one_job():
    first = experiments()[0]
    other = Variant("other", "--two", "Other", "What it shows.", "Fig. 9")
    found = [replace(first, finding="How far.", paper="", variants=(other,))]
    assert overview(found).to_numpy().tolist() == [
        ["`lte`", "How far.", "–"],
        ["`lte --two`", "What it shows.", "Fig. 9"],
        ["`report`", REPORT, "–"],
    ]
    assert jobs(found) == "[testenv:{lte,report}]\n"


@pytest.mark.parametrize(
    ("solver", "text"),
    [
        (Taylor(), "Taylor()"),
        (Taylor(2), "Taylor(p=2)"),
        (Adams(4, clock=Index(), start=RK4(Time())), "Adams(k=4, clock=Index(), start=RK4(clock=Time()))"),
        (Adams(2, clock=Exact(Time())), "Adams(k=2, clock=Exact(clock=Time()))"),
    ],
)
def test_solvers_are_spelled_as_one_would_type_them(solver, text):
    assert spelled(solver) == text


def test_every_solver_in_the_tables_can_be_typed():
    for method in METHODS.values():
        typed = eval(spelled(method.solver), vars(solvers))
        assert spelled(typed) == spelled(method.solver)
        assert type(typed) is type(method.solver)


@pytest.fixture(scope="module")
def network():
    return PROBLEMS["digits"]()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ddim", "N"),
        ("ttm3", "N, 2 N derivatives"),
        ("heun", "2 N"),
        ("s-pndm", "N + 1"),
        ("f-pndm", "N + 9"),
        ("genie", "N, N calls of the head"),
        ("rk45", "as needed"),
    ],
)
def test_what_steps_cost(name, text, network):
    """N + 1 and N + 9 are the counts of Liu et al. (2022)."""
    assert cost(METHODS[name], network) == text


def test_a_table_takes_the_place_of_the_old_one(tmp_path):
    once = filled(PAGE, tmp_path)
    assert "old" not in once
    assert once.startswith("# A page\n\nBefore.\n")
    assert once.endswith("<!-- end -->\n\nAfter.\n")
    assert all(f"`{name}`" in once for name in FAMILIES["runge-kutta"])
    assert filled(once, tmp_path) == once


def test_measured_orders_come_from_the_results(tmp_path):
    slopes = {"linear": 1.98, "quadratic": 2.01, "rough": 1.5}
    about = {"solver": "heun", "form": "ddim", "kind": "ends", "interval": "interior", "verdict": "pass"}
    rows = [{**about, "grid": g, "slope": s} for g, s in slopes.items()]
    rows.append({**about, "form": "pf", "grid": "linear", "slope": 9.0})
    rows.append({**about, "interval": "prior", "grid": "linear", "slope": 2.2, "verdict": "unsettled"})
    rows.append({**about, "interval": "prior", "grid": "edm", "slope": 2.02})
    pd.DataFrame(rows).to_csv(tmp_path / "orders.csv")
    (line,) = [line for line in filled(PAGE, tmp_path).splitlines() if "`heun`" in line]
    assert "1.98 to 2.01" in line
    assert "1.50" in line
    assert "2.02; linear: unsettled" in line


def test_errors_are_those_under_the_budget_on_the_form_of_the_method(tmp_path):
    about = {"solver": "heun", "form": "ddim", "afs": False, "denoise": False, "nfe": 10, "nfe_budget": 10}
    right = {**about, "grid": "quadratic", "error": 0.25, "error_low": 0.2, "error_high": 0.3}
    wrong = [
        {**right, **other, "error": 9.0} for other in ({"form": "pf"}, {"afs": True}, {"nfe_budget": 20})
    ]
    pd.DataFrame([right, *wrong]).to_csv(tmp_path / "gte.csv")
    page = filled(PAGE, tmp_path)
    assert "error, quadratic" in page
    assert "0.250 [0.200, 0.300]" in page
    assert "9.0" not in page


def test_results_by_steps_are_refused(tmp_path):
    pd.DataFrame([{"solver": "heun", "error": 1.0}]).to_csv(tmp_path / "gte.csv")
    with pytest.raises(ValueError, match="--nfe 10"):
        filled(PAGE, tmp_path)


def repository(folder):
    """Write the pages of a small repository, whose lists are empty."""
    (folder / "README.md").write_text("Before.\n\n<!-- experiments -->\n<!-- end -->\n\nAfter.\n", "utf-8")
    (folder / "tox.ini").write_text("# experiments\n# end\ncommands = ls\n", "utf-8")
    (folder / "docs" / "methods").mkdir(parents=True)
    (folder / "docs" / "methods" / "a.md").write_text(PAGE, "utf-8")


def test_the_command_fills_the_lists_and_with_results_the_tables(tmp_path):
    repository(tmp_path)
    page, empty = tmp_path / "docs" / "methods" / "a.md", tmp_path / "results"
    assert pages.command(["--root", str(tmp_path)]) == 0
    assert {path: path.read_text("utf-8") for path in listed(tmp_path)} == listed(tmp_path)
    assert "| `report`" in (tmp_path / "README.md").read_text("utf-8")
    assert page.read_text("utf-8") == PAGE
    assert pages.command(["--root", str(tmp_path), "--results", str(empty)]) == 0
    assert page.read_text("utf-8") == filled(PAGE, empty)


def test_unknown_families_and_files_without_a_mark_are_refused(tmp_path, capsys):
    def told(*arguments):
        with pytest.raises(SystemExit, match="2"):
            pages.command(["--root", str(tmp_path), *arguments])
        return capsys.readouterr().err

    assert "there is no" in told()
    repository(tmp_path)
    (tmp_path / "docs" / "methods" / "a.md").write_text("<!-- methods: none -->\n<!-- end -->", "utf-8")
    assert "there is no family 'none'" in told("--results", str(tmp_path))
    (tmp_path / "tox.ini").write_text("[tox]\n", "utf-8")
    assert "tox.ini has 0 places" in told()
