"""Measured orders of convergence: every solver, on every form and every grid, against the declared order.

Order is a local matter, so the interval is short and few steps show it.
"""

import pytest

from problems import DDIM, Preconditioned, ProbabilityFlow
from solvers import (
    RK3,
    RK4,
    Adams,
    Corrected,
    DPMSolver3M,
    EulerMaruyama,
    Exact,
    ExponentialTaylor,
    Heun,
    Heun3,
    Index,
    LogSNR,
    Midpoint,
    Pairs,
    Ralston,
    SingleStep,
    Taylor,
    Time,
    VariableIPNDM,
    final,
    grids,
    march,
)
from tests.conftest import fitted_order

FORMS = {
    "DDIM": DDIM,
    "probability flow": ProbabilityFlow,
    "data": Preconditioned,
    "preconditioned": lambda m: Preconditioned(m, 0.4),
}
GRIDS = {
    "linear": lambda n, r: grids.power(n, 1.0, r.start, r.stop),
    "quadratic": lambda n, r: grids.power(n, 2.0, r.start, r.stop),
    "log-SNR": lambda n, r: grids.log_snr(n, r.problem.schedule, r.start, r.stop),
    "EDM": lambda n, r: grids.edm(n, r.problem.schedule, 7.0, r.start, r.stop),
}
STEPS = (32, 64)

SOLVERS = {
    "DDIM": Taylor(1),
    "TTM-2": Taylor(2),
    "TTM-3": Taylor(3),
    "TTM-5": Taylor(5),
    "AB2": Adams(2),
    "AB3": Adams(3, start=Heun()),
    "AB4": Adams(4, start=RK4()),
    "Adams(2, 2)": Adams(2, 2, start=Taylor(3)),
    "Adams(3, 2)": Adams(3, 2, start=Taylor(5)),
    "S-PNDM": Adams(2, clock=Index(), start=Heun()),
    "F-PNDM": Adams(4, clock=Index(), start=RK4(Time())),
    "DPM++(2M)": Adams(2, clock=LogSNR()),
    "AB2 in t": Adams(2, clock=Time()),
    "tAB-DEIS2": Adams(3, clock=Exact(Time()), start=Heun()),
    "tAB-DEIS3": Adams(4, clock=Exact(Time()), start=RK4()),
    "Heun": Heun(),
    "midpoint": Midpoint(),
    "DPM-2": Midpoint(LogSNR()),
    "RK4": RK4(),
    "RK4 in t": RK4(Time()),
    "Ralston": Ralston(),
    "RK3": RK3(),
    "Heun's third": Heun3(),
    "DPM-3": SingleStep((1 / 3, 2 / 3), Exact(LogSNR())),
    "DPM-3M": DPMSolver3M(start=SingleStep()),
    "DPM-3M, exact": Adams(3, clock=Exact(LogSNR()), start=SingleStep()),
    "exponential TTM-2": ExponentialTaylor(2),
    "exponential TTM-3": ExponentialTaylor(3),
    "UniPC-1": Corrected(Taylor(1)),
    "UniPC-2": Corrected(Adams(2, clock=Pairs()), 2),
    "Euler-Maruyama": EulerMaruyama(),
}


def expected(name, form, grid):
    """The declared order; that of the tableau where the foreign clock is the variable of the equation."""
    if form == "probability flow" and (name == "RK4 in t" or (name, grid) == ("F-PNDM", "linear")):
        return 4
    return SOLVERS[name].order


def measured(solver, form, grid, short, steps=STEPS):
    """The slope of the mean error of 16 trajectories at the end."""
    errors = []
    for n in steps:
        times = GRIDS[grid](n, short)
        end = final(march(FORMS[form](short.problem), solver, times, short.x)).x
        errors.append(float((end - short.end).norm(dim=-1).mean()))
    return fitted_order(steps, errors)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SOLVERS)
def test_measured_order_is_the_declared_one(name, form, grid, short):
    order = measured(SOLVERS[name], form, grid, short)
    assert order == pytest.approx(expected(name, form, grid), abs=0.25)


@pytest.mark.parametrize("name", SOLVERS)
def test_order_of_encoding(name, short):
    """Backwards as well: from the end to the start."""
    errors = []
    for n in STEPS:
        times = GRIDS["log-SNR"](n, short).flip(0)
        begin = final(march(DDIM(short.problem), SOLVERS[name], times, short.end)).x
        errors.append(float((begin - short.x).norm(dim=-1).mean()))
    assert fitted_order(STEPS, errors) == pytest.approx(SOLVERS[name].order, abs=0.25)


@pytest.mark.parametrize(
    ("solver", "order"),
    [(Adams(3), 2), (Adams(4), 2), (Adams(4, start=Heun()), 3), (Adams(2, 2), 3)],
    ids=repr,
)
def test_a_poor_start_holds_a_method_back(solver, order, short):
    """One step of order q at the start costs h^(q + 1), which shows where the method itself is better."""
    assert solver.order == order
    value = measured(solver, "probability flow", "quadratic", short, (64, 128))
    assert value == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("name", ["S-PNDM", "F-PNDM"])
def test_pndm_is_of_second_order_only(name, short):
    """Constant weights on steps that are not constant: 2.00 for both."""
    assert measured(SOLVERS[name], "DDIM", "quadratic", short, (64, 128)) == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (Adams(4), 4),
        (Adams(3, clock=Exact(LogSNR())), 3),
        (Adams(4, clock=Index()), 2),
        (Corrected(Adams(3, clock=Pairs()), 3), 4),
    ],
    ids=repr,
)
def test_the_order_of_a_method_whose_start_is_not_felt(solver, order, short):
    """Inside the flow, with the start that ``well_started`` gives it; with its own it is of order 2 or 3."""
    started = solver.well_started()
    assert (started.order, solver.order) == (order, min(order, 3 if isinstance(solver, Corrected) else 2))
    assert measured(started, "data", "quadratic", short) == pytest.approx(order, abs=0.15)
    assert started.well_started() == started


def test_misprints_are_not_felt_where_all_ratios_of_steps_are_equal(short):
    """The weights of iPNDM_v sum to 1 there. On other smooth grids it is of order 2 with any start."""
    solver = VariableIPNDM().well_started()
    assert (VariableIPNDM().geometric_order, solver.geometric_order, solver.order) == (2, 3, 2)
    assert measured(solver, "data", "log-SNR", short) == pytest.approx(3.0, abs=0.15)
    assert measured(solver, "data", "quadratic", short) == pytest.approx(2.0, abs=0.15)
