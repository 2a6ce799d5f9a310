import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from problems import series
from problems.series import Exponential, Series

fifty = settings(max_examples=50)
"""Every coefficient of a recurrence is in each example; a hundred of them find no more."""

# A function, its truth, and an interval of base points well inside the domain.
FUNCTIONS = {
    "exp": (series.exp, mpmath.exp, (-5.0, 5.0)),
    "expm1": (series.expm1, mpmath.expm1, (-5.0, 5.0)),
    "log": (series.log, mpmath.log, (0.5, 5.0)),
    "log1p": (series.log1p, mpmath.log1p, (-0.5, 5.0)),
    "sqrt": (series.sqrt, mpmath.sqrt, (0.5, 5.0)),
    "sin": (series.sin, mpmath.sin, (-5.0, 5.0)),
    "cos": (series.cos, mpmath.cos, (-5.0, 5.0)),
    "atan": (series.atan, mpmath.atan, (-5.0, 5.0)),
}
BINARY = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}
MIXED = {
    "a + 3": lambda a: a + 3.0,
    "3 + a": lambda a: 3.0 + a,
    "a - 3": lambda a: a - 3.0,
    "3 - a": lambda a: 3.0 - a,
    "a * 3": lambda a: a * 3.0,
    "3 * a": lambda a: 3.0 * a,
    "a / 3": lambda a: a / 3.0,
    "3 / a": lambda a: 3.0 / a,
    "-a": lambda a: -a,
}


def number(low, high):
    return st.integers(0, 1000).map(lambda i: low + (high - low) * (i / 1000))


@st.composite
def coefficients(draw, low=0.5, high=5.0, length=None):
    """c₀ in [low, high] and a tail with Σ|cⱼ| < 1/4: the results are analytic and bounded for |h| ≤ 1.

    The coefficients of the results are then bounded as well, and since each is a sum of at most a dozen
    products, its rounding error is at most some dozens of ε times the largest of them.
    """
    n = length or draw(st.integers(1, 12))
    return [draw(number(low, high)), *(draw(number(-1.0, 1.0)) * 0.5 ** (j + 2) for j in range(1, n))]


def polynomial(c):
    return lambda h: mp.polyval([mpf(a) for a in reversed(c)], h)


def assert_series(value, exact):
    """Compare with the true coefficients; the tolerance is 100 ε of the largest."""
    tolerance = 100 * 2.0**-53 * max(abs(e) for e in exact)
    assert len(value) == len(exact)
    assert max(abs(mpf(float(v)) - e) for v, e in zip(value.coefficients, exact, strict=True)) <= tolerance


@pytest.mark.parametrize("name", FUNCTIONS)
@fifty
@given(data=st.data())
def test_elementary_functions(name, data):
    f, truth, domain = FUNCTIONS[name]
    c = data.draw(coefficients(*domain))
    p = polynomial(c)
    assert_series(f(Series(c)), mpmath.taylor(lambda h: truth(p(h)), 0, len(c) - 1))


@pytest.mark.parametrize("name", BINARY)
@fifty
@given(data=st.data())
def test_arithmetic_of_two_series(name, data):
    a = data.draw(coefficients(-5.0, 5.0))
    b = data.draw(coefficients(0.5, 5.0, len(a)))
    p, q = polynomial(a), polynomial(b)
    exact = mpmath.taylor(lambda h: BINARY[name](p(h), q(h)), 0, len(a) - 1)
    assert_series(BINARY[name](Series(a), Series(b)), exact)


@pytest.mark.parametrize("name", MIXED)
@fifty
@given(c=coefficients())
def test_arithmetic_with_numbers(name, c):
    p = polynomial(c)
    assert_series(MIXED[name](Series(c)), mpmath.taylor(lambda h: MIXED[name](p(h)), 0, len(c) - 1))


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=25)
@given(data=st.data())
def test_tensors_and_floats_agree(name, data):
    """Coefficients of different shapes broadcast, and every element is what floats give."""
    f, _, domain = FUNCTIONS[name]
    a, b = (data.draw(coefficients(*domain, 6)) for _ in range(2))
    column = torch.tensor([a[0], b[0]], dtype=torch.float64)[:, None]
    tail = torch.tensor([a[1:], b[1:]], dtype=torch.float64)
    value = f(Series([column, *tail.T]))
    for i, first in enumerate((a[0], b[0])):
        for k, rest in enumerate((a[1:], b[1:])):
            one = f(Series([first, *rest]))
            scale = max(abs(c) for c in one.coefficients)
            for v, c in zip(value.coefficients, one.coefficients, strict=True):
                v = torch.broadcast_to(v, (2, 2))[i, k].item()
                assert abs(v - c) <= 100 * 2.0**-53 * scale


@pytest.mark.parametrize("name", FUNCTIONS)
def test_plain_numbers_and_tensors(name):
    f, truth, _ = FUNCTIONS[name]
    assert f(0.7) == pytest.approx(float(truth(0.7)), rel=4e-16)
    for dtype, digits in ((torch.float32, 2e-7), (torch.float64, 4e-16)):
        value = f(torch.tensor([0.7], dtype=torch.float64).to(dtype))
        assert value.dtype == dtype
        assert value.item() == pytest.approx(float(truth(torch.tensor(0.7, dtype=dtype).item())), rel=digits)


