"""What solvers say of themselves, and what they need of an equation."""

import pytest
import torch

from problems import DDIM, Brownian, Gaussian, ReverseSDE, smooth_mixture
from solvers import (
    RK4,
    RK45,
    Adams,
    AdaptiveSDE,
    Ancestral,
    Churn,
    Corrected,
    DormandPrince,
    Equation,
    EulerMaruyama,
    Exact,
    Heun,
    Index,
    LangevinCorrector,
    LogSNR,
    Maruyama,
    Midpoint,
    Pairs,
    ReverseDiffusion,
    SingleStep,
    Taylor,
    TaylorSteps,
    Time,
    VariableIPNDM,
    final,
    march,
)
from solvers.interface import noisy

F64 = torch.float64


class Plain:
    """An ODE: the DDIM form and no source of noise."""

    def __init__(self, form):
        self.schedule, self._form = form.schedule, form
        self.jet, self.eps, self.s, self.t = form.jet, form.eps, form.s, form.t
        self.enter, self.leave = form.enter, form.leave

    @property
    def spent(self):
        return self._form.spent

    def part(self, rows, of):
        return Plain(self._form.part(rows, of))


def start(n=6):
    return torch.randn(n, 2, dtype=F64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "solver",
    [
        Taylor(2),
        Heun(),
        Adams(2, clock=LogSNR()),
        Corrected(Adams(2, clock=Pairs()), 2),
        SingleStep(),
        DormandPrince(),
        TaylorSteps(),
        RK45(),
        Ancestral(eta=0.0),
        Churn(Heun(), 0.0),
    ],
    ids=repr,
)
def test_an_ode_needs_no_noise(solver):
    """The same states as on the form, which has some."""
    form, times = DDIM(smooth_mixture()), [1.0, 0.5, 0.2, 0.1]
    a, b = (final(march(eq, solver, times, start())).x for eq in (Plain(form), form))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    "solver",
    [
        EulerMaruyama(),
        Maruyama(Heun()),
        Ancestral(),
        ReverseDiffusion(),
        Churn(Heun()),
        LangevinCorrector(),
        AdaptiveSDE(),
    ],
    ids=repr,
)
def test_a_stochastic_method_says_that_it_needs_noise(solver):
    with pytest.raises(ValueError, match="Plain has no source of noise"):
        final(march(Plain(DDIM(smooth_mixture())), solver, [0.5, 0.4], start()))


def test_noisy_returns_the_equation_itself():
    eq: Equation = DDIM(smooth_mixture())
    assert noisy(eq) is eq


COUPLED = [
    RK45(1e-3, 1e-3),
    LangevinCorrector(),
    Churn(RK45(1e-3, 1e-3)),
    Maruyama(LangevinCorrector()),
    Corrected(RK45(1e-3, 1e-3)),
    Adams(2, start=RK45(1e-3, 1e-3)),
    Adams(3, start=Adams(2, start=RK45(1e-3, 1e-3))),
]
UNCOUPLED = [
    Taylor(2),
    RK4(Time()),
    SingleStep(),
    Adams(4),
    Adams(3, start=Heun()),
    Corrected(Adams(2), 2),
    Churn(Heun()),
    Ancestral(Midpoint(LogSNR())),
    Maruyama(Adams(2)),
    DormandPrince(1e-3, 1e-3),
    TaylorSteps(),
]


@pytest.mark.parametrize("solver", COUPLED + UNCOUPLED, ids=repr)
def test_coupled_is_whether_halves_go_other_ways_than_the_whole(solver):
    problem, noise, times = smooth_mixture(), Brownian(1), [0.9, 0.6, 0.3, 0.2]
    x, halves = start(), [torch.arange(3), torch.arange(3, 6)]
    whole = final(march(DDIM(problem, noise), solver, times, x)).x
    parts = [final(march(DDIM(problem, noise.part(rows)), solver, times, x[rows])).x for rows in halves]
    apart = float((torch.cat(parts) - whole).abs().max())
    assert solver.coupled == (solver in COUPLED)
    assert apart > 1e-9 if solver.coupled else apart < 1e-11


