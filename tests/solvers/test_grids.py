import math

import pytest
import torch

from analysis.methods import GRIDS as NAMED
from analysis.methods.grids import leading_from, shift
from problems import EDM, VP, CosineVP, FlowMatching, Table, rescale_betas_zero_snr
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
    "shifted": lambda n, **k: grids.shifted(n, 3.0, **k),
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


def test_the_rough_grid_alternates_between_two_thirds_and_one_third():
    """What multistep methods with constant weights are certified on: a long step first, twice as long."""
    from analysis.methods import GRIDS as NAMED

    whole = VP_.start - VP_.stop
    for steps in (2, 4, 10):
        sizes = -NAMED["rough"].times(steps, VP_).diff() * steps / whole
        assert sizes.tolist() == pytest.approx([4 / 3, 2 / 3] * (steps // 2), rel=1e-12)
    assert (-grids.alternating(3).diff()).tolist() == pytest.approx([0.4 * whole, 0.2 * whole, 0.4 * whole])


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


def test_shift_is_a_factor_of_gamma():
    """Esser et al. (2024): t/(1 - t) of the shifted time is s times that of the equally spaced one."""
    times = grids.shifted(10, 3.0, 0.999, 1e-3)
    u = times / (1.0 - times) / 3.0
    u = u / (1.0 + u)
    assert torch.allclose(u.diff(), u.diff().mean().expand(10), rtol=1e-10)
    assert torch.allclose(grids.shifted(10, 1.0), grids.power(10, 1.0), rtol=1e-13)
    named = shift(1.5)
    assert named.name == "shift1.5"
    assert named.times(4, FlowMatching()).tolist() == grids.shifted(4, 1.5, 0.999, 1e-3).tolist()


@pytest.mark.parametrize("steps", [1, 4, 9, 27])
@pytest.mark.parametrize("s", [1.0, 3.0])
def test_shifted_sigmas_are_those_of_diffusers(steps, s):
    """n = steps + 1 sigmas from 1 down to the last before 0, which is where the denoising begins."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=s)
    scheduler.set_timesteps(steps + 1)
    sigmas = scheduler.sigmas.double()
    assert sigmas[-1] == 0.0
    ours = grids.shifted(steps, s, 1.0, float(sigmas[-2]))
    assert torch.allclose(ours, sigmas[:-1], rtol=1e-6)


LINEAR = Table.linear()
COUNTS = [1, 2, 3, 7, 10, 15, 20, 25, 30, 50, 99, 100, 333, 500, 999]


def visited(name, n, **options):
    """The nodes that a scheduler of diffusers visits in n inference steps."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(n)
    return [float(t) for t in scheduler.timesteps]


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_grids_of_nodes_are_those_of_ddim(spacing, steps):
    """All steps + 1 times: the last inference step, at node 0, is the denoising."""
    ours = NAMED[spacing].times(steps, LINEAR).tolist()
    assert ours == visited("DDIMScheduler", steps + 1, timestep_spacing=spacing)
    assert ours[-1] == LINEAR.stop


@pytest.mark.parametrize("steps", COUNTS[:-2])
@pytest.mark.parametrize("offset", [1, 2])
def test_leading_with_an_offset(offset, steps):
    """The times before the stop; PNDM visits the second of them twice."""
    ours = leading_from(offset).times(steps, LINEAR).tolist()
    options = {"timestep_spacing": "leading", "steps_offset": offset}
    assert ours[:-1] == visited("DDIMScheduler", steps, **options)
    assert ours[-1] == 0.0
    if steps > 1:
        theirs = visited("PNDMScheduler", steps, skip_prk_steps=True, **options)
        assert ours[:-1] == sorted(set(theirs), reverse=True)


@pytest.mark.parametrize("steps", [*COUNTS[:-1], 48, 96, 112])
def test_trailing(steps):
    """Where N i/n is a half too. For n = 61 and others diffusers visits a node -1 besides, by rounding."""
    ours = NAMED["trailing"].times(steps, LINEAR).tolist()
    assert ours[:-1] == visited("DDIMScheduler", steps, timestep_spacing="trailing")
    assert ours[-1] == 0.0


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize("steps", [1, 3, 10, 20, 25, 50, 333])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_grids_of_nodes_are_those_of_dpm_solver(spacing, steps):
    """The times before the stop, which is the node of ``sigma_min``."""
    ours = NAMED[spacing].times(steps, LINEAR).tolist()
    options = {"timestep_spacing": spacing, "final_sigmas_type": "sigma_min"}
    assert ours[:-1] == visited("DPMSolverMultistepScheduler", steps, **options)
    assert ours[-1] == 0.0


def test_zero_terminal_tables_start_at_the_last_finite_node():
    table = Table(rescale_betas_zero_snr(LINEAR.betas))
    assert NAMED["trailing"].times(10, table).tolist()[:3] == [998.0, 899.0, 799.0]
    assert NAMED["linspace"].times(9, table).tolist()[:2] == [998.0, 888.0]


def test_grids_of_nodes_need_nodes():
    with pytest.raises(ValueError, match="need a table of beta, which VP is not"):
        NAMED["trailing"].times(10, VP_)
    with pytest.raises(ValueError, match="times between 0 and 1, and those of Table go up to 999"):
        NAMED["shift3"].times(10, LINEAR)
    with pytest.raises(ValueError, match="take fewer steps, or the whole table"):
        NAMED["leading"].times(1000, LINEAR)
    with pytest.raises(ValueError, match="take fewer steps, or the whole table"):
        NAMED["trailing"].times(10, Table(LINEAR.betas, start=500.0))
    with pytest.raises(ValueError, match="at least one step"):
        NAMED["linspace"].times(0, LINEAR)
