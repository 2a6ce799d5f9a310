"""The certificate: it confirms the orders that theory gives, and does not confirm what is wrong."""

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import orders
from analysis.api import Case, certify
from analysis.measure.orders import POINTS, certificates, ladder, obstacle, verdict
from analysis.measure.problems import PROBLEMS, between
from analysis.measure.recursion import moments
from analysis.measure.statistics import Slope
from analysis.methods import FLOWS, FORMS, GRIDS, METHODS, Method, crossed
from analysis.show.published import CLAIMS
from analysis.study.cells import Result
from problems import VE, Gaussian, smooth_mixture, toy_mixture
from solvers import Adams, EulerMaruyama, Node, Taylor
from solvers.grids import alternating


def run(out, *arguments, code=0):
    assert orders.command([*arguments, "--out", str(out)]) == code
    return pd.read_csv(out / "orders.csv")


INTERIOR = ["--start", "0.3", "--stop", "0.1"]


@dataclass(frozen=True)
class WrongTaylor(Taylor):
    """TTM-2 with a second-order term of h² instead of h²/2: consistent, and of order 1."""

    def step(self, eq, y, s0, s1, past):
        jet = eq.jet(y, s0, 2)
        h = s1 - s0
        return y + h * (jet[0] + h * jet[1]), Node(s0, jet)


@dataclass(frozen=True)
class Nowhere(Taylor):
    """A method that divides by zero."""

    def step(self, eq, y, s0, s1, past):
        y, node = super().step(eq, y, s0, s1, past)
        return y / 0.0 * 0.0, node


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    arguments = ["--samples", "32", "--forms", "ddim", "--grids", "linear", "quadratic", "rough", *INTERIOR]
    names = ["ddim", "ttm3", "s-pndm", "f-pndm", "ab2", "ab4", "adams22", "ttm2-ideal-ddim", "ttm2-ideal-pf"]
    return run(tmp_path_factory.mktemp("orders"), *arguments, "--solvers", *names)


@pytest.mark.parametrize("grid", ["linear", "quadratic"])
@pytest.mark.parametrize(
    ("name", "order"),
    [("ddim", 1), ("ttm3", 3), ("s-pndm", 2), ("f-pndm", 2), ("ab2", 2), ("ab4", 4), ("adams22", 4)],
)
def test_orders_that_theory_gives(known, name, order, grid):
    row = known[(known["solver"] == name) & (known["grid"] == grid)].iloc[0]
    assert row["order"] == row["solver_order"] == order
    assert row["slope"] == pytest.approx(order, abs=0.1)
    assert row["slope_low"] <= row["slope"] <= row["slope_high"]
    assert row["verdict"] == "pass"


def test_constant_weights_do_not_survive_a_rough_grid(known):
    """Constant weights are right for equal steps; exact ones keep their order on any grid."""
    rough = known[known["grid"] == "rough"].set_index("solver")
    assert rough.loc["s-pndm", "slope"] == pytest.approx(1.0, abs=0.1)
    assert rough.loc["f-pndm", "slope"] == pytest.approx(1.0, abs=0.15)
    assert rough.loc["ab2", "slope"] == pytest.approx(2.0, abs=0.1)
    assert rough.loc["ab4", "slope"] == pytest.approx(4.0, abs=0.15)


def test_ideal_derivatives_leave_order_one(known):
    rows = known[known["solver"].str.contains("ideal")]
    assert set(rows["form"]) == {"ideal-ddim", "ideal-pf"}  # they keep their own form
    assert (rows["solver_order"] == 2).all()
    assert (rows["order"] == 1).all()
    assert rows["slope"].to_numpy() == pytest.approx(np.ones(len(rows)), abs=0.1)


def test_the_index_is_the_time_where_steps_are_equal_in_it(tmp_path):
    """On the probability-flow ODE, dx/dt, a linear grid is uniform, and F-PNDM is the textbook's AB4."""
    arguments = [
        "--samples",
        "32",
        "--solvers",
        "f-pndm",
        "ab4",
        "--forms",
        "pf",
        "--grids",
        "linear",
        *INTERIOR,
    ]
    f_pndm, ab4 = (row for _, row in run(tmp_path, *arguments).iterrows())
    assert f_pndm["solver_order"] == 2
    assert f_pndm["order"] == 4
    assert f_pndm["verdict"] == "pass"
    assert f_pndm["error"] == pytest.approx(ab4["error"], rel=1e-3)


