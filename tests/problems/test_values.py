"""Models are values: a copy gives the same numbers, without the bill and the caches of the original."""

import copy
import pickle

import pytest
import torch

from analysis.measure.problems import PROBLEMS
from analysis.study.keys import Keys
from problems import (
    AnalyticFirst,
    Autodiff,
    Bill,
    Gaussian,
    Guided,
    GuidedHeads,
    Ideal,
    Problem,
    smooth_mixture,
)
from problems.images.score import Learned
from problems.posterior import Average
from tests.networks import TINY, head, network, states

F64 = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", PROBLEMS)
def test_pickled_problems_give_the_same_numbers(name):
    problem = PROBLEMS[name]()
    x = torch.randn(3, *problem.event_shape, dtype=F64, generator=rng())

    def numbers(of):
        # The data of CIFAR-10 do not come with the suite.
        data = [] if name.startswith("cifar10") else [of.sample(2, 0.3, rng(1))]
        return [*of.jet(x, 0.4, 2), *data]

    used = numbers(problem)
    same = pickle.loads(pickle.dumps(problem))
    assert same.spent == Bill()
    assert (same.schedule, same.data_std, same.component_std) == (
        problem.schedule,
        problem.data_std,
        problem.component_std,
    )
    assert Keys().value(same) == Keys().value(problem)
    for a, b in zip(numbers(same), used, strict=True):
        assert torch.equal(a, b)
    assert same.spent == problem.spent != Bill()
    assert (same.distilled is None) == (problem.distilled is None)
    if problem.distilled is not None:
        for a, b in zip(same.distilled.jet(x, 0.4, 2), problem.distilled.jet(x, 0.4, 2), strict=True):
            assert torch.equal(a, b)


def models():
    mixture = smooth_mixture()
    yield mixture, (2,)
    yield Gaussian(torch.tensor([0.3, -0.2], dtype=F64), 0.5), (2,)
    yield AnalyticFirst(mixture, 1.0), (2,)
    yield Ideal(mixture), (2,)
    yield Guided(mixture, mixture, 1.0), (2,)
    yield GuidedHeads(mixture, smooth_mixture(), 1.0), (2,)
    yield Learned(network(), head=head()), (1, 4, 4)
    yield Learned(network(), head=head()).distilled, (1, 4, 4)
    yield Autodiff(torch.mul, mixture.schedule), (2,)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize(("model", "event"), list(models()), ids=lambda m: type(m).__name__)
def test_deep_copies_have_bills_of_their_own(model, event, make):
    x = torch.ones(2, *event, dtype=F64)
    jet = model.jet(x, 0.4, 2)
    before = model.spent
    same = make(model)
    inside = make is copy.copy and not hasattr(
        model, "_spent"
    )  # a shallow copy of a wrapper wraps the same model
    assert same.spent == (before if inside else Bill())
    for a, b in zip(same.jet(x, 0.4, 2), jet, strict=True):
        assert torch.equal(a, b)
    assert inside or model.spent == before


def content(value):
    """All that a value is made of, as numbers and names that can be compared."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: content(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [content(part) for part in value]
    return (type(value), content(value.__getstate__())) if hasattr(value, "__dict__") else value


@pytest.mark.parametrize(("model", "event"), list(models()), ids=lambda m: type(m).__name__)
def test_the_state_of_a_model_does_not_change_with_use(model, event):
    fresh = content(model)
    model.jet(torch.ones(2, *event, dtype=F64), 0.4, 2)
    if isinstance(model, Problem):
        assert "average_variance" not in vars(model)
        average = model.average_variance
        assert vars(model)["average_variance"] is average
    assert content(model) == fresh


def test_the_state_is_what_the_model_is():
    """Neither the bill, nor who pays it, nor what was cached: of parts and of parts of parts too."""
    mixture, x = smooth_mixture(), torch.ones(3, 2, dtype=F64)
    names = mixture.__getstate__().keys()
    assert names == {"means", "weights", "schedule", "data_std", "_components", "_flat"}
    mixture.average_variance(x, 0.7)
    part = mixture.part(torch.tensor([0, 2]), 3)
    within = part.part(torch.tensor([1]), 2)
    for model in (mixture, part, within):
        model(x[:1], 0.5)
        assert model.__getstate__().keys() == names
    # One evaluation of all, of two thirds, and of half of these.
    assert mixture.spent == part.spent == within.spent == Bill(1 + 2 / 3 + 1 / 3)
    alone = copy.deepcopy(within)
    alone(x, 0.5)
    assert alone.spent == Bill(1)
    assert mixture.spent == Bill(1 + 2 / 3 + 1 / 3)


def test_an_average_is_estimated_once_for_all_parts_and_anew_for_a_copy():
    problem, x = smooth_mixture(), torch.ones(1, 2, dtype=F64)
    average = problem.average_variance
    value = average(x, 0.7)
    assert problem.part(torch.tensor([0]), 4).average_variance is average
    again = copy.deepcopy(problem).average_variance
    assert isinstance(again, Average)
    assert again._known == copy.deepcopy(average)._known == {}
    assert average._known == {0.7: value.item()}
    assert torch.equal(again(x, 0.7), value)


def test_a_network_in_another_precision_pays_for_itself():
    model = Learned(network(TINY))
    part = model.part(torch.tensor([0]), 2)
    part.to(torch.zeros((), dtype=torch.float32))(states(1), 0.4)
    assert model.spent == Bill()
