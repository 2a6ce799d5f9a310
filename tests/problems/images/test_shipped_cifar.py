"""The shipped network of CIFAR-10 at 16 x 16: size, cards, and what its classifier makes of its samples."""

from dataclasses import replace

import pytest
import torch

from analysis.measure.features import classifier, features
from analysis.measure.problems import latents, opened
from analysis.methods import METHODS
from problems.images import checkpoints
from problems.images.classifier import load, shipped
from problems.images.score import weights

NAMES = {"cifar10-16": "score network", "cifar10-16-head": "head", "cifar10-16-classifier": "classifier"}


def test_they_take_at_most_eight_megabytes_and_say_that_the_data_are_jpegs():
    assert sum(weights(name).stat().st_size for name in NAMES) <= 8e6
    for name, kind in NAMES.items():
        found = checkpoints.load(weights(name), kind)
        assert {tensor.dtype for tensor in found.tensors.values()} == {torch.float16}
        assert found.card["data"]["resolution"] == 16
        assert "JPEG" in found.card["data"]["note"]
        assert found.card["command"].startswith("python -m problems.images.")
        assert " /" not in found.card["command"]
    assert "JPEG" in opened("cifar10-16").note
    assert checkpoints.load(weights("cifar10-16"), "score network").card["images_seen"] >= 2_000_000


def test_the_classifier_was_tested_on_all_images_of_the_test_set():
    test = load(weights("cifar10-16-classifier"))[1]["test"]
    assert test["images"] == 10_000
    assert 0.5 < test["low"] < test["accuracy"] < test["high"]


def test_samples_are_of_the_classes_they_were_asked_for():
    """The classifier, which had no part in the training, says so of three times as many as chance would."""
    problem = opened("cifar10-16")
    x = latents(problem, 60, 0)
    ends = replace(METHODS["ddim"], denoise=True).sample(problem.to(torch.zeros(())), 10, x)
    with torch.inference_mode():
        said = shipped("cifar10-16")(ends.float()).argmax(1)
    right = float((said == torch.arange(60) % 10).double().mean())
    assert right >= 0.3
    assert ends.abs().mean() < 1.0


def test_features_and_the_head_are_found():
    problem = opened("cifar10-16")
    (look,) = features(["classifier"], problem)
    assert look.name == classifier(problem).name == "CIFAR-10 classifier"
    x = latents(problem, 2, 0)
    assert look.of(x).shape == (2, 64)
    eps, slope = problem.distilled.flow_jet(x, float(problem.schedule.gamma(0.3)), 2)
    assert eps.isfinite().all()
    assert slope.isfinite().all()
    assert problem.tariff.head == pytest.approx(0.2, abs=0.2)