LAW_AND_PATHS = {
    "euler-maruyama": (1, 1),
    "ddpm": (1, 1),
    "ddpm-beta": (1, 1),
    "sde-dpm-solver++2m": (2, 1),
    "sde-strang": (2, 1),
    "dpm2-ancestral": (2, 1),
    # N independent numbers of size 1/N add up to 1/√N.
    "analytic-ddim": (1, 0.5),
}


@pytest.fixture(scope="module")
def random(tmp_path_factory):
    arguments = [
        "--samples",
        "64",
        "--forms",
        "ddim",
        "--grids",
        "quadratic",
        *INTERIOR,
        "--solvers",
        *LAW_AND_PATHS,
    ]
    return run(tmp_path_factory.mktemp("random"), *arguments).set_index(["solver", "kind"])


@pytest.mark.parametrize("name", LAW_AND_PATHS)
def test_orders_of_random_methods(random, name):
    """In law by theory for all data, along paths that of additive noise; moments have no sampling error."""
    law, paths = LAW_AND_PATHS[name]
    exact, ends = random.loc[(name, "moments")], random.loc[(name, "paths")]
    assert (exact["order"], ends["order"]) == (law, paths)
    assert (exact["verdict"], ends["verdict"]) == ("pass", "pass")
    assert exact["slope"] == pytest.approx(law, abs=0.05)
    assert exact["slope_high"] - exact["slope_low"] < 1e-12
    assert ends["slope_low"] < ends["slope"] < ends["slope_high"]
    assert ends["against"] == ("flow" if paths == 0.5 else "reverse SDE")


def test_a_solution_of_its_own(tmp_path):
    """DDIM(½) has less noise than the reverse SDE, so on no path does it come near that."""
    arguments = [
        "--samples",
        "64",
        "--solvers",
        "ddim-eta0.5",
        "--forms",
        "ddim",
        "--grids",
        "log-snr",
        *INTERIOR,
    ]
    table = run(tmp_path, *arguments).set_index("kind")
    assert table.loc["paths", "against"] == "its own"
    assert table["slope"].to_numpy() == pytest.approx([1.0, 1.0], abs=0.2)


@dataclass(frozen=True)
class TooSure(EulerMaruyama):
    """The Euler–Maruyama method, with an order that it has not."""

    @property
    def order(self):
        return 2


@dataclass(frozen=True)
class Elsewhere(EulerMaruyama):
    """The Euler–Maruyama method on noise that is not that of the path: right in law only."""

    def step(self, eq, y, s0, s1, past):
        end, node = self.inner.step(eq, y, s0, s1, past)
        return end + (s1 - s0) ** 0.5 * eq.fresh(y, s1), node


def test_wrong_random_methods_fail(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "too-sure", Method(TooSure(), FORMS["localization"]))
    monkeypatch.setitem(METHODS, "elsewhere", Method(Elsewhere(), FORMS["localization"]))
    arguments = ["--samples", "192", "--finest", "16", "--grids", "quadratic", *INTERIOR]
    table = run(tmp_path, *arguments, "--solvers", "too-sure", "elsewhere", code=3).set_index(
        ["solver", "kind"]
    )
    assert table["verdict"].to_dict() == {
        ("too-sure", "moments"): "FAIL",
        ("too-sure", "paths"): "pass",
        ("elsewhere", "moments"): "pass",
        ("elsewhere", "paths"): "FAIL",
    }
    assert table.loc[("too-sure", "moments"), "slope"] == pytest.approx(1.0, abs=0.05)
    # Independent distances vary by half their mean: 0.2 in the slope is a standard error of 32 samples.
    assert table.loc[("elsewhere", "paths"), "slope"] == pytest.approx(0.0, abs=0.6)
    assert "2 of 4 certificates pass" in capsys.readouterr().out


