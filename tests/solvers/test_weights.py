import functools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy.integrate import quad

from problems import DDIM, VP, Gaussian, Preconditioned, ProbabilityFlow
from solvers import Adams, Exact, Index, LogSNR, Node, Own, Taylor, Time, grids

PROBLEM = Gaussian(torch.zeros(2, dtype=torch.float64), 0.5)
EQ = DDIM(PROBLEM)
FORMS = {
    "DDIM": DDIM(PROBLEM),
    "probability flow": ProbabilityFlow(PROBLEM),
    "data": Preconditioned(PROBLEM),
    "preconditioned": Preconditioned(PROBLEM, 0.3),
}
ADAMS_BASHFORTH = {
    1: [(1, 1)],
    2: [(3, 2), (-1, 2)],
    3: [(23, 12), (-16, 12), (5, 12)],
    4: [(55, 24), (-59, 24), (37, 24), (-9, 24)],
    5: [(1901, 720), (-2774, 720), (2616, 720), (-1274, 720), (251, 720)],
}


def weights(solver, s1, nodes, eq=EQ):
    return solver.weights(eq, s1, nodes)


def flat(rows):
    return [w for row in rows for w in row]


def hermite_basis(nodes, p):
    """The polynomials with i-th derivative 1 at node j and all others zero, by rational coefficients."""
    n = p * len(nodes)
    rows = [
        [Fraction(math.perm(m, i)) * z ** (m - i) if m >= i else Fraction(0) for m in range(n)]
        for z in nodes
        for i in range(p)
    ]
    # Gauss-Jordan elimination of the confluent Vandermonde matrix beside the identity.
    table = [[*row, *(Fraction(int(i == j)) for j in range(n))] for i, row in enumerate(rows)]
    for column in range(n):
        pivot = next(r for r in range(column, n) if table[r][column])
        table[column], table[pivot] = table[pivot], table[column]
        table[column] = [v / table[column][column] for v in table[column]]
        for r in range(n):
            if r != column and table[r][column]:
                factor = table[r][column]
                table[r] = [a - factor * b for a, b in zip(table[r], table[column], strict=True)]
    return [[table[m][n + j] for m in range(n)] for j in range(n)]


def exact_weights(s1, nodes, p):
    """∫ of every basis polynomial over the step, in rational arithmetic, in the variable s - s0."""
    s0 = Fraction(nodes[0])
    shifted = [Fraction(z) - s0 for z in nodes]
    h = Fraction(s1) - s0
    return [sum(c * h ** (m + 1) / (m + 1) for m, c in enumerate(b)) for b in hermite_basis(shifted, p)]


@st.composite
def places(draw, k):
    """s1 and k nodes before it, in either direction, with ratios of neighbouring steps from 1e-3 to 1e3."""
    ratios = draw(st.lists(st.floats(-3.0, 3.0), min_size=k, max_size=k))
    step = draw(st.sampled_from([-1.0, 1.0])) * 10.0 ** draw(st.floats(-2.0, 2.0))
    s1 = draw(st.floats(-10.0, 10.0))
    nodes = [s1 - step]
    for r in ratios[1:]:
        step *= 10.0**r
        nodes.append(nodes[-1] - step)
    return s1, nodes


@pytest.mark.parametrize("k", ADAMS_BASHFORTH)
@pytest.mark.parametrize("h", [0.3, -2.0])
def test_uniform_adams_bashforth(k, h):
    value = flat(weights(Adams(k), 1.0 + h, [1.0 - j * h for j in range(k)]))
    assert value == pytest.approx([h * a / b for a, b in ADAMS_BASHFORTH[k]], rel=1e-13)


@given(h=st.floats(0.01, 100.0), before=st.floats(0.01, 100.0), sign=st.sampled_from([-1.0, 1.0]))
def test_variable_two_step_adams_bashforth(h, before, sign):
    """x̄ += h ε_n + ½h² (ε_n - ε_{n-1})/h_{n-1}."""
    value = flat(weights(Adams(2), sign * h, [0.0, -sign * before]))
    expected = [sign * (h + h**2 / (2 * before)), -sign * h**2 / (2 * before)]
    assert value == pytest.approx(expected, rel=1e-13)


def test_two_nodes_with_derivatives():
    """The uniform Adams(2, 2): h(-1/2, 3/2) and h²(17/12, 7/12), the order conditions solved by hand."""
    h = 0.7
    (a, b), (c, d) = weights(Adams(2, 2), h, [0.0, -h])
    assert [a / h, c / h, b / h**2, d / h**2] == pytest.approx([-1 / 2, 3 / 2, 17 / 12, 7 / 12], rel=1e-13)


