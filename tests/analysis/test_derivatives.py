"""Finite differences: their order, their leading term, their direction."""

import json

import numpy as np
import pandas as pd
import pytest

from analysis import derivatives
from analysis.measure.case import Case
from analysis.study.cells import Study


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_differences_have_the_order_of_their_points(direction):
    """The slope is the number of further points, and the leading term the error at small distances."""
    found = derivatives._measured(Case("smooth", 20), [0.3], 15, [1, 2, 3], direction, Study())
    for k in (1, 2, 3):
        rows = found.table[(found.table["stencil"] == k) & derivatives.resolved(found)].head(5)
        slope = np.polyfit(np.log(rows["dt"]), np.log(rows["error"]), 1)[0]
        assert slope == pytest.approx(k, abs=0.1)
        assert rows["theory"].iloc[0] == pytest.approx(rows["error"].iloc[0], rel=0.02)


def test_the_command_prints_what_the_function_returns(tmp_path):
    line = "--problem smooth --t 0.3 --samples 5 --points 7 --stencils 2 --direction forward"
    assert derivatives.command([*line.split(), "--out", str(tmp_path)]) == 0
    table = derivatives.difference_errors(Case("smooth", 5), [0.3], 7, [2], "forward")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "derivatives.csv"), table, rtol=0.0, atol=0.0)
    shown = json.loads((tmp_path / "derivatives.json").read_text())["tables"][0]["rows"]
    assert [float(row[2].split()[0]) for row in shown] == pytest.approx([2.0], abs=0.1)


def test_rounding_shows_where_it_is_said_to():
    """A difference between points Δγ apart errs by the rounding of ε over Δγ, and by its leading term."""
    found = derivatives._measured(Case("smooth", 20), [0.9], 9, [3], "backward", Study())
    away = (found.table["error"] - found.table["theory"]).abs()
    drowned = ~derivatives.resolved(found)
    assert list(drowned[:3]) == [True, False, False]
    assert away[0] < 30.0 * found.rounding[0]
