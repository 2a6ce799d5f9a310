"""Tables of the paper, as they are printed."""

import numpy as np

from analysis.show import published


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
