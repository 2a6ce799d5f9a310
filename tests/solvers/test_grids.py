import math

import pytest
import torch

from problems import EDM, VP, CosineVP
from solvers import grids

F64 = torch.float64
VP_ = VP()
GRIDS = {
    "linear": lambda n, **k: grids.power(n, 1.0, **k),
    "1.5": lambda n, **k: grids.power(n, 1.5, **k),
    "quadratic": lambda n, **k: grids.power(n, **k),
    "2.5": lambda n, **k: grids.power(n, 2.5, **k),
    "log-SNR": lambda n, **k: grids.log_snr(n, VP_, **k),
    "EDM": lambda n, **k: grids.edm(n, VP_, **k),
    "cosine": lambda n, **k: grids.cosine(n, VP_, **k),
    "sigmoid": lambda n, **k: grids.sigmoid(n, VP_, **k),
}
every_grid = pytest.mark.parametrize("name", GRIDS)


@every_grid
@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
@pytest.mark.parametrize("ends", [(1.0, 1e-3), (0.9, 0.05), (1e-3, 1.0)])
def test_a_grid_is_float64_monotone_and_has_exact_ends(name, steps, ends):
    times = GRIDS[name](steps, start=ends[0], stop=ends[1])
    assert times.dtype == F64
    assert times.shape == (steps + 1,)
    assert (times[0].item(), times[-1].item()) == ends
    assert (times.diff() * (ends[1] - ends[0]) > 0).all()


@every_grid
@pytest.mark.parametrize("steps", [0, -3])
def test_at_least_one_step(name, steps):
    with pytest.raises(ValueError, match="at least one step"):
        GRIDS[name](steps)


@every_grid
def test_defaults_are_the_papers(name):
    assert GRIDS[name](5)[[0, -1]].tolist() == [1.0, 1e-3]


def test_quadratic_striding_is_eq_83():
    """t_n = (1 - (1 - √t_cut) n/N)², typed."""
    n = 25
    expected = [(1 - (1 - math.sqrt(1e-3)) * i / n) ** 2 for i in range(n + 1)]
    assert grids.power(n).tolist() == pytest.approx(expected, rel=1e-13)
    assert grids.power(n, 1.0).tolist() == pytest.approx([1 - 0.999 * i / n for i in range(n + 1)], rel=1e-13)


@pytest.mark.parametrize("schedule", [VP(), VP(0.5, 8.0), CosineVP()])
def test_log_snr_steps_are_equal(schedule):
    times = grids.log_snr(40, schedule, schedule.start, schedule.stop)
    steps = torch.tensor([schedule.log_snr(t) for t in times.tolist()], dtype=F64).diff()
    assert torch.allclose(steps, steps.mean().expand(40), rtol=1e-10)


@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_edm_steps_are_equal_in_a_root_of_gamma(rho):
    times = grids.edm(18, VP_, rho)
    root = torch.tensor([VP_.gamma(t) ** (1 / rho) for t in times.tolist()], dtype=F64)
    assert torch.allclose(root.diff(), root.diff().mean().expand(18), rtol=1e-9)


def test_edm_grid_is_eq_5_of_edm():
    """σ_i = (σ_max^(1/7) + i/(N-1) (σ_min^(1/7) - σ_max^(1/7)))⁷ for i < N = 18, typed; there σ is t."""
    n, low, high = 18, 0.002, 80.0
    expected = [(high ** (1 / 7) + i / (n - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(n)]
    assert grids.edm(n - 1, EDM(), start=high, stop=low).tolist() == pytest.approx(expected, rel=1e-12)


@every_grid
def test_grids_are_nested(name):
    """Twice the steps pass through the same times: the families refine smoothly."""
    assert torch.allclose(GRIDS[name](20)[::2], GRIDS[name](10), rtol=1e-11)


def test_cosine_steps_are_those_of_the_cosine_schedule():
    """Equal steps of τ, tan(πτ/2) = γ, typed."""
    gamma = VP_.gamma(grids.cosine(12, VP_))
    tau = torch.atan(gamma) * 2 / math.pi
    assert torch.allclose(tau.diff(), tau.diff().mean().expand(12), rtol=1e-9)
    assert torch.allclose(torch.cos(math.pi * tau / 2), VP_.alpha(grids.cosine(12, VP_)), rtol=1e-9)


def test_sigmoid_steps_are_those_of_the_sigmoid_schedule():
    """Chen (2023): ᾱ(τ) = (σ(3) - σ(6τ - 3))/(σ(3) - σ(-3)), typed; equal steps in τ."""
    gamma = VP_.gamma(grids.sigmoid(12, VP_))

    def sig(v):
        return 1 / (1 + math.exp(-v))

    level = sig(3) - (sig(3) - sig(-3)) / (1 + gamma**2)
    tau = (torch.log(level / (1 - level)) + 3) / 6
    assert torch.allclose(tau.diff(), tau.diff().mean().expand(12), rtol=1e-9)
    assert 0 < tau[-1] < tau[0] < 1


def test_a_list_is_a_grid_of_its_own_length_and_ends():
    times = (1.0, 0.5, 0.1, 1e-3)
    assert grids.listed(times, 3).tolist() == list(times)
    with pytest.raises(ValueError, match="of 4 times is a grid of 3 steps, not of 4"):
        grids.listed(times, 4)
    with pytest.raises(ValueError, match=r"must begin at 0\.9 and end at 0\.001"):
        grids.listed(times, 3, start=0.9)
