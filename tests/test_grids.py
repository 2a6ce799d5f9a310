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