@pytest.mark.parametrize("tiny", [1e-300, 1e-20, 1e-8])
def test_no_cancellation_near_zero(tiny):
    assert series.expm1(tiny) == pytest.approx(tiny, rel=2e-8)
    assert series.log1p(tiny) == pytest.approx(tiny, rel=2e-8)
    assert series.expm1(Series([tiny, 1.0]))[0] == series.expm1(tiny)
    assert series.log1p(Series([tiny, 1.0]))[0] == series.log1p(tiny)


def test_a_series_is_its_coefficients():
    s = Series.variable(2.0, 4)
    assert s.coefficients == [2.0, 1.0, 0.0, 0.0]
    assert Series.variable(2.0, 1).coefficients == [2.0]
    assert (len(s), s[1], repr(s)) == (4, 1.0, "Series([2.0, 1.0, 0.0, 0.0])")


def test_operands_are_not_changed():
    a, b = Series([1.0, 2.0, 3.0]), Series([4.0, 5.0, 6.0])
    for f in (*BINARY.values(), lambda a, b: series.exp(a) + series.sqrt(b)):
        f(a, b)
    assert (a.coefficients, b.coefficients) == ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="zip"):
        Series([1.0, 2.0]) + Series([1.0])


def test_taylor_and_derivative():
    f = lambda x: series.exp(x) * series.sin(x)  # noqa: E731
    exact = mpmath.taylor(lambda x: mp.exp(x) * mp.sin(x), mpf(0.3), 9)
    assert_series(series.taylor(f, 0.3, 10), exact)
    assert series.derivative(f, 0.3) == pytest.approx(float(exact[1]), rel=1e-15)


def exponentials(exponents):
    """Push the coefficients of the exponents, shape (n, K), and return those of the exponentials."""
    e = Exponential(dim=-1)
    return torch.stack([e.push(row.clone()) for row in exponents])


def softmax(logits):
    """Return the coefficients of the softmax: exponents kept small by taking the greatest one's off them."""
    leader = logits[0].argmax()
    e = exponentials(torch.cat([logits[:1], logits[1:] - logits[1:, leader, None]])).unbind()
    return torch.stack([torch.as_tensor(c) for c in (Series(e) / Series([c.sum() for c in e])).coefficients])


def exact_softmax(logits):
    rows = [polynomial(column) for column in logits.T.tolist()]

    def component(k):
        return lambda h: mp.exp(rows[k](h)) / mp.fsum(mp.exp(row(h)) for row in rows)

    with mp.workdps(100):
        return [mpmath.taylor(component(k), 0, len(logits) - 1) for k in range(len(rows))]


@settings(max_examples=25)
@given(data=st.data())
def test_exponentials_up_to_the_greatest(data):
    c = torch.tensor([data.draw(coefficients(-5.0, 5.0, 9)) for _ in range(4)], dtype=torch.float64).T
    value = exponentials(c)
    for k in range(4):
        p = polynomial(c[:, k].tolist())
        top = mpf(c[0].max().item())
        assert_series(Series(value[:, k].tolist()), mpmath.taylor(lambda h: mp.exp(p(h) - top), 0, 8))  # noqa: B023


@settings(max_examples=12)
@given(data=st.data())
def test_softmax(data):
    c = torch.tensor([data.draw(coefficients(-5.0, 5.0, 9)) for _ in range(4)], dtype=torch.float64).T
    value = softmax(c)
    for k, exact in enumerate(exact_softmax(c)):
        assert_series(Series(value[:, k].tolist()), exact)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_exponentials_along_any_axis(dim):
    c = torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    e = Exponential(dim)
    value = torch.stack([e.push(row.clone()) for row in c])
    alone = exponentials(c.movedim(1 + dim % 2, -1).reshape(5, -1, c.shape[1 + dim % 2])[:, 0])
    assert torch.allclose(value.movedim(1 + dim % 2, -1)[:, 0], alone, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 24), (torch.float64, 53)])
def test_softmax_between_equals_far_above_the_rest(dtype, digits):
    """Two components share all the weight; the others lie 1e6 below and must leave no trace."""
    logits = torch.zeros(8, 5, dtype=dtype)
    logits[0] = torch.tensor([3e5, 3e5, -7e5, -7e5, -1e30])
    logits[1] = torch.tensor([1.0, -1.0, 1e5, -1e5, 1e9])
    logits[2] = torch.tensor([0.5, 0.25, 4.0, -7.0, 1.0])
    value = softmax(logits)
    exact = exact_softmax(logits[:, :2].double())
    for k in (0, 1):
        truth = [float(e) for e in exact[k]]
        assert value[:, k].double().numpy() == pytest.approx(truth, rel=0, abs=100 * 0.5**digits)
    # What is left of the others lies above the denormal numbers and below all rounding errors.
    assert (exponentials(logits[:1])[0, 2:] >= torch.finfo(dtype).tiny).all()
    assert value[:, 2:].abs().max() < 1e-30


def test_softmax_of_a_lone_winner_is_constant():
    """A component that holds all the weight leaves no noise, however large the exponents of the others."""
    logits = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e8
    logits[0] = torch.tensor([0.0, -1e9, -2e9, -3e9])
    value = softmax(logits)
    assert value[0, 0] == 1.0
    assert value[1:].abs().max() == 0.0


def test_convolve_skips_exact_zeros():
    nan = math.nan
    assert series.convolve([0.0, 2.0], [5.0, nan], 1) == 10.0
    assert series.convolve([1.0, 0.0], [nan, 5.0], 1) == 5.0
