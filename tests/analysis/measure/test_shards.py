"""Shards: samples that belong to their place in the whole, batch by batch, by methods that stay finite."""

import math

import numpy as np
import pytest

from analysis.measure import shards
from analysis.measure.case import Case
from analysis.measure.features import pixels
from analysis.measure.rows import Row
from analysis.methods import METHODS, Method
from analysis.study.keys import Keys
from solvers import Taylor

CASE = Case("gaussian", 12)
LOOK = shards.View((pixels(CASE.problem),))


def sampled(index, case=CASE, method="euler-maruyama"):
    return shards.sampled(case, index, LOOK, METHODS[method], 3)["coordinates"]


def test_a_sample_belongs_to_its_place_and_to_the_seed():
    whole, others = sampled(3), [sampled(4), sampled(3, CASE.but(seed=1))]
    assert (sampled(3) == whole).all()
    assert all((whole != other).all() for other in others)
    assert (shards.data(CASE, 3, LOOK)["coordinates"] != shards.data(CASE, 4, LOOK)["coordinates"]).all()


def test_noise_is_that_of_the_sample_in_every_batch():
    np.testing.assert_allclose(sampled(3, CASE.but(batch=5)), sampled(3), rtol=1e-12)


def test_accurate_samples_are_the_ends_of_the_same_trajectories():
    """Many small steps come close to them, denoised or not."""
    exact = shards.accurate(CASE, 1, LOOK)
    made = shards.sampled(CASE, 1, LOOK, METHODS["rk4"], 200)
    assert np.abs(made["coordinates"] - exact["coordinates"]).max() < 1e-6
    assert made["nfe"] == 800
    assert exact["reference_error"] < 1e-10
    apart = np.abs(exact["denoised coordinates"] - exact["coordinates"])
    assert 0.0 < apart.max() < 0.1


class Wild(Taylor):
    """Goes wild."""

    def step(self, eq, y, s0, s1, past):
        y, node = super().step(eq, y, s0, s1, past)
        y[:7] = math.nan
        return y, node


def test_samples_that_are_not_finite_are_told():
    with pytest.raises(FloatingPointError, match="7 of 12 samples are not finite"):
        shards.sampled(CASE, 0, LOOK, Method(Wild()), 2)


def test_keys_know_neither_how_many_samples_there_are_nor_what_rows_are_called():
    def keys(case, name):
        row = Row(name, METHODS["ddim"], 5, steps=5)
        made = Keys()
        return [
            made.key(cell.measure, cell.arguments)
            for group in shards.shards_of(case, [row], LOOK)
            for cell in group
        ]

    few, many = keys(Case("gaussian", 500), "ddim"), keys(Case("gaussian", 11_000), "euler")
    assert len(few) == 40 + 2 + 2
    assert len(many) == 3 * 44
    assert set(few) < set(many)
    assert not set(few) & set(keys(Case("gaussian", 500, seed=1), "ddim"))
    # 300 samples: a whole shard, which they share with 500, and one of 50; 20 data for each.
    fewer = keys(Case("gaussian", 300), "ddim")
    assert len(fewer) == 24 + 2 + 2
    assert len(set(fewer) - set(few)) == 2


def test_a_shard_that_is_not_whole_holds_the_first_samples_of_the_whole_one():
    """With its noise, its data and its exact ends; and its key says how many they are."""
    view, small = shards.View((pixels(CASE.problem),)), CASE.but(samples=5)
    for measure in (shards.data, shards.accurate):
        few, all_ = (measure(case, 2, view)["coordinates"] for case in (small, CASE))
        np.testing.assert_allclose(few, all_[:5], rtol=1e-12)
    np.testing.assert_allclose(sampled(3, small), sampled(3)[:5], rtol=1e-12)
    cells = [c for group in shards.shards_of(CASE.but(samples=40), [], view) for c in group]
    assert [c.arguments["case"].samples for c in cells] == [250, 250, 250, 50, 40]
