"""Interpolation: closed forms on a Gaussian, and strips whose ends are what encoding and decoding make."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import interpolate
from analysis.measure.case import Case
from analysis.measure.features import classifier
from analysis.measure.interpolation import exact_strips, mixed, strip_errors
from analysis.measure.problems import PROBLEMS
from analysis.methods import FORMS, METHODS, Method
from analysis.study.cells import Study
from analysis.study.store import Store
from problems import VP, Gaussian, denoise
from problems.images.score import Learned
from problems.images.sources import Samples
from solvers import Taylor, grids
from tests.networks import head, network, states

STD = 0.5
POINTS = 5
NFE = 6
PAIRS = 8
SCHEDULE = VP(start=0.5, stop=0.1)


def gaussian():
    """Images of 4 by 4 pixels, whose mean is not zero."""
    return Gaussian(states(1)[0], STD)


def learned():
    """A small network with random weights and a head, on a part of the schedule, with images to draw."""
    images = Samples(
        lambda n, source: (torch.randn((n, 1, 4, 4), generator=source), None),
        torch.Size((1, 4, 4)),
        1.0,
        0,
        {},
    )
    return Learned(network(schedule=SCHEDULE), head=head(), data=lambda: images)


def drawn(problem, pairs):
    """The same images as the command's."""
    return problem.sample(2 * pairs, problem.schedule.stop, torch.Generator().manual_seed(0))


def run(out, problem, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROBLEMS, "ours", problem)
        assert interpolate.command(["--problem", "ours", *arguments, "--out", str(out)]) == 0
    return pd.read_csv(out / "interpolate.csv")


def growth(gamma):
    """How DDIM stretches x̄ - μ on a Gaussian: each step by 1 + h γ/(s² + γ²)."""
    return math.prod(1.0 + (b - a) * a / (STD**2 + a * a) for a, b in pairwise(gamma))


# --- Eq. 82


