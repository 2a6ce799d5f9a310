"""Every state of a march is that of the scheduler of diffusers, on the ε of the toy mixture.

A scheduler is driven with its own noise levels: the march goes through the times at which γ is exactly
theirs, and both ask the same ε(x, γ). Schedulers keep their tables in float32; here the tables are taken as
they are, and calculated with in float64, which leaves rounding (``ROUNDING``) unless a scheduler rounds on
its way.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from analysis.methods import METHODS
from problems import DDIM, VP, Preconditioned, toy_mixture
from solvers import (
    RK4,
    Adams,
    Corrected,
    DPMSolver3M,
    Exact,
    Heun,
    Index,
    LogSNR,
    Midpoint,
    Pairs,
    PlainLogSNR,
    SingleStep,
    Taylor,
    march,
)
from solvers.clock import Variable

diffusers = pytest.importorskip("diffusers")

# What numpy 2 has to say of its arrays made of torch tensors, and itself of the ε-version of DPM-Solver.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*dpmsolver:FutureWarning"),
]

F64 = torch.float64
SCHEDULE = VP()
STEPS = 10

ROUNDING = 1e-11
"""Relative, of float64: 1e-16 times what cancels in divided differences; 1e-12 is the most that is seen."""

FLOAT32 = 1e-6
"""Where a scheduler rounds to float32, 6e-8, at ten steps: DPMSolverMultistep the state before every step."""


@pytest.fixture(autouse=True)
def _double():
    """UniPC makes tensors of its coefficients, in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(before)


def made(name, steps=STEPS, **options):
    """Return the scheduler, ready for so many steps, its tables in float64."""
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(steps)
    for table in ("alphas_cumprod", "final_alpha_cumprod", "sigmas", "sigmas_interpol", "betas"):
        if isinstance(value := getattr(scheduler, table, None), torch.Tensor):
            setattr(scheduler, table, value.double())
    return scheduler


def gamma_of(abar):
    return math.sqrt((1.0 - abar) / abar)


def table(scheduler):
    """Return γ at the integer timesteps."""
    return [gamma_of(a) for a in scheduler.alphas_cumprod.tolist()]


def evaluated(scheduler):
    """Return γ at every evaluation and at the end, for schedulers that keep a list of them."""
    gammas = scheduler.sigmas.tolist()
    if hasattr(scheduler, "sigmas_interpol"):  # KDPM2: at the interpolated level every other time
        between = scheduler.sigmas_interpol.tolist()
        return [between[k] if k % 2 else g for k, g in enumerate(gammas)]
    return gammas


def driven(scheduler, score, x, gammas) -> Iterator[torch.Tensor]:
    """Yield the sample after every evaluation."""
    for t, gamma in zip(scheduler.timesteps, gammas, strict=False):
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(score(scaled, SCHEDULE.time(gamma)), t, x).prev_sample
        yield x


def start():
    return torch.randn(16, 2, dtype=F64, generator=torch.Generator().manual_seed(0))


def assert_agrees(form, solver, gammas, x, published, tolerance):
    """Compare all states; ``published`` yields the states after the first."""
    times = [SCHEDULE.time(g) for g in gammas]
    states = list(march(form(toy_mixture()), solver, times, x))[1:]
    published = list(published)
    assert len(states) == len(published)
    for state, expected in zip(states, published, strict=True):
        assert (state.x - expected).norm() <= tolerance * expected.norm()


def scaled_down(samples, gammas):
    """Return states x = α x̄ of those of a scheduler in (x̄, σ = γ)."""
    return [x / math.sqrt(1.0 + g * g) for x, g in zip(samples, gammas, strict=True)]


# --- On the table of ᾱ


def test_ddim():
    """The last step goes to γ = 0."""
    scheduler = made("DDIMScheduler", clip_sample=False)
    gammas = [table(scheduler)[t] for t in scheduler.timesteps.tolist()]
    published = driven(scheduler, toy_mixture(), start(), gammas)
    assert_agrees(DDIM, Taylor(1), [*gammas, 0.0], start(), published, ROUNDING)


@dataclass(frozen=True)
class Timestep(Variable):
    """The clock of PNDM's midpoints: the index in a table of γ, which is the time t up to O(1/1000)."""

    gammas: tuple[float, ...]

    def read(self, eq, s):
        return float(np.interp(s, self.gammas, np.arange(len(self.gammas))))

    def place(self, eq, reading):
        return self.gammas[round(reading)]