def test_moments_of_ddpm_by_hand():
    """x̂₀ = (y + cμ)/(w + c) with c = 1/s², so the variance of y grows by (1 + Δw/(w + c))² and Δw."""
    mean = torch.tensor([0.3, -0.2], dtype=torch.float64)
    problem = between(Gaussian(mean, 0.5), 0.7, 0.05)
    alpha, gamma = problem.schedule.alpha, problem.schedule.gamma
    times = GRIDS["quadratic"].times(7, problem.schedule).tolist()
    w = [gamma(t) ** -2 for t in times]
    m, variance = w[0] * mean, w[0] ** 2 * (0.25 + 1 / w[0])
    for a, b in itertools.pairwise(w):
        m = m + (b - a) * (m + 4 * mean) / (a + 4)
        variance = variance * (1 + (b - a) / (a + 4)) ** 2 + b - a
    found = moments(METHODS["ddpm"], problem, 7)
    scale = alpha(times[-1]) / w[-1]
    assert torch.allclose(found.mean, scale * m, rtol=1e-12)
    expected = scale**2 * variance * torch.eye(2, dtype=torch.float64)
    assert torch.allclose(found.covariance, expected, rtol=1e-12, atol=1e-15)


def test_moments_hold_correlations():
    """Numbers of one direction that enter two coordinates: the covariance is S Sᵀ."""
    mixing = torch.tensor([[1.0, 2.0], [0.0, 0.5]], dtype=torch.float64)

    class Mixed(Taylor):
        def step(self, eq, y, s0, s1, past):
            return eq.normal(y, s0, s1) @ mixing.T + eq.fresh(y, s0)[:, :1] + 3.0, Node(s0, ())

    problem = between(Gaussian(torch.zeros(2, dtype=torch.float64), 0.5), 0.7, 0.05)
    found = moments(Method(Mixed(1), FORMS["pf"]), problem, 1)
    assert found.mean.tolist() == [3.0, 3.0]
    assert torch.allclose(found.covariance, mixing @ mixing.T + 1.0, rtol=1e-15)


def test_what_has_no_order_has_a_reason():
    def reasons(problem):
        return {name: r for name, method in METHODS.items() if (r := obstacle(method, problem))}

    adaptive = {"rk45", "rk45-each", "taylor-each", "adaptive-sde"}
    smooth = reasons(PROBLEMS["smooth"]())
    assert set(smooth) == {*adaptive, "edm-churn", "vesde-pc", "genie"}
    assert {name for name, reason in smooth.items() if "chooses its own steps" in reason} == adaptive
    exploding = reasons(toy_mixture(VE()))
    assert set(exploding) - set(smooth) == {"sde-sscs", "sde-strang"}
    assert "preserves variance" in exploding["sde-strang"]


SMOOTH = smooth_mixture()
INSIDE = 0.3, 0.1
CERTIFIABLE = {name: m for name, m in METHODS.items() if not obstacle(m, SMOOTH)}
STEADY = [name for name, m in CERTIFIABLE.items() if not m.random]
RANDOM = [name for name, m in CERTIFIABLE.items() if m.random]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "grid", "finest"), [*((form, "quadratic", 48) for form in FLOWS), ("ddim", "rough", 96)]
)
def test_every_certificate_of_a_method_without_noise_passes(form, grid, finest):
    """A rough grid tells of the solver, whatever the form; the command itself has five grids."""
    case = Case("smooth", 32)
    table = certify(STEADY, case, finest=finest, interval=INSIDE, forms=[form], grids=[grid])
    # Two names of one solver, like ttm2 and ttm2-pf, differ by their form.
    solvers = {(METHODS[name].solver, METHODS[name].last) for name in STEADY}
    assert solvers == {(METHODS[name].solver, METHODS[name].last) for name in table["solver"]}
    assert (table["kind"] == "ends").all()
    assert (table["verdict"] == "pass").all()
    # Rough grids are told apart from smooth ones: somewhere the order is another.
    assert (table["order"] != table["solver_order"]).any() or grid != "rough"


@pytest.mark.slow
def test_every_certificate_of_a_random_method_passes():
    table = certify(RANDOM, Case("smooth", 64), interval=INSIDE, forms=["ddim"], grids=["quadratic"])
    for kind in ("moments", "paths"):
        assert set(table["solver"][table["kind"] == kind]) == set(RANDOM)
    # Moments are exact with the optimal covariance.
    exact = table[table["verdict"] != "pass"]
    assert set(exact["verdict"]) == {"rounding"}
    assert set(exact["kind"]) == {"moments"}
    assert set(exact["form"]) == {"optimal-ddim", "optimal-ddpm"}


