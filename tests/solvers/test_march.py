import dataclasses

import pytest
import torch

from problems import (
    DDIM,
    AnalyticFirst,
    Gaussian,
    Preconditioned,
    ProbabilityFlow,
    ReverseSDE,
    smooth_mixture,
)
from solvers import (
    RK4,
    RK45,
    Adams,
    EulerMaruyama,
    Exact,
    Heun,
    Index,
    LogSNR,
    Midpoint,
    Node,
    Own,
    State,
    Taylor,
    Time,
    final,
    grids,
    march,
)
from tests.conftest import distance

F64 = torch.float64
FORMS = [DDIM, ProbabilityFlow, Preconditioned, lambda m: Preconditioned(m, 0.4)]
SOLVERS = [
    Taylor(1),
    Taylor(3),
    Adams(1, 2),
    Adams(4),
    Adams(2, 2, start=Taylor(3)),
    Adams(2, clock=Index(), start=Heun()),
    Adams(4, clock=Index(), start=RK4(Time())),
    Adams(3, clock=Exact(LogSNR())),
    Heun(),
    Midpoint(LogSNR()),
    RK4(),
    RK45(),
    EulerMaruyama(),
]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)
every_form = pytest.mark.parametrize("form", FORMS)


def start(n=5):
    return torch.randn(n, 2, dtype=F64, generator=torch.Generator().manual_seed(0))


@every_form
def test_what_a_march_yields(form):
    times, x = grids.power(4), start()
    states = list(march(form(smooth_mixture()), Heun(), times, x))
    assert all(isinstance(s, State) for s in states)
    assert [s.t for s in states] == times.tolist()
    assert [s.nfe for s in states] == [0, 2, 4, 6, 8]
    assert torch.equal(states[0].x, x)
    assert all(s.x.shape == x.shape and s.x.dtype == x.dtype for s in states)


def test_states_lie_on_the_trajectory():
    """Each state of a fine march is where the closed solution is at that time."""
    problem = Gaussian(torch.tensor([0.3, -1.2], dtype=F64), 0.5)
    x = start()
    for state in march(DDIM(problem), Taylor(8), grids.log_snr(100, problem.schedule), x):
        assert distance(state.x, problem.solution(x, 1.0, state.t)) < 1e-8


def test_final_is_the_last_state():
    eq, times, x = DDIM(smooth_mixture()), grids.power(3), start()
    last = list(march(eq, Taylor(2), times, x))[-1]
    state = final(march(eq, Taylor(2), times, x))
    assert (state.t, state.nfe) == (last.t, last.nfe)
    assert torch.equal(state.x, last.x)


def test_one_time_is_no_step():
    eq, x = DDIM(smooth_mixture()), start()
    (only,) = march(eq, Taylor(2), [0.5], x)
    assert (only.t, only.nfe) == (0.5, 0)
    assert eq.spent.nfe == 0


def test_times_may_be_a_list_or_float32():
    eq, x = DDIM(smooth_mixture()), start()
    a = final(march(eq, Taylor(1), [1.0, 0.5, 0.25], x)).x
    assert torch.equal(a, final(march(eq, Taylor(1), torch.tensor([1.0, 0.5, 0.25]), x)).x)


def test_the_bill_of_a_march_is_its_own():
    """What was spent before does not count."""
    eq = DDIM(smooth_mixture())
    final(march(eq, Taylor(1), grids.power(7), start()))
    assert final(march(eq, Taylor(1), grids.power(3), start())).nfe == 3
    assert eq.spent.nfe == 10


def test_a_march_is_lazy():
    eq = DDIM(smooth_mixture())
    states = march(eq, Taylor(1), grids.power(5), start())
    assert [next(states).nfe for _ in range(3)] == [0, 1, 2]
    assert eq.spent.nfe == 2


@every_solver
@every_form
def test_the_start_is_not_overwritten(solver, form):
    x = start()
    final(march(form(smooth_mixture()), solver, grids.power(4), x))
    assert torch.equal(x, start())


@every_solver
def test_solvers_keep_no_state(solver):
    """The same instance gives the same result twice, also after other work, and cannot be changed."""
    eq, times = DDIM(smooth_mixture()), grids.power(6)
    first = final(march(eq, solver, times, start())).x
    final(march(ProbabilityFlow(smooth_mixture()), solver, grids.power(3, 1.0), 2 * start(9)))
    assert torch.equal(final(march(eq, solver, times, start())).x, first)
    assert hash(solver) == hash(dataclasses.replace(solver))
    assert solver == dataclasses.replace(solver)
    for field in dataclasses.fields(solver):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(solver, field.name, getattr(solver, field.name))


@every_solver
def test_marches_may_be_interleaved(solver):
    eq, times = DDIM(smooth_mixture()), grids.power(5)
    alone = [final(march(eq, solver, times, k * start())).x for k in (1, 2)]
    pair = zip(march(eq, solver, times, start()), march(eq, solver, times, 2 * start()), strict=True)
    *_, (a, b) = pair
    assert torch.equal(a.x, alone[0])
    assert torch.equal(b.x, alone[1])


