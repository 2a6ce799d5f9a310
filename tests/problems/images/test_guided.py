"""Guided images as a problem: what guidance of two networks with labels typed by hand gives."""

import dataclasses

import pytest
import torch

from analysis.measure import reference as module
from analysis.measure.problems import PROBLEMS
from analysis.measure.reference import reference
from analysis.methods import METHODS
from analysis.study.keys import Keys
from problems import Guided
from problems.images.guided import GuidedImages
from problems.images.score import Learned
from problems.labelled import InTurn
from tests.networks import TINY, head, network, states

CLASSES = dataclasses.replace(TINY, classes=3)


@pytest.fixture(scope="module")
def learned():
    return Learned(network(CLASSES))


def test_classes_come_in_turn(learned):
    x = states(7)
    by_hand = learned.labelled(torch.tensor([0, 1, 2, 0, 1, 2, 0]))
    for found, expected in zip(
        learned.labelled(InTurn(3)).jet(x, 0.3, 3), by_hand.jet(x, 0.3, 3), strict=True
    ):
        assert (found == expected).all()


@pytest.mark.parametrize("w", [0.0, 1.0, 4.0])
def test_guidance_is_that_of_two_networks(learned, w):
    x = states(5)
    by_hand = Guided(learned.labelled(torch.tensor([0, 1, 2, 0, 1])), learned.labelled(None), w)
    for found, expected in zip(GuidedImages(learned, w).jet(x, 0.3, 3), by_hand.jet(x, 0.3, 3), strict=True):
        assert (found == expected).all()


def test_it_costs_twice(learned):
    problem = GuidedImages(learned, 1.0)
    METHODS["ttm2"].sample(problem, 4, states(2))
    assert (problem.spent.nfe, problem.spent.jvp) == (8, 8)
    assert METHODS["ddim"].steps(problem, 10) == 5


def test_in_another_precision_it_is_the_same_problem_with_a_bill_of_its_own(learned):
    problem = GuidedImages(learned, 2.0)
    problem(states(2), 0.5)
    single = problem.to(torch.empty(0, dtype=torch.float32))
    assert single.spent.nfe == 0
    assert single.dtype == torch.float32
    assert (single(states(2), 0.5) - problem(states(2), 0.5)).abs().max() < 1e-4
    assert problem.spent.nfe == 4


def test_another_scale_is_another_problem(learned):
    one, same, other = (Keys().value(GuidedImages(learned, w))[0] for w in (1.0, 1.0, 2.0))
    assert one == same != other


def test_the_shipped_one_knows_its_data():
    problem = PROBLEMS["digits-guided"]()
    assert problem.event_shape == (1, 8, 8)
    assert problem.sample(3, None, torch.Generator().manual_seed(0)).shape == (3, 1, 8, 8)


def test_a_network_without_classes_cannot_be_guided():
    with pytest.raises(ValueError, match="needs a network with classes"):
        GuidedImages(Learned(network()), 1.0)


def test_heads_are_those_of_two_networks():
    with_head = Learned(network(CLASSES), head=head(config=CLASSES))
    by_hand = Guided(with_head.labelled(torch.tensor([0, 1, 2, 0, 1])), with_head.labelled(None), 2.0)
    x = states(5)
    found = GuidedImages(with_head, 2.0).distilled.jet(x, 0.3, 2)
    for value, expected in zip(found, by_hand.distilled.jet(x, 0.3, 2), strict=True):
        assert (value == expected).all()


def test_without_a_head_there_is_none(learned):
    assert GuidedImages(learned, 1.0).distilled is None


def test_there_is_no_average_over_scores_of_many_classes():
    problem = PROBLEMS["digits-guided"]()
    assert problem.average_variance is None
    assert problem.posterior_variance is None
    assert problem.conditional.average_variance is None


def test_the_reference_keeps_states_in_their_places(learned, monkeypatch):
    """Some trajectories are solved again with more steps; each has the class of its place all the while."""
    sizes, solve = [], module._adams

    def counted(score, x, times, steps):
        sizes.append(len(x))
        return solve(score, x, times, steps)

    monkeypatch.setattr(module, "STEPS", (16, 1024))
    monkeypatch.setattr(module, "_adams", counted)
    x = 2.0 * states(6)
    found = reference(learned.labelled(InTurn(3)), x, (1.0, 0.01), tolerance=0.032)
    assert sizes == [6, 6, 6, 3]
    for label in range(3):
        alone = reference(learned.labelled(label), x[label::3], (1.0, 0.01), tolerance=0.032)
        assert (found.x[-1, label::3] - alone.x[-1]).flatten(1).norm(dim=1).max() < 2e-3