def test_a_last_step_that_is_not_felt_yet_leaves_an_order_open(tmp_path):
    """Of 1,536 equal steps of log-SNR the last, by DDIM, errs too little to hide the order of the rest."""
    words = ["--samples", "8", "--solvers", "unipc2-lower", "--forms", "preconditioned", "--grids", "log-snr"]
    table = run(tmp_path, *words, "--start", "1", "--stop", "0.001")
    assert table["order"].tolist() == [2]
    assert table["slope"].to_numpy() == pytest.approx([3.0], abs=0.05)
    assert table["verdict"].tolist() == ["unsettled"]


@pytest.mark.parametrize(
    ("slope", "low", "high", "said"),
    [
        (1.2, 1.1, 1.3, "pass"),
        (1.3, 1.2, 1.4, "unsettled"),
        (1.4, 1.3, 1.5, "FAIL"),
        (0.6, 0.5, 0.7, "FAIL"),
        (0.7, 0.6, 0.8, "unsettled"),
    ],
)
def test_a_slope_fails_whose_interval_does_not_reach_the_order(slope, low, high, said):
    (c,), problem = certificates("ddim", METHODS["ddim"], SMOOTH.schedule, 0.3), between(SMOOTH, *INSIDE)
    steps = np.array([64, 32, 16])
    arrays = {"steps": steps, "error": steps[:, None] ** -slope, "stands": np.ones(3)}
    assert verdict(c, problem, Slope(slope, low, high), Result({}, arrays)) == said


def test_what_cannot_be_certified_is_told_with_the_reason(tmp_path, monkeypatch, capsys):
    few = {name: METHODS[name] for name in ("ddim", "edm-churn", "rk45")}
    monkeypatch.setattr(orders, "METHODS", few)
    monkeypatch.setattr(orders, "CLAIMS", {})
    table = run(
        tmp_path, "--samples", "8", "--finest", "16", "--forms", "ddim", "--grids", "linear", *INTERIOR
    )
    assert table["solver"].tolist() == ["ddim"]
    printed = capsys.readouterr().out.split("Not certified")[1]
    assert "does not vanish with their size" in printed
    assert "chooses its own steps" in printed


def test_published_claims_are_held_against_what_is_measured(tmp_path, capsys):
    arguments = ["--samples", "16", "--forms", "ddim", "--grids", "log-snr"]
    names = ["dpm-solver-3", "dpm-solver-3m", "unipc2", "unipc3", "heun"]
    table = run(tmp_path, *arguments, "--solvers", *names)
    claims = orders.claims(table).set_index("solver")
    assert list(claims.index) == ["heun", "dpm-solver-3", "unipc2", "unipc3"]  # no publication has the third
    assert claims["claimed"].tolist() == [2, 3, 3, 4]
    assert claims["declared, prior"].tolist() == [2, 3, 3, 4]
    assert claims["declared, interior"].tolist() == [2, 3, 3, 3]
    assert claims["verdict"].tolist()[:3] == ["as claimed"] * 3
    assert claims.loc["unipc3", "verdict"].startswith("MISMATCH on interior: the first step is corrected")
    assert "Published claim against measured order" in capsys.readouterr().out


def test_claims_are_about_methods_and_mismatches_have_a_remark():
    for name, claim in CLAIMS.items():
        assert not obstacle(METHODS[name], PROBLEMS["smooth"]())
        assert (METHODS[name].order < claim.order) == bool(claim.remark)
        assert METHODS[name].prior_order >= claim.order
        assert ", " in claim.source  # a place in the publication


def test_wrong_weights_converge_to_something_else_on_a_rough_grid(tmp_path):
    arguments = [
        "--samples",
        "32",
        "--solvers",
        "ipndm-v",
        "lms",
        "--forms",
        "ddim",
        "--grids",
        "rough",
        *INTERIOR,
    ]
    table = run(tmp_path, *arguments).set_index("solver")
    assert table.loc["ipndm-v", "order"] == 0
    assert table.loc["ipndm-v", "slope"] == pytest.approx(0.0, abs=0.15)
    assert table.loc["lms", "slope"] == pytest.approx(2.0, abs=0.1)


