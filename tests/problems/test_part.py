"""Some states of a batch: the same score, and a share of the bill."""

import dataclasses

import pytest
import torch

from problems import DDIM, AnalyticFirst, Brownian, Guided, ReverseSDE, smooth_mixture
from problems.images.guided import GuidedImages
from problems.images.score import Learned
from problems.labelled import InTurn
from tests.networks import TINY, head, network, states

F64 = torch.float64
ROWS = torch.tensor([3, 1])
CLASSES = dataclasses.replace(TINY, classes=3)


def _models():
    mixture = smooth_mixture()
    yield mixture, torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    yield AnalyticFirst(mixture, 1.0), torch.ones(5, 2, dtype=F64)
    yield Guided(smooth_mixture(), smooth_mixture(), 1.0), torch.ones(5, 2, dtype=F64)
    with_head = Learned(network(CLASSES), torch.tensor([0, 1, 2, 0, 1]), head(config=CLASSES))
    for model in (
        with_head,
        with_head.distilled,
        with_head.labelled(InTurn(3)),
        GuidedImages(with_head, 1.0),
    ):
        yield model, states(5)


@pytest.mark.parametrize(("model", "x"), list(_models()), ids=lambda m: type(m).__name__)
def test_a_part_is_what_the_whole_is_there(model, x):
    start = model.spent
    whole = model.jet(x, 0.3, 2)
    before = model.spent
    part = model.part(ROWS, len(x))
    for value, expected in zip(part.jet(x[ROWS], 0.3, 2), whole, strict=True):
        assert torch.allclose(value, expected[ROWS], rtol=1e-5, atol=1e-6)
    assert (model.spent - before).nfe == pytest.approx(0.4 * (before - start).nfe)


@pytest.mark.parametrize(("model", "x"), list(_models()), ids=lambda m: type(m).__name__)
def test_a_part_of_a_part(model, x):
    part = model.part(ROWS, len(x)).part(torch.tensor([1]), 2)
    assert torch.allclose(part.jet(x[1:2], 0.3)[0], model.jet(x, 0.3)[0][1:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", [lambda m: m, lambda m: m.distilled], ids=["network", "head"])
def test_a_network_keeps_its_precision_where_every_state_has_a_time(part):
    """States and places in float64, the network in float32, which errs by some hundred roundings of 1e-7."""
    model = part(Learned(network(TINY).float(), head=head(config=TINY).float()))
    x, gamma = states(3).double(), torch.tensor([0.3, 1.0, 5.0], dtype=F64).reshape(3, 1, 1, 1)
    for each, alone in zip(
        model.flow_jet(x, gamma, 2),
        zip(*(model.flow_jet(x[i : i + 1], float(gamma[i]), 2) for i in range(3)), strict=True),
        strict=True,
    ):
        assert each.dtype == F64
        assert torch.allclose(each, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_both_halves_cost_what_the_whole_costs():
    mixture, x = smooth_mixture(), torch.ones(4, 2, dtype=F64)
    eq = DDIM(mixture)
    for rows in (torch.tensor([0, 1]), torch.tensor([2, 3])):
        eq.part(rows, 4).jet(x[rows], 0.5, 2)
    assert (eq.spent.nfe, eq.spent.jvp) == (1, 1)


def test_noise_keeps_to_its_samples():
    eq, x = ReverseSDE(smooth_mixture(), Brownian(3)), torch.zeros(5, 2, dtype=F64)
    part = eq.part(ROWS, 5)
    assert torch.equal(part.kick(x[ROWS], 0.5, 0.4), eq.kick(x, 0.5, 0.4)[ROWS])
    assert torch.equal(part.fresh(x[ROWS], 0.5), eq.fresh(x, 0.5)[ROWS])