@pytest.mark.parametrize(("k", "p"), [(1, 1), (1, 4), (2, 1), (2, 2), (2, 3), (3, 2), (4, 1), (4, 2), (5, 1)])
@given(data=st.data())
def test_rules_against_rational_arithmetic(k, p, data):
    """On grids of any ratio: polynomials of degree k p - 1 are integrated as by the exact rule.

    What counts is the error of the integral. For q(s) = ((s - s0)/H)ᵐ with H the span of the nodes it is
    compared with the size of its terms, to rounding.
    """
    s1, nodes = data.draw(places(k))
    value = flat(weights(Adams(k, p), s1, nodes))
    s0, span = Fraction(nodes[0]), max(abs(Fraction(z) - Fraction(nodes[0])) for z in (s1, *nodes))
    h = (Fraction(s1) - s0) / span
    for m in range(k * p):
        scaled = [(Fraction(z) - s0) / span for z in nodes]
        derivatives = [
            math.perm(m, i) * z ** (m - i) / span**i if m >= i else Fraction(0)
            for z in scaled
            for i in range(p)
        ]
        terms = [Fraction(w) * d for w, d in zip(value, derivatives, strict=True)]
        exact = span * h ** (m + 1) / (m + 1)
        size = sum(abs(t) for t in terms) + abs(exact)
        assert abs(sum(terms) - exact) <= Fraction(1, 10**13) * size


@pytest.mark.parametrize(("k", "p"), [(2, 1), (3, 1), (4, 1), (2, 2), (3, 2)])
@given(data=st.data())
def test_every_weight_against_rational_arithmetic(k, p, data):
    """The weights one by one, relative to the largest in the same unit, on grids of moderate ratio."""
    ratios = data.draw(st.lists(st.floats(-0.5, 0.5), min_size=k, max_size=k))
    nodes, step = [0.0], 1.0
    for r in ratios[1:]:
        step *= 10.0**r
        nodes.append(nodes[-1] - step)
    value, exact = flat(weights(Adams(k, p), 1.0, nodes)), exact_weights(1.0, nodes, p)
    scale = max(abs(w) for w in exact)
    assert max(abs(Fraction(v) - e) for v, e in zip(value, exact, strict=True)) <= scale * Fraction(1, 10**12)


@pytest.mark.parametrize("clock", [Own(), Index(), Time(), LogSNR(), Exact(Time()), Exact(LogSNR())])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_weights_are_consistent(clock, form, k):
    """A constant slope is integrated exactly: the weights sum to the step, to rounding of each."""
    eq = FORMS[form]
    s = [eq.s(t) for t in grids.power(6).tolist()]
    for i in range(k, 7):
        nodes = s[i - k : i][::-1]
        value = flat(weights(Adams(k, clock=clock), s[i], nodes, eq))
        assert abs(math.fsum(value) - (s[i] - s[i - 1])) <= 1e-13 * sum(abs(w) for w in value)


@pytest.mark.parametrize("form", FORMS)
def test_index_clock_gives_constant_weights(form):
    eq = FORMS[form]
    s = [eq.s(t) for t in grids.edm(9, VP()).tolist()]
    value = flat(weights(Adams(4, clock=Index()), s[5], s[4:0:-1], eq))
    expected = [(s[5] - s[4]) * a / b for a, b in ADAMS_BASHFORTH[4]]
    assert value == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(
    ("clock", "reading"), [(Time(), lambda t: t), (LogSNR(), lambda t: -math.log(VP().gamma(t)))]
)
@pytest.mark.parametrize("form", FORMS)
def test_believed_clocks_lay_the_nodes_in_their_readings(clock, reading, form):
    """The weights are those of the readings, scaled to the length of the step in s."""
    eq, times = FORMS[form], grids.power(9).tolist()
    s = [eq.s(t) for t in times]
    u = [reading(t) for t in times]
    own = flat(weights(Adams(3), u[5], u[4:1:-1]))
    expected = [w * (s[5] - s[4]) / (u[5] - u[4]) for w in own]
    assert flat(weights(Adams(3, clock=clock), s[5], s[4:1:-1], eq)) == pytest.approx(expected, rel=1e-10)


