"""Intervals: that they cover what they should, and that paired ones are narrow."""

import numpy as np
import pytest
from scipy import stats

from analysis.measure.statistics import Bootstrap, medians, share, slope


def test_bootstrap_interval_of_a_mean_covers_it_about_95_percent_of_the_time():
    rng = np.random.default_rng(1)
    rows = rng.exponential(size=(1000, 200))
    interval = Bootstrap(200, resamples=500).means(rows)
    covered = np.mean((interval.low <= 1.0) & (interval.high >= 1.0))
    # 1,000 Bernoulli trials: five standard errors about the known small-sample coverage of the percentile
    # bootstrap for this skewed law, 0.93 to 0.95.
    assert 0.94 - 5 * 0.0075 < covered < 0.95 + 5 * 0.0069
    np.testing.assert_array_equal(interval.value, rows.mean(-1))


def test_ratio_is_paired():
    """Errors that are proportional trajectory by trajectory have a ratio without any uncertainty."""
    base = np.random.default_rng(2).lognormal(size=(1, 300))
    ratio = Bootstrap(300).ratios(3.0 * base, base)
    assert ratio.low[0] == pytest.approx(3.0, rel=1e-12)
    assert ratio.high[0] == pytest.approx(3.0, rel=1e-12)
    assert ratio.value[0] == pytest.approx(3.0, rel=1e-12)


def test_a_ratio_is_that_of_the_means():
    """(1 + 2 + 6)/(4 + 1 + 1) = 3/2, where the mean of the ratios is 2.75."""
    rows, base = np.array([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]]), np.array([[4.0, 1.0, 1.0]])
    ratio = Bootstrap(3, resamples=50).ratios(rows, base)
    np.testing.assert_allclose(ratio.value, [9.0 / 6.0, 9.0 / 6.0])


def test_median_interval_is_the_binomial_one():
    rows = np.arange(1.0, 101.0)[None]
    interval = medians(rows)
    assert interval.value[0] == 50.5
    # Classical table for n = 100: the 95% interval runs from the 40th to the 61st order statistic.
    assert (interval.low[0], interval.high[0]) == (40.0, 61.0)


@pytest.mark.parametrize(("k", "n"), [(0, 50), (3, 40), (50, 50), (200, 1000)])
def test_share_is_wilsons_interval(k, n):
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    value, low, high = share(k, n)
    assert value == k / n
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


def test_slope_of_a_power_law_is_its_exponent():
    h = np.geomspace(1e-3, 1e-1, 7)
    scale = np.random.default_rng(3).lognormal(size=100)
    fit = slope(h, h[:, None] ** 2.5 * scale, Bootstrap(100))
    assert fit == pytest.approx((2.5, 2.5, 2.5), abs=1e-10)
