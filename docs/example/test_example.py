"""The tests of this package: ``pytest test_example.py``."""

from analysis.api import assert_order


def test_order():
    """The solver has the order that it declares, on the usual grid and on the one of this package."""
    assert_order("ralston3")
    assert_order("ralston3", grid="edm3")
