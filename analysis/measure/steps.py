"""Single steps from the exact solution: their errors, and what theory says of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from analysis.measure.case import Case, whole_bill
from analysis.methods import Method
from analysis.study.values import Aside
from problems import Bill, Form, Model
from solvers import LinearRule, Node


def end_of(t: float, dt: float, stop: float) -> float:
    """Return the end of a step; the longest ends at the cut-off, to the last bit."""
    return stop if math.isclose(t - dt, stop, rel_tol=1e-9) else t - dt


def stops_of(t: float, dt: float, reach: int, stop: float) -> list[float]:
    """Return the times at which a step, and the past of a method, need the exact solution."""
    return [end_of(t, dt, stop), *(t + j * dt for j in range(reach + 1))]


def single_step(case: Case, method: Method, t: float, dt: float, times: Aside) -> dict[str, Any]:
    """Measure the error of one step of every trajectory, from the exact solution and with an exact past.

    Parameters
    ----------
    case
        The trajectories.
    method
        The method; its grid does not matter.
    t, dt
        Begin and size of the step.
    times
        The times after the start at which the exact solution is wanted by this step or by others, falling.

    Returns
    -------
    Arrays by name: the L2 errors in x (samples,), the bill, the error of the reference and, for linear rules,
    the norm of the leading term of the error (samples,).
    """
    solution = case.exact(*times.value, tolerance=1e-13)
    exact = dict(zip(solution.times, solution.x, strict=True))
    wanted = stops_of(t, dt, method.solver.reach, case.problem.schedule.stop)
    parts = []
    with torch.no_grad():
        for score, rows in case.split(case.samples, whole=method.coupled):
            states = {time: exact[time][rows] for time in wanted}
            parts.append(_step(case, method, score, states, t, dt))
    bills = [bill for bill, _ in parts]
    bill = whole_bill(sum(bills[1:], start=bills[0]))
    found = {name: torch.cat([arrays[name] for _, arrays in parts]).numpy() for name in parts[0][1]}
    return {**found, "nfe": bill.nfe, "jvp": bill.jvp, "reference_error": solution.error}


def _step(
    case: Case, method: Method, score: Model, exact: dict[float, Tensor], t: float, dt: float
) -> tuple[Bill, dict[str, Tensor]]:
    """Return the bill of one step of a batch, and its errors by name."""
    end = end_of(t, dt, case.problem.schedule.stop)
    eq = method.form.make(score, None)
    state = {j: case.cast(exact[t + j * dt]) for j in range(method.solver.reach + 1)}
    y, s0, s1 = eq.enter(state[0], t), eq.s(t), eq.s(end)
    past: list[Node] = []
    for j in range(1, method.solver.reach + 1):
        # A step of the method itself, for the node that it would remember there.
        time = t + j * dt
        past.append(method.solver.step(eq, eq.enter(state[j], time), eq.s(time), s0, ())[1])
    before = eq.spent
    stepped, _ = method.solver.step(eq, y, s0, s1, tuple(past))
    bill = eq.spent - before
    arrays = {"error": _norm(eq.leave(stepped, end).double().cpu() - exact[end])}
    if isinstance(method.solver, LinearRule) and method.form.exact:
        arrays["theory"] = leading_term(method.solver, eq, y, end, [s0, *(node.s for node in past)])
    return bill, arrays


def leading_term(solver: LinearRule, eq: Form, y: Tensor, end: float, nodes: list[Any]) -> Tensor:
    """Return the norm of the leading error of a linear rule, (samples,), in data space.

    A rule Σ cⱼᵢ f⁽ⁱ⁾(sⱼ) for ∫ f ds errs by Σₘ Eₘ f⁽ᵐ⁾/m! at s0, with Eₘ its error on (s - s0)ᵐ. All terms up
    to m = order are kept: a rule with weights for equal steps errs at lower m too, by little.
    """
    s0, s1 = nodes[0], eq.s(end)
    h = s1 - s0
    jet = eq.jet(y, s0, solver.local_order)
    weights = solver.weights(eq, s1, nodes)
    error = torch.zeros_like(y)
    for m in range(solver.local_order):
        quadrature = sum(
            c * math.perm(m, i) * (s - s0) ** (m - i)
            for s, row in zip(nodes, weights, strict=True)
            for i, c in enumerate(row)
            if i <= m
        )
        error = error + ((h ** (m + 1) / (m + 1) - quadrature) / math.factorial(m)) * jet[m]
    return _norm(eq.leave(error, end).double().cpu())


def _norm(x: Tensor) -> Tensor:
    return torch.as_tensor(torch.linalg.vector_norm(x.flatten(1), dim=1))