def test_the_adaptive_sde_solver_is_not_coupled():
    """See ``test_the_adaptive_method_belongs_to_the_sample`` for its paths."""
    assert not AdaptiveSDE().coupled


@pytest.mark.parametrize(
    ("solver", "order", "even"),
    [
        (Adams(4, clock=Index(), start=RK4(Time())), 2, 4),
        (Adams(4, clock=Index(), start=RK4()), 2, 4),
        (Adams(2, clock=Index(), start=Heun(LogSNR())), 2, 2),
        (Adams(3, clock=Index(), start=Taylor(2)), 2, 3),
        (Adams(4, clock=Index()), 2, 2),
        (VariableIPNDM(clock=Index()), 2, 2),
        (Adams(4, start=RK4(Time())), 3, 3),
        (Adams(4, clock=LogSNR(), start=RK4()), 2, 2),
        (Adams(4, clock=Exact(Time()), start=RK4()), 4, 4),
        (Maruyama(Adams(4, clock=Index(), start=RK4())), 2, 2),
        (RK4(Time()), 2, 2),
        (Taylor(3), 3, 3),
    ],
    ids=repr,
)
def test_orders_on_equal_steps(solver, order, even):
    """Weights for equal steps are exact there, so the order is that of the method on its own variable."""
    assert (solver.order, solver.even_order) == (order, even)


def test_the_order_on_equal_steps_is_what_is_seen():
    """F-PNDM with RK4 in its own variable, on equal steps of γ: order 4."""
    problem = Gaussian(torch.tensor([0.3, -0.2], dtype=F64), 0.5)
    form, solver = DDIM(problem), Adams(4, clock=Index(), start=RK4())
    exact, errors = problem.solution(start(), 0.5, 0.3), []
    for n in (80, 160):
        places = torch.linspace(form.s(0.5), form.s(0.3), n + 1, dtype=F64).tolist()
        end = final(march(form, solver, [form.t(s) for s in places], start())).x
        errors.append(float((end - exact).norm()))
    assert 2.0**3.75 < errors[0] / errors[1] < 2.0**4.25


@pytest.mark.parametrize(
    ("solver", "follows"),
    [
        (Ancestral(), True),
        (Ancestral(Midpoint(LogSNR())), True),
        (ReverseDiffusion(), True),
        (Ancestral(eta=0.5), False),
        (ReverseDiffusion(eta=0.0), False),
        (Churn(Heun()), False),
        (LangevinCorrector(), False),
        (Maruyama(Ancestral()), False),
        (EulerMaruyama(), False),
        (Taylor(1), False),
    ],
    ids=repr,
)
def test_which_methods_follow_the_reverse_sde(solver, follows):
    assert solver.follows_sde == follows


@pytest.mark.parametrize("solver", [DormandPrince(), TaylorSteps(), RK45()], ids=repr)
def test_the_node_of_an_adaptive_step_is_that_of_its_beginning(solver):
    eq = DDIM(smooth_mixture())
    y = eq.enter(start(), 0.5)
    _, node = solver.step(eq, y, eq.s(0.5), eq.s(0.4), ())
    assert node.s == eq.s(0.5)
    assert node.y is y
    assert not node.jet or torch.equal(node.jet[0], eq.jet(y, eq.s(0.5))[0])


def test_the_node_of_the_adaptive_sde_solver_is_that_of_its_beginning():
    eq, y = ReverseSDE(smooth_mixture(), Brownian(0)), start()
    _, node = AdaptiveSDE().step(eq, y, 0.5, 0.4, ())
    assert node.y is y
    assert torch.equal(node.jet[0], eq.jet(y, 0.5)[0])
