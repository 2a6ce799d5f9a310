"""The error budget: closed forms on Gaussians, parts that vanish, shares that add up."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import budget
from analysis.command.experiment import Outcome
from analysis.measure.case import Case
from analysis.measure.error_parts import chain, compared, split
from analysis.measure.problems import PROBLEMS
from analysis.methods import METHODS
from analysis.study.cells import Study
from analysis.study.store import Store
from problems import VP, CosineVP, Gaussian, Ideal, Mixture
from problems.images.score import Learned
from solvers import grids
from tests.networks import TINY, head, network, states

MEAN, STD = (0.3, -0.2), 0.5  # of the problem "gaussian", the truth
OTHER, WIDTH = (0.1, 0.25), 0.8  # of what was "learned" instead


class WithHead(Gaussian):
    """A Gaussian with a "head" that gives its exact derivative."""

    @property
    def distilled(self):
        return self

    def to(self, like):
        return type(self)(self.mean.to(like), self.std, self.schedule)


class WithZero(WithHead):
    """One with a "head" that says zero, with which GENIE is DDIM."""

    @property
    def distilled(self):
        return Ideal(self)


def vector(values):
    return torch.tensor(values, dtype=torch.float64)


def learned(kind=Gaussian, mean=OTHER, std=WIDTH):
    return kind(vector(mean), std)


def measured(problem, samples, **options):
    """The parts and the distances, as tables that rows are found in."""
    found = budget.error_budget(Case(problem, samples), "gaussian", **options)
    parts = found.parts.set_index(["solver", "nfe", "part"]).sort_index()
    return parts, found.pointwise.set_index(["pair", "t"])


def latents(n):
    return torch.randn((n, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_parts_of_two_gaussians_in_closed_form():
    """The flow of N(μ, s²) stretches x̄ - μ by √((s²+γ²)/(s²+γ₀²)), DDIM by Π (1 + h γ/(s²+γ²))."""
    table, _ = measured(learned(), 30, nfe=(6, 11), t=(0.3,))
    schedule = VP()
    xbar, ends = latents(30) / schedule.alpha(1.0), {}
    start, stop = float(schedule.gamma(1.0)), float(schedule.gamma(1e-3))
    for name, mean, std in (("truth", MEAN, STD), ("own", OTHER, WIDTH)):
        mu, growth = vector(mean), math.sqrt((std**2 + stop**2) / (std**2 + start**2))
        ends[name] = mu + growth * (xbar - mu)
    for nfe in (6, 11):
        gamma = [float(schedule.gamma(t)) for t in grids.power(nfe, 2.0).tolist()]
        euler = math.prod(1.0 + (b - a) * a / (WIDTH**2 + a * a) for a, b in pairwise(gamma))
        end = vector(OTHER) + euler * (xbar - vector(OTHER))
        parts = {"discretisation": end - ends["own"], "score network": ends["own"] - ends["truth"]}
        error, alpha = end - ends["truth"], schedule.alpha(1e-3)
        for name, part in {**parts, "total": error}.items():
            row = table.loc[("ddim", nfe, name)]
            share = (part * error).sum(1) / error.norm(dim=1)
            # |x̄| is 150 at the start: some units of rounding of that.
            assert row["norm"] == pytest.approx(alpha * part.norm(dim=1).mean().item(), abs=1e-11)
            assert row["share"] == pytest.approx(alpha * share.mean().item(), abs=1e-11)
            assert row["fraction"] == pytest.approx(
                (share.mean() / error.norm(dim=1).mean()).item(), rel=1e-9
            )


def test_relative_errors_of_two_gaussians_in_closed_form():
    """ε = γ (x̄ - μ)/(s² + γ²) and dε/dγ = s² (x̄ - μ)/(s² + γ²)², on the exact flow of the truth."""
    times = (0.001, 0.05, 0.4, 1.0)
    _, local = measured(learned(WithZero), 25, nfe=(3,), t=times)
    schedule = VP()
    first = float(schedule.gamma(1.0))
    mu, other = vector(MEAN), vector(OTHER)
    for t in times:
        gamma = float(schedule.gamma(t))
        growth = math.sqrt((STD**2 + gamma**2) / (STD**2 + first**2))
        xbar = mu + growth * (latents(25) / schedule.alpha(1.0) - mu)
        a, b = (xbar - other) / (WIDTH**2 + gamma**2), (xbar - mu) / (STD**2 + gamma**2)
        slope_a, slope_b = WIDTH**2 * a / (WIDTH**2 + gamma**2), STD**2 * b / (STD**2 + gamma**2)
        assert local.loc[("eps", t), "error"] == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-9)
        ratio = float((slope_a - slope_b).norm() / slope_b.norm())
        assert local.loc[("slope", t), "error"] == pytest.approx(ratio, rel=1e-9)
        for pair in ("head", "head_exact"):  # that says zero
            row = local.loc[(pair, t)]
            assert row[["error", "error_low", "error_high"]].tolist() == pytest.approx([1.0] * 3, abs=1e-12)


def test_a_head_that_is_zero_makes_genie_ddim():
    table, _ = measured(learned(WithZero), 20, nfe=(5,), t=(0.3,))
    value = table["norm"]
    assert value["genie", 5, "total"] == pytest.approx(value["ddim", 5, "total"], rel=1e-12)
    assert value["genie", 5, "discretisation"] == value["ttm2", 5, "discretisation"]
    assert value["genie", 5, "derivative"] > 0.1 * value["ddim", 5, "discretisation"]


def test_an_exact_head_has_no_part_and_the_truth_itself_no_network_part():
    table, local = measured(learned(WithHead, MEAN, STD), 20, nfe=(4, 9), t=(0.02, 0.5))
    by_part = table.groupby("part")
    for part in ("derivative", "score network"):
        rows = by_part.get_group(part)
        assert (rows[["norm", "norm_high", "share"]].abs() < 1e-11).all(axis=None)
    discretisation, total = (
        by_part.get_group(name).droplevel("part") for name in ("discretisation", "total")
    )
    assert (total["norm"] > 1e-3).all()
    np.testing.assert_allclose(discretisation["norm"], total["norm"], atol=1e-11)
    np.testing.assert_allclose(discretisation["fraction"], 1.0, atol=1e-8)
    assert (local["error"] < 1e-12).all()


def test_shares_add_up_and_norms_obey_the_triangle_inequality():
    source = torch.Generator().manual_seed(0)
    points = [torch.randn(7, 1, 4, 4, generator=source, dtype=torch.float64) for _ in range(4)]
    arrays = split(dict(zip(budget.PARTS, points, strict=False)), points[-1])
    shares = sum(arrays[f"{part} share"] for part in budget.PARTS)
    np.testing.assert_allclose(shares, arrays["total"], rtol=1e-14)
    assert (sum(arrays[part] for part in budget.PARTS) > arrays["total"]).all()
    assert all((abs(arrays[f"{part} share"]) <= arrays[part]).all() for part in budget.PARTS)


def test_parts_in_line_and_against_it():
    """From 3 to 0 through 5 on a line: a part of -2 and one of 5, whose shares are just these."""
    ends = {"discretisation": torch.tensor([[3.0, 0.0]]), "score network": torch.tensor([[5.0, 0.0]])}
    arrays = split(ends, torch.zeros(1, 2))
    assert (arrays["total"], arrays["discretisation"], arrays["score network"]) == (3.0, 2.0, 5.0)
    assert (arrays["discretisation share"], arrays["score network share"]) == (-2.0, 5.0)


def test_no_error_has_no_shares():
    x = torch.ones(3, 2)
    arrays = split({"discretisation": x, "score network": x}, x)
    assert all((a == 0.0).all() for a in arrays.values())


def test_the_chain_of_a_network_with_a_head():
    """Its ends are those of GENIE and of TTM-2; that of the head leads to that of the jets."""
    case = Case(Learned(network(schedule=VP(start=0.5, stop=0.1)), head=head()), 3)
    model, x, own = case.working, case.latents, case.exact().x[-1]
    exact = {"genie": METHODS["ttm2"]}
    ends = {name: chain(case, METHODS[name], exact.get(name), 4) for name in budget.SOLVERS}
    assert list(ends["genie"]) == list(budget.PARTS)
    assert list(ends["ttm2"]) == list(ends["ddim"]) == list(budget.PARTS[1:])
    assert torch.equal(ends["genie"]["discretisation"], ends["ttm2"]["discretisation"])
    assert torch.equal(ends["genie"]["derivative"], METHODS["genie"].sample(model, 4, x))
    assert not torch.allclose(ends["genie"]["derivative"], ends["ttm2"]["discretisation"])
    assert all(torch.equal(parts["score network"], own) for parts in ends.values())


def test_pointwise_on_a_network():
    """Against another network as the truth: the squared norms of jets that are taken here one by one."""
    model, truth, x, t = Learned(network(), head=head()), Learned(network(seed=5)), states(3), 0.4
    arrays = compared(model, truth, x, x, t)
    assert set(arrays) == {name + end for name in budget.PAIRS for end in ("", " size")}
    (eps, slope), exact = model.jet(x, t, 2), truth.jet(x, t, 2)
    said = model.distilled.jet(x, t, 2)[1]
    pairs = {"eps": (eps, exact[0]), "slope": (slope, exact[1])}
    for name, (a, b) in {**pairs, "head": (said, slope), "head_exact": (said, exact[1])}.items():
        expected = (a - b).flatten(1).norm(dim=1).numpy() ** 2
        np.testing.assert_allclose(arrays[name], expected, rtol=1e-11)
        np.testing.assert_allclose(arrays[f"{name} size"], b.flatten(1).norm(dim=1) ** 2, rtol=1e-11)


SCHEDULE = VP(start=0.5, stop=0.1)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """All of it by the command, in float32 against a mixture: the cases, the tables, and the folder."""
    out = tmp_path_factory.mktemp("budget")
    model = Learned(network(replace(TINY, data_std=0.6), SCHEDULE), head=head()).to(torch.zeros(()))
    means = 0.3 * states(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROBLEMS, "small", lambda: model)
        patch.setitem(PROBLEMS, "blobs", lambda: Mixture(means, 0.5, schedule=SCHEDULE))
        arguments = ["--problem", "small", "--truth", "blobs", "--samples", "4", "--nfe", "3", "--t", "0.3"]
        assert budget.command([*arguments, "--out", str(out)]) == 0
        case = Case("small", 4)
        truth = case.on("blobs")
    return case, truth, *(pd.read_csv(out / name) for name in ("budget.csv", "budget-pointwise.csv")), out


def test_a_small_network_with_a_head(small):
    """Bars for three methods, whose parts add up."""
    _, _, parts, local, out = small
    table = parts.set_index(["solver", "nfe", "part"]).sort_index()
    assert len(table) == 3 + 3 + 4
    assert len(local) == 4
    for solver in budget.SOLVERS:
        rows = table.loc[(solver, 3)]
        assert rows["share"].drop("total").sum() == pytest.approx(rows.loc["total", "norm"], rel=1e-12)
        assert rows["fraction"].drop("total").sum() == pytest.approx(1.0, rel=1e-12)
    assert (out / "budget.png").stat().st_size > 2_000
    assert "reference: own error" in (out / "budget.md").read_text(encoding="utf-8")


def test_the_same_again_from_the_store_by_the_function(small, written):
    case, truth, parts, local, out = small
    store = Store(out / "store.sqlite")
    again = budget.error_budget(case, truth, (3,), (0.3,), study=Study(store))
    store.close()
    assert written == []
    pd.testing.assert_frame_equal(again.parts, parts)
    pd.testing.assert_frame_equal(again.pointwise, local)


def test_batches_of_samples_have_the_same_parts(small):
    """A truth of other samples and batches is that of these trajectories all the same."""
    case, truth, parts, local, _ = small
    again = budget.error_budget(case.but(batch=3), truth.but(samples=9, seed=5), (3,), (0.3,))
    # The network evaluates in float32: some tens of roundings of states of order one.
    np.testing.assert_allclose(again.parts["norm"], parts["norm"], atol=1e-5)
    np.testing.assert_allclose(again.pointwise["error"], local["error"], rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--truth", "digits"], "is no exact problem"),
        (["--truth", "toys"], "unknown problem 'toys'"),
        (["--truth", "digits-gaussians"], "differ in event shape"),
        (["--truth", "cosine"], "differ in schedule"),
        (["--t", "1.5"], "--t 1.5 is outside [0.001, 1]"),
        (["--grid", "cubic"], "unknown grid 'cubic'"),
    ],
)
def test_mistakes(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PROBLEMS, "learned", learned)
    cosine = Gaussian(vector(MEAN), STD, CosineVP())
    monkeypatch.setitem(PROBLEMS, "cosine", lambda: cosine)
    usual = ["--problem", "learned", "--truth", "gaussian", "--samples", "3"]
    with pytest.raises(SystemExit) as left:
        budget.command([*usual, *arguments, "--out", str(tmp_path)])
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


def test_without_a_head_there_is_no_genie(capsys):
    found = budget.error_budget(Case(learned(), 5), "gaussian", (4,), (0.3,))
    assert set(found.parts["solver"]) == {"ddim", "ttm2"}
    assert set(found.pointwise["pair"]) == {"eps", "slope"}
    budget.report(None, Outcome(found.parts, extra=found))
    assert "no genie: this network has no distilled head" in capsys.readouterr().out