def test_a_late_order_is_looked_for_with_more_steps(tmp_path):
    """UniPC-3 starts with errors of h³, which those of h⁴ hide up to some hundred steps."""
    arguments = [
        "--samples",
        "32",
        "--solvers",
        "unipc3",
        "ddim",
        "--forms",
        "data",
        "--grids",
        "linear",
        *INTERIOR,
    ]
    table = run(tmp_path, *arguments).set_index("solver")
    assert (table["verdict"] == "pass").all()
    assert table.loc["unipc3", "steps"] > 96
    assert table.loc["ddim", "steps"] == 96


def test_a_wrong_method_fails_on_both_intervals(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "wrong", Method(WrongTaylor(2)))
    arguments = [
        "--samples",
        "16",
        "--finest",
        "24",
        "--solvers",
        "ttm2",
        "wrong",
        "--forms",
        "ddim",
        "--grids",
        "quadratic",
    ]
    table = run(tmp_path, *arguments, code=3).set_index(["solver", "interval"])
    assert table["verdict"].to_dict() == {
        ("ttm2", "prior"): "pass",
        ("ttm2", "interior"): "pass",
        ("wrong", "prior"): "FAIL",
        ("wrong", "interior"): "FAIL",
    }
    assert table["start"].tolist() == [1.0, 0.3] * 2
    assert table["stop"].tolist() == [1e-3, 0.1] * 2
    assert table.loc["wrong", "slope"].to_numpy() == pytest.approx([1.0, 1.0], abs=0.1)
    printed = capsys.readouterr().out
    assert "2 of 4 certificates pass" in printed
    assert "quadratic, prior    quadratic, interior" in printed
    assert "Certificates that FAIL" in printed
    run(tmp_path, *arguments[:4], "--solvers", "ttm2", *arguments[7:])


@dataclass(frozen=True)
class Boastful(Adams):
    """A method with two points that is said to be of order 3 once it is started."""

    def well_started(self):
        return Adams(3, start=Taylor(3))


def test_a_poor_start_is_felt_inside_the_flow_and_not_from_the_prior(tmp_path, monkeypatch):
    """But for dx/dt, where a first step errs by α and not by α². What is declared from the prior can fail."""
    monkeypatch.setitem(METHODS, "boastful", Method(Boastful(2)))
    names = ["unipc3", "rho-deis2", "boastful"]
    arguments = ["--samples", "16", "--finest", "48", "--grids", "edm", "--forms"]
    table = run(tmp_path, *arguments, "ddim", "--solvers", *names, code=3).set_index(["solver", "interval"])
    assert table["order"].to_dict() == {
        ("unipc3", "prior"): 4,
        ("unipc3", "interior"): 3,
        ("rho-deis2", "prior"): 3,
        ("rho-deis2", "interior"): 2,
        ("boastful", "prior"): 3,
        ("boastful", "interior"): 2,
    }
    assert table["verdict"].tolist() == ["pass", "pass", "pass", "pass", "FAIL", "pass"]
    flow = run(tmp_path, "--samples", "16", "--grids", "quadratic", "--forms", "pf", "--solvers", "rho-deis2")
    assert flow["order"].tolist() == [2, 2]
    assert flow["verdict"].tolist() == ["pass", "pass"]


def test_slopes_that_do_not_settle_are_named(tmp_path, capsys):
    """Linear steps to t = 0.001, where 384 are coarse still: the slope of 3M moves from 3.4 to 1.4."""
    arguments = [
        "--samples",
        "8",
        "--finest",
        "24",
        "--solvers",
        "dpm-solver-3m",
        "--forms",
        "ddim",
        "--grids",
        "linear",
    ]
    prior, interior = (row for _, row in run(tmp_path, *arguments).iterrows())
    assert (prior["interval"], prior["verdict"], prior["steps"]) == ("prior", "unsettled", 384)
    assert prior["most"] - prior["least"] > 1.0
    assert interior["verdict"] == "pass"
    printed = capsys.readouterr().out
    assert "Unsettled: no order is read off them" in printed
    assert "1 of 2 slopes have not settled" in printed