def test_f_pndm():
    """PNDM with its Runge-Kutta warm-up; its midpoints are integer timesteps, where 1000/steps is even."""
    scheduler = made("PNDMScheduler", set_alpha_to_one=True)
    levels = table(scheduler)
    gammas = [levels[t] for t in scheduler.timesteps.tolist()]
    samples = list(driven(scheduler, toy_mixture(), start(), gammas))
    solver = Adams(4, clock=Index(), start=RK4(Timestep(tuple(levels))))
    stops = [levels[t] for t in range(900, -1, -100)]
    assert_agrees(DDIM, solver, [*stops, 0.0], start(), samples[3:12:4] + samples[12:], ROUNDING)


def test_plms():
    """PNDM without the Runge-Kutta warm-up: Heun, then Adams-Bashforth weights of growing order."""
    scheduler = made("PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=True)
    levels = table(scheduler)
    gammas = [levels[t] for t in scheduler.timesteps.tolist()]
    samples = list(driven(scheduler, toy_mixture(), start(), gammas))
    solver = Heun()
    for k in (2, 3, 4):
        solver = Adams(k, clock=Index(), start=solver)
    stops = [levels[t] for t in range(900, -1, -100)]
    assert_agrees(DDIM, solver, [*stops, 0.0], start(), samples[1:], ROUNDING)


def test_ipndm():
    """The scheduler's model predicts v = α ε - σ x₀, and its noise levels are a list of σ."""
    sigmas = torch.linspace(0.999, 0.02, STEPS + 1)
    scheduler = made("IPNDMScheduler", trained_betas=sigmas.numpy())
    scheduler.alphas = (1.0 - scheduler.betas**2).sqrt()
    gammas = (scheduler.betas / scheduler.alphas).tolist()
    toy = toy_mixture()

    def v(x, t):
        return (toy(x, t) - SCHEDULE.sigma(t) * x) / SCHEDULE.alpha(t)

    published = driven(scheduler, v, start(), gammas)
    assert_agrees(DDIM, Adams(4, clock=Index()), gammas, start(), published, ROUNDING)


# --- k-diffusion's, in (x̄, σ)


@pytest.mark.parametrize(
    ("name", "solver", "tolerance"),
    [("HeunDiscreteScheduler", Heun(), ROUNDING), ("KDPM2DiscreteScheduler", Midpoint(LogSNR()), FLOAT32)],
)
@pytest.mark.parametrize("karras", [False, True])
def test_two_stages(name, solver, tolerance, karras):
    """KDPM2 finds its midpoints in float32. The last step, Euler's to σ = 0, is left out."""
    scheduler = made(name, use_karras_sigmas=karras)
    gammas = evaluated(scheduler)
    stops = scheduler.sigmas.tolist()[: 2 * STEPS : 2]
    x = start()
    samples = list(driven(scheduler, toy_mixture(), x * math.sqrt(1.0 + stops[0] ** 2), gammas))
    ends = scaled_down(samples[1::2], stops[1:])
    assert_agrees(DDIM, solver, stops, x, ends, tolerance)


@pytest.mark.parametrize("karras", [False, True])
def test_lms(karras):
    """To σ = 0."""
    scheduler = made("LMSDiscreteScheduler", use_karras_sigmas=karras)
    gammas = evaluated(scheduler)
    x = start()
    samples = driven(scheduler, toy_mixture(), x * math.sqrt(1.0 + gammas[0] ** 2), gammas)
    assert_agrees(DDIM, Adams(4), gammas, x, scaled_down(samples, gammas[1:]), ROUNDING)


# --- Exponential integrators; their last step ends at the least level of the table, not at 0


def multistep(k, kind):
    """Return what DPMSolverMultistep is: for order 3 the same whatever the solver_type."""
    clock = LogSNR() if kind == "midpoint" else Exact(LogSNR())
    return (Taylor(1), Adams(2, clock=clock), DPMSolver3M(start=Adams(2, clock=clock)))[k - 1]


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_dpm_solver_multistep(k, lower, algorithm, kind):
    """With ``lower_order_final`` as well."""
    scheduler = made(
        "DPMSolverMultistepScheduler",
        solver_order=k,
        algorithm_type=algorithm,
        solver_type=kind,
        lower_order_final=lower,
        final_sigmas_type="sigma_min",
    )
    gammas = evaluated(scheduler)
    published = driven(scheduler, toy_mixture(), start(), gammas)
    form = DDIM if algorithm == "dpmsolver" else Preconditioned
    orders = [min(k, STEPS - n) if lower else k for n in range(STEPS)]
    solvers = [multistep(order, kind) for order in orders]
    assert_agrees(form, solvers, gammas, start(), published, FLOAT32)


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
def test_dpm_solver_singlestep_2(algorithm, kind):
    """The stages are every other level of the grid, so r₁ differs from step to step."""
    scheduler = made(
        "DPMSolverSinglestepScheduler",
        solver_order=2,
        algorithm_type=algorithm,
        solver_type=kind,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    gammas = evaluated(scheduler)
    samples = list(driven(scheduler, toy_mixture(), start(), gammas))
    clock = LogSNR() if kind == "midpoint" else Exact(LogSNR())
    stops = gammas[::2]
    solvers = [
        SingleStep((math.log(middle / a) / math.log(b / a),), clock)
        for (a, b), middle in zip(itertools.pairwise(stops), gammas[1::2], strict=True)
    ]
    form = DDIM if algorithm == "dpmsolver" else Preconditioned
    assert_agrees(form, solvers, stops, start(), samples[1::2], ROUNDING)


@dataclass(frozen=True)
class SingleStep3(SingleStep):
    """diffusers' order 3: DPM-Solver-3, but the second stage believes the log-SNR, as its order 2 does."""

    def _line(self, eq, y, nodes, s1):
        fraction = math.log(s1 / nodes[0].s) / self.whole
        line = (
            SingleStep(clock=LogSNR())
            if len(nodes) == 2 and fraction < 0.999
            else SingleStep(clock=self.clock)
        )
        return line._line(eq, y, nodes, s1)

    whole: float = 0.0


@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
def test_dpm_solver_singlestep_3(algorithm):
    scheduler = made(
        "DPMSolverSinglestepScheduler",
        9,
        solver_order=3,
        algorithm_type=algorithm,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    gammas = evaluated(scheduler)
    samples = list(driven(scheduler, toy_mixture(), start(), gammas))
    stops = gammas[::3]
    form, sign = (DDIM, 1.0) if algorithm == "dpmsolver" else (Preconditioned, -1.0)
    solvers = []
    for (a, b), one, two in zip(itertools.pairwise(stops), gammas[1::3], gammas[2::3], strict=True):
        whole = math.log(b / a)
        fractions = (math.log(one / a) / whole, math.log(two / a) / whole)
        solvers.append(SingleStep3(fractions, Exact(LogSNR()), sign * whole))
    assert_agrees(form, solvers, stops, start(), samples[2::3], ROUNDING)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_deis(k):
    """diffusers has log-ρ AB-DEIS."""
    scheduler = made("DEISMultistepScheduler", solver_order=k, lower_order_final=False)
    gammas = evaluated(scheduler)
    published = driven(scheduler, toy_mixture(), start(), gammas)
    assert_agrees(DDIM, Adams(k, clock=Exact(LogSNR())), gammas, start(), published, ROUNDING)


@pytest.mark.parametrize("predicted", ["ε", "x0"])
@pytest.mark.parametrize("kind", ["bh1", "bh2"])
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_unipc(k, lower, kind, predicted):
    scheduler = made(
        "UniPCMultistepScheduler",
        solver_order=k,
        solver_type=kind,
        predict_x0=predicted == "x0",
        lower_order_final=lower,
        final_sigmas_type="sigma_min",
    )
    gammas = evaluated(scheduler)
    # The state that a scheduler returns is the predicted one, and so is that of a march.
    published = driven(scheduler, toy_mixture(), start(), gammas)
    clock = Pairs(PlainLogSNR() if kind == "bh1" else LogSNR())
    orders = [min(k, STEPS - n) if lower else k for n in range(STEPS)]
    solvers = [
        Corrected(Adams(order, clock=clock), before, clock)
        for before, order in itertools.pairwise([k, *orders])
    ]
    form = Preconditioned if predicted == "x0" else DDIM
    assert_agrees(form, solvers, gammas, start(), published, ROUNDING)


def test_the_named_variants_of_lower_order_final():
    """Those that the tests above compare step by step, here by their names."""

    def lowered(k, made):
        return [made(min(k, STEPS - n)) for n in range(STEPS)]

    def deis(k):
        return Adams(k, clock=Exact(LogSNR())) if k > 1 else Taylor(1)

    for k in (2, 3):
        name = f"dpm-solver++{k}m-lower"
        assert METHODS[name].solvers(STEPS) == lowered(k, lambda k: multistep(k, "midpoint"))
        assert METHODS[f"log-deis{k - 1}-lower"].solvers(STEPS) == lowered(k, deis)
        orders = [k, *lowered(k, int)]
        assert METHODS[f"unipc{k}-lower"].solvers(STEPS) == [
            Corrected(Adams(order, clock=Pairs()), before, Pairs())
            for before, order in itertools.pairwise(orders)
        ]