def test_latents_keep_their_variance():
    """(1 - b) + b = 1: independent normal latents have normal mixtures of the same variance."""
    one, zero = torch.ones(1, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    weights = [mixed(torch.cat(z), 7) for z in ((one, zero), (zero, one))]
    assert torch.allclose(weights[0] ** 2 + weights[1] ** 2, torch.ones(7, 1, 3, dtype=torch.float64))
    b = torch.linspace(0.0, 1.0, 7, dtype=torch.float64)[:, None, None].expand(7, 1, 3)
    assert torch.allclose(weights[1] ** 2, b, atol=1e-15)


def test_the_ends_of_a_path_are_the_latents():
    z = states(6)
    path = mixed(z, 4)
    assert path.shape == (4, 3, 1, 4, 4)
    assert torch.equal(path[0], z[:3])
    assert torch.equal(path[-1], z[3:])


# --- the study


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    return tmp_path_factory.mktemp("gaussian")


@pytest.fixture(scope="module")
def table(printed):
    arguments = ["--samples", f"{PAIRS}", "--points", f"{POINTS}", "--nfe", f"{NFE}"]
    return run(printed, gaussian, *arguments, "--solvers", "ddim", "f-pndm", "ttm2", "s-pndm")


def test_the_error_of_ddim_on_a_gaussian_is_known_in_closed_form(table):
    """Encoding stretches x̄ - μ by G, decoding by H, denoising shrinks it by s²/(s² + γ²).

    The mixtures of the latents have (√(1-b) + √b) μ for a mean, and μ is not zero.
    """
    problem, schedule = gaussian(), VP()
    there = [float(schedule.gamma(t)) for t in grids.power(NFE, 2.0).flip(0).tolist()]
    back = [float(schedule.gamma(t)) for t in grids.power(NFE - 1, 2.0).tolist()]
    exact = math.sqrt((STD**2 + there[0] ** 2) / (STD**2 + there[-1] ** 2))
    shrink = STD**2 / (STD**2 + there[0] ** 2)
    d0, d1 = (drawn(problem, PAIRS) / schedule.alpha(schedule.stop) - problem.mean).chunk(2)
    rows = table[table["solver"] == "ddim"]
    assert list(rows["b"]) == [0.0, 0.25, 0.5, 0.75, 1.0]
    for b, error in rows[["b", "error"]].to_numpy():
        a, c = math.sqrt(1.0 - b), math.sqrt(b)
        offset = (a + c - 1.0) * (growth(back) - exact) * problem.mean
        apart = offset + (growth(back) * growth(there) - 1.0) * (a * d0 + c * d1)
        # Numbers of size 150 at t = 1, and a reference that errs by some 1e-12.
        assert error == pytest.approx(shrink * float(apart.flatten(1).norm(dim=1).mean()), abs=1e-10)


def test_the_exact_strip_of_a_gaussian_is_known_in_closed_form():
    """Everything but the mean comes back as it went."""
    problem, schedule = gaussian(), VP()
    pairs = drawn(problem, 3)
    arrays = exact_strips(Case(problem, 3), POINTS)
    gamma = [float(schedule.gamma(t)) for t in (schedule.stop, schedule.start)]
    flow = math.sqrt((STD**2 + gamma[0] ** 2) / (STD**2 + gamma[1] ** 2))
    shrink = STD**2 / (STD**2 + gamma[0] ** 2)
    d0, d1 = (pairs / schedule.alpha(schedule.stop) - problem.mean).chunk(2)
    for i in range(POINTS):
        a, c = math.sqrt(1.0 - i / (POINTS - 1)), math.sqrt(i / (POINTS - 1))
        apart = (a + c - 1.0) * flow * problem.mean + a * d0 + c * d1
        assert np.abs(arrays["strips"][i] - (problem.mean + shrink * apart).numpy()).max() <= 1e-10
    assert arrays["error"] <= 1e-10
    ends = np.concatenate([arrays["strips"][0], arrays["strips"][-1]])
    assert np.array_equal(ends, denoise(problem, pairs, schedule.stop).numpy())


def test_budgets_hold_each_way(table):
    """The denoising is paid for on the way back; S-PNDM pays for its start."""
    steps = {"ddim": (6, 5), "ttm2": (6, 5), "s-pndm": (5, 4)}
    for solver, expected in steps.items():
        rows = table[table["solver"] == solver]
        assert set(zip(rows["encode_steps"], rows["steps"], strict=True)) == {expected}
        assert (rows["encode_nfe"] == NFE).all()
        assert (rows["nfe"] == NFE).all()
        assert (rows["jvp"] == (5 if solver == "ttm2" else 0)).all()


def test_a_straight_flow_comes_back():
    """On the form of the data's own standard deviation a Gaussian is solved exactly by any method."""
    straight = Method(Taylor(1), FORMS["preconditioned"])
    table = interpolate.strips(Case(gaussian(), 3), {"straight": straight}, [4], 3)
    assert (table["error"] < 1e-10).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("network")


ARGUMENTS = ("--samples", "3", "--points", "3", "--nfe", "4", "8")


@pytest.fixture(scope="module")
def strips(folder):
    return run(folder, learned, *ARGUMENTS)


def test_the_ends_are_what_encoding_and_decoding_make(strips):
    problem = learned()
    pairs = drawn(problem, 3)
    target = denoise(problem, pairs, SCHEDULE.stop)
    assert list(dict.fromkeys(strips["solver"])) == ["ddim", "ttm2", "s-pndm", "genie"]
    for solver, rows in strips.groupby("solver"):
        for nfe, part in rows.groupby("nfe_budget"):
            late = solver == "s-pndm"
            z = METHODS[solver].encode(problem, nfe - late, pairs)
            found = denoise(problem, METHODS[solver].sample(problem, nfe - 1 - late, z), SCHEDULE.stop)
            expected = (found - target).flatten(1).norm(dim=1)
            for b, of in ((0.0, expected[:3]), (1.0, expected[3:])):
                error = part[part["b"] == b]["error"].item()
                # Sums of at most 144 terms in a dozen layers, some tens of roundings of states of order one.
                assert error == pytest.approx(float(of.mean()), abs=1e-12)


def test_strips_approach_the_exact_one(strips):
    """Twice the budget: DDIM comes twice as near in the limit, TTM-2 four times."""
    for solver in ("ddim", "ttm2"):
        few, many = (strips[(strips["solver"] == solver) & (strips["nfe_budget"] == n)] for n in (4, 8))
        assert (many["error"].to_numpy() < few["error"].to_numpy()).all()
    assert (strips["reference_error"] < 1e-3 * strips["error"].min()).all()


def test_heads_are_billed(strips):
    rows = strips[(strips["solver"] == "genie") & (strips["nfe_budget"] == 8)]
    assert (rows[["encode_nfe", "nfe", "jvp", "head"]].to_numpy() == [8, 8, 0, 7]).all()


def test_a_second_run_by_the_function_measures_nothing(strips, folder, written):
    store = Store(folder / "store.sqlite")
    case, methods = Case(learned(), 3, name="ours"), ["ddim", "ttm2", "s-pndm", "genie"]
    again = interpolate.strips(case, methods, [4, 8], 3, Study(store))
    store.close()
    assert written == []
    pd.testing.assert_frame_equal(again, strips)


def test_batches_of_images_have_the_same_strips():
    case, target, features = Case(learned(), 3), np.zeros((3, 3, 1, 4, 4)), classifier(learned())
    method = replace(METHODS["ttm2"], denoise=True)
    whole, parts = (strip_errors(c, method, 3, 3, target, features) for c in (case, case.but(batch=4)))
    # Sums of at most 144 terms in a dozen layers, some tens of roundings of states of order one.
    assert parts["error"] == pytest.approx(whole["error"], abs=1e-12)
    assert (parts["encode_nfe"], parts["nfe"], parts["jvp"]) == (3, 4, 3)


def test_figures(strips, folder):
    width = int.from_bytes((folder / "interpolate.png").read_bytes()[16:20], "big")
    assert width == 135  # 6.75 inches at 20 dots each


def test_a_budget_that_does_not_reach_is_a_note(table, printed):
    assert set(table["solver"]) == {"ddim", "ttm2", "s-pndm"}
    # Twelve for its start, and one for the denoising.
    note = f"N/A: f-pndm needs at least 13 NFE (3 steps), so {NFE} are too few"
    assert note in (printed / "interpolate.md").read_text(encoding="utf-8")


def test_images_that_are_not_at_hand_are_a_mistake():
    with pytest.raises(ValueError, match="not at hand"):
        interpolate.strips(Case(Learned(network(schedule=SCHEDULE)), 2))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--problem", "toy"], "strips are made of images, which toy has none of"),
        (["--solvers", "euler-maruyama"], "stochastic and cannot encode"),
        (["--solvers", "rk45"], "chooses its own steps"),
        (["--solvers", "f-pndm", "--nfe", "5"], "are too few; type a larger number"),
        (["--points", "1"], "two ends"),
    ],
)
def test_mistakes_exit_with_2_and_write_nothing(arguments, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        interpolate.command([*arguments, "--out", str(tmp_path)])
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1
    assert not list(tmp_path.glob("interpolate*"))