def vp_time(gamma):
    return (mp.sqrt(mpf("0.01") + mpf("39.8") * mp.log1p(gamma**2)) - mpf("0.1")) / mpf("19.9")


READINGS = {"time": (Time(), vp_time), "log-SNR": (LogSNR(), lambda gamma: -mp.log(gamma))}


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("rho", [1.0, 2.0, 7.0])
@pytest.mark.parametrize("direction", [1, -1])
def test_deis_weights_against_quadrature(name, k, rho, direction):
    """∫ of the Lagrange polynomials in the clock, dγ exact, by mpmath; on long steps, backwards as well."""
    clock, reading = READINGS[name]
    gamma = [VP().gamma(t) for t in grids.power(5, rho).tolist()][::direction]
    for i in range(k, 6):
        nodes, end = gamma[i - k : i][::-1], gamma[i]
        u = [reading(mpf(g)) for g in nodes]
        value = flat(weights(Adams(k, clock=Exact(clock)), end, nodes))

        @functools.cache  # all polynomials are evaluated at the same places
        def at(log_gamma):
            gamma = mp.exp(log_gamma)
            return gamma, reading(gamma)

        def basis(j, u=u, at=at):
            def lagrange(log_gamma):
                gamma, place = at(log_gamma)
                others = (m for m in range(k) if m != j)
                return gamma * mp.fprod((place - u[m]) / (u[j] - u[m]) for m in others)

            return lagrange

        ends = mp.linspace(mp.log(nodes[0]), mp.log(end), 3)
        with mp.workdps(25):
            exact = [mp.quad(basis(j), ends) for j in range(k)]
        scale = max(abs(e) for e in exact)
        assert max(abs(v - e) for v, e in zip(value, exact, strict=True)) <= 1e-12 * scale


def test_exact_on_the_own_clock_is_adams():
    nodes = [3.0, 5.0, 4.0 + 3.5, 20.0]
    value = flat(weights(Adams(4, clock=Exact(Own())), 1.0, nodes))
    assert value == pytest.approx(flat(weights(Adams(4), 1.0, nodes)), rel=1e-12)


def test_exact_across_zero():
    """Where s changes sign the quadrature is laid over s itself."""
    nodes = [0.5, 1.0, 1.7]
    value = flat(weights(Adams(3, clock=Exact(Own())), -0.5, nodes))
    assert value == pytest.approx(flat(weights(Adams(3), -0.5, nodes)), rel=1e-12)


def test_lms_coefficients_by_quadrature():
    """k-diffusion's LMS: the Lagrange basis in σ, integrated numerically, as published."""
    gamma = [VP().gamma(t) for t in grids.edm(8, VP()).tolist()]
    for i in range(4, 8):
        nodes = gamma[i : i - 4 : -1]

        def basis(j, nodes=nodes):
            return lambda tau: math.prod((tau - nodes[m]) / (nodes[j] - nodes[m]) for m in range(4) if m != j)

        expected = [quad(basis(j), gamma[i], gamma[i + 1], epsrel=1e-12)[0] for j in range(4)]
        assert flat(weights(Adams(4), gamma[i + 1], nodes)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("p", [1, 2, 5])
def test_weights_of_one_node_are_taylors(p):
    value, expected = (weights(solver, 1.7, [1.0]) for solver in (Adams(1, p), Taylor(p)))
    assert value[0] == pytest.approx(expected[0], rel=1e-13)
    assert expected[0] == pytest.approx([0.7**k / math.factorial(k) for k in range(1, p + 1)], rel=1e-14)


@given(data=st.data())
def test_a_step_applies_the_weights(data):
    """y₁ - y₀ is the combination of the jets, for an exact past handed in by value."""
    s1, nodes = data.draw(places(3))
    jet = tuple(torch.tensor([row], dtype=torch.float64) for row in ((1.0, -2.0), (-2.0, 3.0)))

    class Constant:
        """An equation whose jet is the same everywhere."""

        def jet(self, y, s, order=1):
            return jet[:order]

    y = torch.zeros(1, 2, dtype=torch.float64)
    past = tuple(Node(s, jet) for s in nodes[1:])
    value, node = Adams(3, 2).step(Constant(), y, nodes[0], s1, past)
    rows = weights(Adams(3, 2), s1, nodes)
    terms = [w * d for row in rows for w, d in zip(row, jet, strict=True)]
    assert (value - sum(terms)).abs().max() <= 1e-14 * sum(t.abs() for t in terms).max()
    assert node.s == nodes[0]