@every_solver
@every_form
def test_float32_stays_float32(solver, form):
    """Times are float64 and do not promote the states; the result is that of float64 to rounding."""
    eq, times = form(smooth_mixture()), grids.power(6, start=0.9, stop=0.05)
    single = final(march(eq, solver, times, start().float())).x
    assert single.dtype == torch.float32
    assert distance(single.double(), final(march(eq, solver, times, start())).x) < (
        0.05 if isinstance(solver, RK45) else 1e-3
    )


@pytest.mark.parametrize(
    ("form", "solver"),
    [(DDIM, s) for s in SOLVERS if s != RK45()]
    + [(f, s) for f in FORMS[1:] for s in (Taylor(3), SOLVERS[6])],
)
def test_states_of_another_device_stay_there(form, solver):
    """On the meta device, which refuses to mix with others and to be read: no step waits for a result."""
    x = torch.empty(5, 2, device="meta")
    for state in march(form(smooth_mixture()), solver, grids.power(5), x):
        assert (state.x.device.type, state.x.dtype) == ("meta", torch.float32)


@every_form
@pytest.mark.parametrize("solver", [Taylor(8), Adams(2, 4, start=Taylor(8)), RK4()], ids=repr)
def test_encoding_is_the_march_back(form, solver):
    """x at t_cut → 1 → t_cut: each way errs by some c h^p, h = 9.6/100 in log γ, less at higher order."""
    eq, x = form(smooth_mixture()), smooth_mixture().sample(8, 1e-3, torch.Generator().manual_seed(1))
    steps = 100 if solver == RK4() else 400 if isinstance(solver, Adams) else 130
    times = grids.log_snr(steps, eq.schedule)
    latent = final(march(eq, solver, times.flip(0), x)).x
    back = final(march(eq, solver, times, latent)).x
    assert latent.norm(dim=-1).mean() > 0.8
    assert distance(back, x) < (1e-5 if solver == RK4() else 1e-10)


def test_encoding_a_gaussian_gives_the_exact_latent():
    problem = Gaussian(torch.tensor([0.3, -1.2], dtype=F64), 0.5)
    x = problem.sample(8, 1e-3, torch.Generator().manual_seed(1))
    latent = final(march(DDIM(problem), Taylor(8), grids.log_snr(200, problem.schedule).flip(0), x)).x
    assert distance(latent, problem.solution(x, 1e-3, 1.0)) < 1e-10


def test_the_past_is_handed_in_by_value():
    """A step with an exact past is the step of a march that made that past."""
    eq, x = DDIM(smooth_mixture()), start()
    g = [eq.s(t) for t in (0.9, 0.7, 0.5)]
    y0 = eq.enter(x, 0.9)
    y1, node = Taylor(1).step(eq, y0, g[0], g[1], ())
    assert isinstance(node, Node)
    assert node.s == g[0]
    y2, newest = Adams(2).step(eq, y1, g[1], g[2], (node,))
    assert torch.equal(node.jet[0], eq.jet(y0, g[0])[0])
    expected = final(march(eq, Adams(2), [0.9, 0.7, 0.5], x)).x
    assert torch.allclose(eq.leave(y2, 0.5), expected, rtol=1e-14)
    assert torch.equal(newest.jet[0], eq.jet(y1, g[1])[0])


@pytest.mark.parametrize(("solver", "reach"), [(Taylor(4), 0), (Adams(1, 3), 0), (Adams(4), 3), (RK4(), 0)])
def test_reach(solver, reach):
    assert solver.reach == reach


def test_states_of_any_shape():
    problem = Gaussian(torch.zeros(1, 4, 4, dtype=F64), 0.5)
    x = torch.randn(3, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    for solver in SOLVERS:
        state = final(march(DDIM(problem), solver, grids.power(5), x))
        assert state.x.shape == x.shape


def test_stochastic_marches_are_reproducible():
    def run(seed):
        eq = ReverseSDE(smooth_mixture(), torch.Generator().manual_seed(seed))
        return final(march(eq, EulerMaruyama(), grids.power(10), start())).x

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_afs_in_a_march():
    """The first step of DDIM with AFS is x̄ + Δγ x."""
    mixture, x = smooth_mixture(), start()
    _, state = march(DDIM(AnalyticFirst(mixture, 1.0)), Taylor(1), [1.0, 0.8], x)
    a0, a1 = mixture.schedule.alpha(1.0), mixture.schedule.alpha(0.8)
    step = mixture.schedule.gamma(0.8) - mixture.schedule.gamma(1.0)
    assert state.nfe == 0
    assert torch.allclose(state.x, a1 * (x / a0 + step * x), rtol=1e-11)


def test_own_is_the_default_clock():
    assert Adams(3) == Adams(3, clock=Own())
    assert RK4() == RK4(Own())
