"""Networks side by side: closed forms on Gaussians, losses that are known, ends that are no numbers."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import smoothness
from analysis.command.experiment import Outcome
from analysis.measure import reference
from analysis.measure.case import Case
from analysis.measure.problems import PROBLEMS
from analysis.measure.smoothness import training_loss
from analysis.study.cells import Result, Study
from analysis.study.store import Store
from problems import VP, Gaussian, digits
from problems.images.score import Learned
from solvers import grids
from tests.networks import TINY, network

MEAN, STD = 0.2, 0.5


class Images(Gaussian):
    """One Gaussian of images."""

    def __init__(self, std=STD, size=4):
        super().__init__(torch.full((1, size, size), MEAN, dtype=torch.float64), std)

    def to(self, like):
        return self


@pytest.fixture
def networks(monkeypatch):
    """Two Gaussians and two small networks, by name."""
    config = replace(TINY, data_std=0.6)
    made = {
        "narrow": Images,
        "wide": lambda: Images(0.9),
        "smooth": lambda: Learned(network(config)),
        "other": lambda: Learned(network(config, seed=5)),
        "large": lambda: Images(size=8),
    }
    for name, make in made.items():
        monkeypatch.setitem(PROBLEMS, name, make)
    return made


def run(out, *arguments):
    assert smoothness.command([*arguments, "--out", str(out)]) == 0
    return [pd.read_csv(out / f"smoothness{part}.csv") for part in ("", "-sizes", "-networks")]


def test_errors_and_derivatives_of_gaussians_in_closed_form(networks):
    found = smoothness.network_smoothness(["narrow", "wide"], nfe=(4, 9), t=(0.02, 0.4), samples=12)
    table, sizes, losses, _ = found
    table = table.set_index(["problem", "solver", "nfe"])
    sizes = sizes.set_index(["problem", "t", "order"])
    losses = losses.set_index("problem")
    assert set(table.index.get_level_values("nfe")) == {0, 4, 9}
    schedule = VP()
    x = torch.randn((12, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distance = (x / schedule.alpha(1.0) - MEAN).flatten(1).norm(dim=1).mean().item()
    for name, std in (("narrow", STD), ("wide", 0.9)):
        for nfe in (4, 9):
            gamma = [float(schedule.gamma(t)) for t in grids.power(nfe, 2.0).tolist()]
            exact = math.sqrt((std**2 + gamma[-1] ** 2) / (std**2 + gamma[0] ** 2))
            growth = {"ddim": 1.0, "ttm2": 1.0, "ttm3": 1.0}
            for a, b in pairwise(gamma):
                h, v = b - a, std**2 + a * a
                terms = (h * a / v, h**2 / 2 * std**2 / v**2, -(h**3) / 2 * std**2 * a / v**3)
                for p, solver in enumerate(growth, 1):
                    growth[solver] *= 1.0 + sum(terms[:p])
            for solver, stretch in growth.items():
                expected = schedule.alpha(1e-3) * abs(stretch - exact) * distance
                # Steps that overshoot make more of |x̄| at the start, 600, than is left of it at the end.
                assert table.loc[(name, solver, nfe), "error"] == pytest.approx(expected, rel=1e-9, abs=1e-10)
        for t in (0.02, 0.4):
            gamma = float(schedule.gamma(t))
            v = std**2 + gamma**2
            for order, ratio in ((1, std**2 / v), (2, 3 * std**2 * gamma**2 / v**2)):
                row = sizes.loc[(name, t, order), ["size", "size_low", "size_high"]]
                assert row.tolist() == pytest.approx([ratio] * 3, rel=1e-9)
        # That of the exact score, E (ε - z)²: the posterior variance of the noise, s²/(s² + γ²).
        gamma = schedule.gamma(torch.linspace(1e-3, 1.0, 20001, dtype=torch.float64))
        least = std**2 / (std**2 + gamma**2)
        # The mean of an image's 16 squares has the variance 2/16 of its own square; five standard errors.
        error = float((2 / 16 * least.square().mean() / smoothness.DRAWS) ** 0.5)
        assert losses.loc[name, "loss"] == pytest.approx(float(least.mean()), abs=5 * error)
    assert losses.loc["narrow", "ratio"] == 1.0


def test_small_networks_and_the_store(tmp_path, networks, capsys, monkeypatch):
    monkeypatch.setattr(reference, "STEPS", (8, 16))
    arguments = ["--networks", "smooth", "other", "--samples", "4", "--nfe", "3", "--show", "3", "--t", "0.4"]
    table, sizes, losses = tables = run(tmp_path, *arguments)
    assert list(table["problem"].unique()) == ["smooth", "other"]
    assert len(table) == 2 * (1 + 3)
    assert len(sizes) == 2 * 2
    assert losses["loss"].isna().all()
    told = (tmp_path / "smoothness.md").read_text(encoding="utf-8")
    assert "nan: the training data of smooth, other are not at hand" in told
    assert (tmp_path / "smoothness.png").stat().st_size > 2_000
    assert json.loads((tmp_path / "smoothness.json").read_text())["arguments"]["problem"] == "smooth"
    assert "reference" in capsys.readouterr().out
    store = Store(tmp_path / "store.sqlite")
    monkeypatch.setattr(Store, "write", lambda *_: pytest.fail("it is measured again"))
    again = smoothness.network_smoothness(
        ["smooth", "other"], nfe=[3], t=[0.4], samples=4, study=Study(store)
    )
    store.close()
    for before, after in zip(tables, again, strict=False):
        pd.testing.assert_frame_equal(before, after, rtol=0.0, atol=0.0)


def test_a_model_that_knows_the_images_has_no_loss():
    """The noise is (x - α x0)/σ, for each image at its own time."""
    images = digits()[0]

    class Knowing(Images):
        def sample(self, n, t=None, generator=None):
            return images[:n]

        def __call__(self, x, t):
            return (x - self.schedule.alpha(t)[:, None, None, None] * self.sample(len(x))) / (
                self.schedule.sigma(t)[:, None, None, None]
            )

    # (x - α x0)/σ has an error of 1e-16 |x|/σ, and σ is .01 at least.
    assert (training_loss(Case(Knowing(size=8), 4), 500)["loss"] < 1e-26).all()


def test_batches_have_the_same_losses_and_sizes(networks):
    whole, parts = (
        smoothness.network_smoothness([Case("narrow", 6, batch=n)], "ddim", [2], [0.4]) for n in (2000, 4)
    )
    for name in ("errors", "sizes", "losses"):
        pd.testing.assert_frame_equal(getattr(whole, name), getattr(parts, name), rtol=1e-9)


def test_what_leaves_the_numbers_is_drawn_where_it_is_finite(tmp_path, networks, capsys):
    """As a result of errors: a method that fails is a row of the table, and no failure of the command."""
    finite, broken = ({"x": np.zeros((2, 1, 4, 4)), "error": np.array([1.0, e])} for e in (3.0, np.inf))
    broken["x"] = broken["x"] + np.inf
    results = [
        Result({"problem": p, "solver": s, "nfe": n}, arrays)
        for p in ("smooth", "other")
        for s, n, arrays in (("exact", 0, finite), ("ddim", 5, finite), ("ttm3", 5, broken))
    ]
    table = smoothness.errors(results).set_index(["problem", "solver"])
    assert table.loc[("other", "ddim"), "error"] == 2.0
    assert math.isnan(table.loc[("other", "ttm3"), "error"])
    sizes = pd.DataFrame(
        [
            {"problem": p, "t": t, "order": k, "size": 1.0, "size_low": 0.5, "size_high": 2.0}
            for p in ("smooth", "other")
            for t in (0.1, 0.5)
            for k in (1, 2)
        ]
    )
    losses = pd.DataFrame({"problem": ["smooth", "other"]}).assign(
        **{f"{name}{end}": 1.0 for name in ("loss", "ratio") for end in ("", "_low", "_high")}
    )
    found = smoothness.Smoothness(table.reset_index(), sizes, losses, results)
    smoothness.report(None, Outcome(found.errors, extra=found))
    assert "nan: a trajectory left the range of numbers" in capsys.readouterr().out
    smoothness.drawn(found, 5).savefig(tmp_path / "figure.png", dpi=50)
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--networks", "narrow", "large"], "large and narrow differ in images or schedule"),
        (["--networks", "narrow", "nobody"], "unknown problem 'nobody'"),
        (["--networks", "narrow", "wide", "--problem", "wide"], "type --networks wide and further ones"),
        (["--networks", "toy"], "toy has states of shape (2,), and images"),
        (["--networks", "narrow", "--t", "0"], "--t 0 is outside [0.001, 1]"),
        (["--networks", "narrow", "--solvers", "f-pndm"], "needs at least 12 NFE"),
        (["--networks", "narrow", "--solvers", "genie"], "has no distilled head"),
    ],
)
def test_mistakes(arguments, said, tmp_path, networks, capsys):
    with pytest.raises(SystemExit) as left:
        smoothness.command([*arguments, "--samples", "3", "--out", str(tmp_path)])
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
