"""Numbers as readers see them: estimate and interval share an exponent, and no digit is invented."""

import math

import pandas as pd
import pytest

from analysis.show import tables


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0.123456, 0.1, 0.2), "0.123 [0.100, 0.200]"),
        ((1.5, 1.25, 2.0), "1.50 [1.25, 2.00]"),
        ((123.4, 100.0, 150.0), "123 [100, 150]"),
        ((1.234e-4, 1.19e-4, 1.27e-4), "1.23e-4 [1.19, 1.27]e-4"),
        ((1234.0, 990.0, 1500.0), "1.23e3 [0.99, 1.50]e3"),
        ((9.996e-3, 9.5e-3, 1.05e-2), "0.0100 [0.0095, 0.0105]"),
        ((999.6, 990.0, 1010.0), "1.00e3 [0.99, 1.01]e3"),
        ((0.0, 0.0, 0.0), "0"),
        ((0.0, 0.0, 0.0123), "0.0000 [0.0000, 0.0123]"),
        ((math.nan, math.nan, math.nan), "nan"),
        ((math.inf, 1.0, math.inf), "inf"),
    ],
)
def test_an_interval_in_words(numbers, text):
    assert tables.interval(*numbers) == text


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


def test_a_pivot_keeps_the_order_and_fills_gaps():
    rows = pd.DataFrame({"solver": ["b", "a", "b"], "nfe": [5, 10, 10], "error": [1.0, 2.0, 3.0]})
    made = tables.pivot(
        rows, lambda r: {"solver": r["solver"]}, lambda r: f"{r['nfe']} NFE", lambda r: f"{r['error']:.1f}"
    )
    assert tables.Table("", made).cells() == (
        ["solver", "5 NFE", "10 NFE"],
        [["b", "1.0", "3.0"], ["a", "-", "2.0"]],
    )
