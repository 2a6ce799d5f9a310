"""Noise: a random function with known answers, and Brownian paths that belong to sample and interval."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from problems import DDIM, Brownian, Drawn, Preconditioned, ReverseSDE, smooth_mixture
from problems.noise import HIGHEST, LOWEST, philox

F64 = torch.float64
SIGNIFICANCE = 1e-4
"""Of every statistical test here; seeds are fixed, so it says how lucky a right implementation has to be."""


def states(n, *event, dtype=F64):
    return torch.zeros(n, *(event or (2,)), dtype=dtype)


def increment(noise, like, a, b):
    """W(b) - W(a)."""
    return math.sqrt(b - a) * noise.over(like, a, b)


# --- the random function


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers(counter, key, answer):
    """Those that its authors publish with Random123."""

    def words(text):
        return [int(word, 16) for word in text.split()]

    k0, k1 = words(key)
    block = philox(np.array(words(counter), dtype=np.uint64), (k0, k1))
    assert block.tolist() == words(answer)
    many = philox(np.array([[words(counter)] * 3] * 2, dtype=np.uint64), (k0, k1))
    assert many.tolist() == [[words(answer)] * 3] * 2


# --- Brownian paths


@pytest.mark.parametrize("seed", [0, 7, -1])
def test_increments_add_up(seed):
    """W(c) - W(a) is the sum of its parts, however fine, to the rounding of W."""
    like, places = states(50), np.geomspace(1e-4, 1e4, 33).tolist()
    whole = increment(Brownian(seed), like, places[0], places[-1])
    parts = sum(increment(Brownian(seed), like, a, b) for a, b in itertools.pairwise(places))
    assert torch.allclose(whole, parts, rtol=0, atol=1e-13 * math.sqrt(places[-1]) * len(places))


@pytest.mark.parametrize("ratio", [1.01, 1.5, 40.0])
def test_increments_are_independent_standard_normal_numbers(ratio):
    """Over neighbouring intervals of any length: Kolmogorov-Smirnov, and all correlations."""
    n, like = 4000, states(4000, 3)
    places = [0.3 * ratio**j for j in range(5)]
    z = torch.stack([Brownian(3).over(like, a, b) for a, b in itertools.pairwise(places)])
    columns = z.permute(1, 0, 2).reshape(n, -1).numpy()  # intervals and coordinates of each sample
    for column in columns.T:
        assert stats.kstest(column, "norm").pvalue > SIGNIFICANCE / 12
        # n Var is χ² with n degrees of freedom.
        assert SIGNIFICANCE / 12 < stats.chi2.cdf((column**2).sum(), n) < 1 - SIGNIFICANCE / 12
    correlations = np.corrcoef(columns.T)[np.triu_indices(12, 1)]
    bound = stats.norm.ppf(1 - SIGNIFICANCE / (2 * len(correlations)))
    assert np.abs(correlations).max() < bound / math.sqrt(n)
    assert abs(np.corrcoef(columns[1:, 0], columns[:-1, 0])[0, 1]) < bound / math.sqrt(n)


def test_a_path_has_the_covariance_of_brownian_motion():
    """E W(a) W(b) = min(a, b), from the beginning of the range."""
    n, places = 20_000, [1e-6, 2e-3, 0.4, 0.41, 30.0, 1e7]
    low = math.exp(2 * LOWEST)
    w = np.stack([increment(Brownian(1), states(n, 1), low, b).numpy()[:, 0] for b in places])
    for i, a in enumerate(places):
        for j, b in enumerate(places[i:], start=i):
            # The product of two normal numbers with correlation ρ has variance 1 + ρ².
            error = (w[i] * w[j]).mean() / math.sqrt(a * b) - math.sqrt(a / b)
            assert abs(error) < 4.5 * math.sqrt((1 + a / b) / n)


def test_seeds_samples_and_streams_are_independent():
    n = 4000
    like = states(n, 1)
    columns = [
        Brownian(0).over(like, 1.0, 2.0),
        Brownian(1).over(like, 1.0, 2.0),
        Brownian(0, first=n).over(like, 1.0, 2.0),
        Brownian(0).at(like, 1.0),
        Brownian(0).at(like, 2.0),
        Brownian(0).at(like, 1.0, stream=2),
    ]
    flat = torch.cat(columns, 1).numpy().T
    for column in flat:
        assert stats.kstest(column, "norm").pvalue > SIGNIFICANCE / 6
    bound = stats.norm.ppf(1 - SIGNIFICANCE / 30)
    assert np.abs(np.corrcoef(flat)[np.triu_indices(6, 1)]).max() < bound / math.sqrt(n)


def test_a_path_belongs_to_the_sample_not_to_the_batch():
    like, noise = states(10, 1, 3, 3), Brownian(5)
    rows = torch.tensor([7, 2, 2, 9])
    for draw in (lambda source, x: source.over(x, 0.2, 0.7), lambda source, x: source.at(x, 0.2, 3)):
        whole = draw(noise, like)
        assert torch.equal(draw(noise.part(rows), like[rows]), whole[rows])
        assert torch.equal(draw(noise.part(rows).part(torch.tensor([3, 0])), like[:2]), whole[[9, 7]])
        assert torch.equal(draw(Brownian(5, first=4), like[4:]), whole[4:])
        assert torch.equal(draw(Brownian(5), like[:3]), whole[:3])
        assert torch.equal(draw(noise, like), whole)


def test_the_order_of_questions_does_not_matter():
    """Neighbouring steps share an end, which is looked up once; the answers are those of a new path."""
    like, used = states(6), Brownian(2)
    for a, b in [(0.1, 0.2), (0.2, 0.5), (0.1, 0.5), (0.2, 0.5), (0.5, 0.6)]:
        assert torch.equal(used.over(like, a, b), Brownian(2).over(like, a, b))
        assert torch.equal(used.over(like[:4], a, b), Brownian(2).over(like, a, b)[:4])
        assert torch.equal(used.part(torch.tensor([1])).over(like[:1], a, b), used.over(like, a, b)[1:2])


def test_an_interval_for_each_sample():
    like = states(4, 1, 2, 2)
    a = torch.tensor([0.1, 0.1, 0.4, 2.0], dtype=F64)
    b = torch.tensor([0.3, 0.2, 5.0, 2.5], dtype=F64)
    noise = Brownian(9)
    for shape in ((4,), (4, 1, 1, 1)):
        together = noise.over(like, a.reshape(shape), b.reshape(shape))
        places = noise.at(like, a.reshape(shape))
        for i in range(4):
            assert torch.equal(together[i], noise.over(like, float(a[i]), float(b[i]))[i])
            assert torch.equal(places[i], noise.at(like, float(a[i]))[i])


@pytest.mark.parametrize("source", [Brownian(0), Drawn(), Drawn(torch.Generator().manual_seed(1))])
def test_numbers_are_like_the_states(source):
    for dtype in (torch.float32, torch.float64):
        for shape in ((0, 2), (3,), (3, 2), (2, 1, 8, 8)):
            like = torch.zeros(shape, dtype=dtype)
            for z in (source.over(like, 0.5, 1.0), source.at(like, 0.5)):
                assert z.dtype == dtype
                assert z.shape == like.shape
                assert z.device == like.device
    a = torch.zeros(0, 1, dtype=F64)
    assert source.over(states(0), a + 0.5, a + 1.0).shape == (0, 2)


def test_float32_numbers_are_those_of_float64_rounded():
    a, b = (Brownian(4).over(states(20, dtype=d), 0.3, 0.4) for d in (torch.float32, F64))
    assert torch.equal(a, b.float())


def test_edges_of_the_tree_are_places_like_others():
    """Whose logarithm may be rounded to the other side of the edge; each sample is asked at another one."""
    edges = [math.exp(2.0 * (LOWEST + (HIGHEST - LOWEST) * node / 2**9)) for node in range(1, 2**9)]
    low, w = torch.tensor([math.exp(2.0 * LOWEST)] * 511, dtype=F64), torch.tensor(edges, dtype=F64)
    beside = (w.nextafter(torch.zeros_like(w)), w, w.nextafter(torch.full_like(w, math.inf)))
    values = [(place - low).sqrt() * Brownian(0).over(states(511, 1), low, place)[:, 0] for place in beside]
    spread = torch.stack(values).amax(0) - torch.stack(values).amin(0)
    # The path is continuous there: over so short a way a bridge does not move by more than 1e-6 √w.
    assert (spread < 1e-6 * w.sqrt()).all()


@pytest.mark.parametrize(
    ("a", "b"), [(1e-13, 1.0), (1.0, 1e12), (2.0, 1.0), (1.0, 1.0), (math.nan, 1.0), (1.0, math.inf)]
)
def test_intervals_that_are_none(a, b):
    with pytest.raises(ValueError, match=r"interval of positive length|outside the range"):
        Brownian(0).over(states(2), a, b)


def test_drawn_numbers_come_from_the_generator():
    noise = Drawn(torch.Generator().manual_seed(3))
    expected = torch.Generator().manual_seed(3)
    for z in (noise.over(states(4), 0.1, 0.2), noise.at(states(4), 1.0)):
        assert torch.equal(z, torch.randn(4, 2, dtype=F64, generator=expected))
    assert noise.part(torch.tensor([0])) is noise


# --- in the coordinates of a form


def own(problem, noise):
    return Preconditioned(problem, 0.4, noise)


@pytest.mark.parametrize("make", [DDIM, own, ReverseSDE])
def test_all_forms_have_the_same_path(make):
    """It runs in 1/γ², whatever the variable of the form; a part of a batch keeps its own."""
    problem, y = smooth_mixture(), states(8)
    form = make(problem, Brownian(6))
    for t0, t1 in [(1.0, 0.7), (0.7, 0.2), (0.2, 0.001)]:
        w0, w1 = (float(problem.schedule.gamma(t)) ** -2 for t in (t0, t1))
        expected = Brownian(6).over(y, w0, w1)
        assert torch.allclose(form.normal(y, form.s(t0), form.s(t1)), expected, rtol=0, atol=1e-6)
        rows = torch.tensor([5, 1])
        assert torch.equal(
            form.part(rows, 8).normal(y[rows], form.s(t0), form.s(t1)),
            form.normal(y, form.s(t0), form.s(t1))[rows],
        )


def test_a_part_of_a_batch_is_billed_by_its_share():
    problem = smooth_mixture()
    form = DDIM(problem)
    form.part(torch.arange(3), 12).jet(states(3), 0.5, 2)
    assert (problem.spent.nfe, problem.spent.jvp) == (0.25, 0.25)
