"""The pages on families of methods: their tables are those of the code."""

import pandas as pd
import pytest

import solvers
from analysis import pages
from analysis.methods import FAMILIES, METHODS
from analysis.pages import cost, filled, spelled
from analysis.problems import PROBLEMS
from solvers import RK4, Adams, Exact, Index, Taylor, Time

PAGE = "# A page\n\nBefore.\n\n<!-- methods: runge-kutta -->\nold\n<!-- end -->\n\nAfter.\n"


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
def test_what_steps_cost(name, text):
    """N + 1 and N + 9 are the counts of Liu et al. (2022)."""
    assert cost(METHODS[name], PROBLEMS["digits"]()) == text


def test_a_table_takes_the_place_of_the_old_one(tmp_path):
    once = filled(PAGE, tmp_path)
    assert "old" not in once
    assert once.startswith("# A page\n\nBefore.\n")
    assert once.endswith("<!-- end -->\n\nAfter.\n")
    assert all(f"`{name}`" in once for name in FAMILIES["runge-kutta"])
    assert filled(once, tmp_path) == once


def test_measured_orders_come_from_the_results(tmp_path):
    slopes = {"linear": 1.98, "quadratic": 2.01, "rough": 1.5}
    about = {"solver": "heun", "form": "ddim", "kind": "ends"}
    rows = [{**about, "grid": g, "slope": s} for g, s in slopes.items()]
    rows.append({**about, "form": "pf", "grid": "linear", "slope": 9.0})
    pd.DataFrame(rows).to_csv(tmp_path / "orders.csv")
    (line,) = [line for line in filled(PAGE, tmp_path).splitlines() if "`heun`" in line]
    assert "1.98 to 2.01" in line
    assert "1.50" in line


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


def test_unknown_families_and_empty_folders_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        pages.command(["--pages", str(tmp_path)])
    assert "there are no pages" in capsys.readouterr().err
    (tmp_path / "a.md").write_text("<!-- methods: none -->\n<!-- end -->")
    with pytest.raises(SystemExit, match="2"):
        pages.command(["--pages", str(tmp_path)])
    assert "there is no family 'none'" in capsys.readouterr().err