def test_a_method_without_finite_errors_fails(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "nowhere", Method(Nowhere(1)))
    arguments = ["--samples", "8", "--solvers", "nowhere", "--forms", "ddim", "--grids", "linear", *INTERIOR]
    table = run(tmp_path, *arguments, code=3)
    assert table["verdict"].tolist() == ["FAIL"]


def test_errors_of_rounding_have_no_slope(tmp_path, capsys):
    """On Gaussian data the preconditioned form is exact, so all that is left is rounding."""
    arguments = [
        "--problem",
        "gaussian",
        "--samples",
        "16",
        "--solvers",
        "ddim",
        "--grids",
        "linear",
        *INTERIOR,
    ]
    table = run(tmp_path, *arguments, "--forms", "ddim", "preconditioned").set_index("form")
    assert table.loc["ddim", "verdict"] == "pass"
    assert table.loc["preconditioned", "verdict"] == "rounding"
    assert np.isnan(table.loc["preconditioned", "slope"])
    assert "1 of 1 certificates pass" in capsys.readouterr().out


def test_a_second_run_measures_nothing(tmp_path, written):
    small = ["--samples", "8", "--solvers", "ddim", "--forms", "ddim", "--finest", "32", "--stop", "0.1"]
    run(tmp_path, *small)
    assert len(written) == 5
    run(tmp_path, *small)
    assert len(written) == 5
    run(tmp_path, *small, "--start", "0.4")  # other results, under keys of their own
    run(tmp_path, *small, "--fresh")
    assert len(written) == 15
    assert len(set(written)) == 10


@pytest.mark.parametrize(
    "arguments",
    [
        ["--solvers", "rk45"],
        ["--solvers", "edm-churn"],
        ["--solvers", "optimal-ddpm", "--problem", "digits"],
        ["--start", "0.1", "--stop", "0.3"],
        ["--stop", "0.0001"],
        ["--start", "1.5"],
        ["--finest", "8"],
        ["--forms", "ideal-pf"],
    ],
)
def test_mistakes_exit_with_2(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        orders.command([*arguments, "--out", str(tmp_path)])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_ladder_is_even_and_falls_by_halves():
    assert ladder(128) == [128, 64, 32, 16, 8, 4]
    assert all(n % 2 == 0 for n in ladder(177))
    assert len(ladder(16)) == POINTS


def test_steps_that_alternate():
    for steps in (1, 2, 7, 8):
        times = alternating(steps, 3.0, 0.9, 0.1)
        sizes = -times.diff()
        assert times[0] == 0.9
        assert times[-1] == 0.1
        assert sizes[::2].tolist() == pytest.approx([sizes[0].item()] * len(sizes[::2]), rel=1e-12)
        assert sizes[1::2].tolist() == pytest.approx([sizes[0].item() / 3.0] * len(sizes[1::2]), rel=1e-12)


def test_a_problem_between_two_times_is_the_same_problem():
    whole = PROBLEMS["toy"]()
    part = between(whole, 0.5, 0.2)
    assert (part.schedule.start, part.schedule.stop) == (0.5, 0.2)
    assert (whole.schedule.start, whole.schedule.stop) == (1.0, 1e-3)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(part(x, 0.3), whole(x, 0.3))
    assert GRIDS["linear"].times(3, part.schedule).tolist() == pytest.approx([0.5, 0.4, 0.3, 0.2])


def test_crossing_keeps_every_combination_once():
    forms, grids = [FORMS["ddim"], FORMS["pf"]], [GRIDS["linear"], GRIDS["edm"]]
    chosen = {n: METHODS[n] for n in ("ttm2", "ttm2-pf", "ttm2-ideal-pf", "euler-maruyama")}
    rows = [(name, m.form.name, m.grid.name) for name, m in crossed(chosen, forms, grids)]
    assert [r for r in rows if r[2] == "edm"] == [
        ("ttm2", "ddim", "edm"),
        ("ttm2", "pf", "edm"),
        ("ttm2-ideal-pf", "ideal-pf", "edm"),
        ("euler-maruyama", "sde", "edm"),
    ]
    own = [(name, m.form.name) for name, m in crossed(chosen, None, grids[:1])]
    assert own == [
        ("ttm2", "ddim"),
        ("ttm2-pf", "pf"),
        ("ttm2-ideal-pf", "ideal-pf"),
        ("euler-maruyama", "sde"),
    ]
