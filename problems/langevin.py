"""Critically damped Langevin diffusion of any score model (CLD, Dockhorn, Vahdat & Kreis 2022).

The data x are coupled to a velocity v, and noise enters through the velocity only:

    dx = v β/M dt,   dv = -x β dt - Γ v β/M dt + √(2Γβ) dw,   Γ² = 4M,   v(0) ~ N(0, γ₀M).

In the time s = βt/√M and with velocities in units of √M the only parameter is γ₀:

    dx = v ds,   dv = -(x + 2v) ds + 2 dw,   v(0) ~ N(0, γ₀),

and N(0, I) is stationary. The paper's M = 1/4, β = 4 and T = 1 are s = 8t.

Given x₀, the state is Gaussian, so one linear combination of x and v is sufficient for x₀. With A the matrix
of the linear drift, z = e^(-As) (x, v) has the mean (x₀, 0). Regression of the noise in z_x on z_v gives a c
for which x̄ = z_x + c z_v = x₀ + γ ζ, with ζ ~ N(0, I) independent of z_v and a noise-to-signal ratio γ(s)
that grows with s. So for any data, (x, v) is a linear map of the ordinary diffused x̄ at γ(s) and an
independent normal velocity z_v. Its score is a linear function of ε(x̄, γ) and z_v. Every model of this suite
is therefore a model of this diffusion, with the same bill.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammainc, hyp1f1
from torch import Tensor

from problems.forms import Form
from problems.noise import Noise
from problems.score import Model, align, like
from problems.series import Scalar, T

Array = NDArray[np.float64]

NEAREST, FARTHEST = 1e-6, 30.0
"""Range of s; γ(s) runs from 6e-10 to 1e12."""

NEWTON = 3
"""Steps of Newton's method from a linear interpolant, after which log s is exact to rounding."""


class Mix(NamedTuple):
    """The coefficients of x̄ = z_x + c z_v = x₀ + γ ζ at a value of s; see the module.

    Attributes
    ----------
    gamma
        γ, the noise-to-signal ratio of x̄ = z_x + c z_v.
    c
        Weight of z_v in x̄.
    variance
        Variance of z_v.
    """

    gamma: Array
    c: Array
    variance: Array


def mix(s: Array, velocity: float) -> Mix:
    """Return γ, c and Var(z_v) at values of s.

    With R the covariance of the noise in z that entered since time 0, and w = 2s,

        R_xx = eʷ (1 - w + w²/2) - 1,   R_xv = -eʷ w²/2,   R_vv = eʷ (1 + w + w²/2) - 1.

    So z_v has the variance V = γ₀ + R_vv, c = -R_xv/V, and γ² = R_xx - R_xv²/V = (det R + γ₀ R_xx)/V with
    det R = eʷ (4 sinh²(w/2) - w²). Confluent hypergeometric functions make all terms positive.

    Parameters
    ----------
    s
        Values of s, positive.
    velocity
        γ₀, the variance of the velocity at s = 0.
    """
    w, grown = 2.0 * s, np.exp(2.0 * s)
    first = w**3 / 6.0 * hyp1f1(3.0, 4.0, w)
    excess = s**3 / 6.0 * (hyp1f1(1.0, 4.0, s) + hyp1f1(1.0, 4.0, -s))  # 2 sinh s - 2s
    determinant = grown * excess * (2.0 * np.sinh(s) + w)
    variance = velocity + np.expm1(w) + grown * w * (1.0 + 0.5 * w)
    return Mix(np.sqrt((determinant + velocity * first) / variance), 0.5 * grown * w * w / variance, variance)


@lru_cache(maxsize=64)
def _known(velocity: float) -> tuple[Array, Array]:
    """Return log s and log γ at points between which Newton's method begins."""
    nodes = np.linspace(math.log(NEAREST), math.log(FARTHEST), 1025)
    return nodes, np.log(mix(np.exp(nodes), velocity).gamma)


def damped(h: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Return h, e⁻ʰ and the covariances of the noise that dx = v ds, dv = (2v - x) ds + 2 dw adds over h.

    With w = 2h: Q_xx = 1 - e⁻ʷ (1 + w + w²/2), an incomplete gamma function, Q_xv = -e⁻ʷ w²/2 and
    Q_vv = 1 - e⁻ʷ (1 - w + w²/2).

    Parameters
    ----------
    h
        Decreases of s, positive.
    """
    w, decay = 2.0 * h, np.exp(-2.0 * h)
    q_xx: Array = np.asarray(gammainc(3.0, w), dtype=np.float64)
    q_vv: Array = decay * w * (1.0 - 0.5 * w) - np.expm1(-w)
    return h, np.exp(-h), q_xx, -0.5 * w * w * decay, q_vv


class CriticallyDamped(Form):
    """Critically damped Langevin diffusion in reverse: y = (x, v), shape (N, 2, *event), and s as above.

    dx = v ds, dv = -(x + 2v + 4 ∇_v log p) ds + 2 dw, solved with ds < 0. The time t of s is the one at which
    the schedule has the same γ, and the state at t that corresponds to (x, v) at s is α x̄. So grids, starting
    values and samples are those of the other forms.

    Parameters
    ----------
    score, noise
        As in ``Form``. A velocity score costs one evaluation of ε.
    velocity
        γ₀, the variance of the velocity at s = 0; the paper's by default.
    """

    def __init__(
        self, score: Model, noise: Noise | torch.Generator | None = None, velocity: float = 0.04
    ) -> None:
        super().__init__(score, noise)
        self.velocity = velocity

    def s(self, t: T) -> T:
        """Return the s at which γ(s) is γ of time t, by Newton's method for log γ in log s."""

        def place(gamma: Array) -> Array:
            nodes, known = _known(self.velocity)
            wanted = np.log(np.clip(gamma, math.exp(known[0]), math.exp(known[-1])))
            log_s = np.interp(wanted, known, nodes)
            for _ in range(NEWTON):
                s = np.exp(log_s)
                found = mix(s, self.velocity)
                # dγ²/ds = (2 eˢ (s - c (1 + s)))²: what the noise in v adds to that of x̄.
                slope = 2.0 * s * (np.exp(s) * (s - found.c * (1.0 + s)) / found.gamma) ** 2
                log_s = log_s + (wanted - np.log(found.gamma)) / slope
            value: Array = np.exp(log_s)
            return value

        s: T = _mapped(place, self.schedule.gamma(t))
        return s

    def t(self, s: T) -> T:
        """Return the time at which the schedule has γ(s)."""
        gamma: T = _mapped(lambda place: mix(place, self.velocity).gamma, s)
        return self.schedule.time(gamma)

    def enter(self, x: Tensor, t: Scalar) -> Tensor:
        """Return (x, v) for the state at time t, with a velocity z_v drawn at random."""
        place = _Place(self.s(t), self.velocity, x)
        alpha = like(self.schedule.alpha(align(t, x)), x)
        z_v = place.std * self.fresh(x, t)
        return place.forth(x / alpha - place.c * z_v, z_v)

    def leave(self, y: Tensor, t: Scalar) -> Tensor:
        """Return the state α x̄ at time t for (x, v)."""
        place = _Place(self.s(t), self.velocity, y[:, 0])
        z_x, z_v = place.back(y)
        return (z_x + place.c * z_v) * like(self.schedule.alpha(align(t, z_x)), z_x)

    def _velocity_score(self, y: Tensor, s: Scalar) -> Tensor:
        """Return ∇_v log p, from ∂/∂v = eˢ (-s ∂/∂z_x + (1 + s) ∂/∂z_v)."""
        place = _Place(s, self.velocity, y[:, 0])
        z_x, z_v = place.back(y)
        (eps,) = self.score.flow_jet(z_x + place.c * z_v, place.gamma)
        pull = (place.s - place.c * (1.0 + place.s)) / place.gamma
        return place.grown * (pull * eps - (1.0 + place.s) / place.std**2 * z_v)

    def jet(self, y: Tensor, s: Scalar, order: int = 1) -> tuple[Tensor, ...]:
        """Return the drift.

        Raises
        ------
        ValueError
            If ``order`` is greater than 1: paths of an SDE have no derivatives.
        """
        if order > 1:
            raise ValueError("the reverse SDE has no derivatives along its path")
        x, v = y.unbind(1)
        return (torch.stack([v, -(x + 2.0 * v + 4.0 * self._velocity_score(y, s))], 1),)

    def spread(self, s: Scalar) -> Scalar:
        """Return 2, the factor of the noise in v; for s that broadcasts against y, 0 in x and 2 in v."""
        return torch.cat([0.0 * s, 0.0 * s + 2.0], 1) if isinstance(s, Tensor) and s.ndim > 1 else 2.0

    def kick(self, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return 2 √(s0 - s1) z in v and zero in x."""
        kick = super().kick(y, s0, s1)
        return torch.stack([torch.zeros_like(kick[:, 0]), kick[:, 1]], 1)

    def flow(self, y: Tensor, s0: Scalar, s1: Scalar) -> Tensor:
        """Return y at s1 under dx = v ds, dv = (2v - x) ds + 2 dw, exactly in law.

        The stationary distribution of this part of the SDE is N(0, I). Over h = s0 - s1 the mean is
        e⁻ʰ ((1 + h) x - h v, h x + (1 - h) v); ``damped`` gives the covariances.
        """
        x, v = y.unbind(1)
        h, decay, q_xx, q_xv, q_vv = (_wide(c, x) for c in damped(_numbers(s0 - s1)))
        z_x, z_v = self.normal(y, s0, s1).unbind(1)
        root = q_xx**0.5
        x1 = decay * ((1.0 + h) * x - h * v) + root * z_x
        v1 = decay * (h * x + (1.0 - h) * v) + q_xv / root * z_x + (q_vv - q_xv**2 / q_xx) ** 0.5 * z_v
        return torch.stack([x1, v1], 1)

    def rest(self, y: Tensor, s: Scalar) -> Tensor:
        """Return the drift without the part that ``flow`` solves: -4 (v + ∇_v log p) in v, zero in x."""
        force = -4.0 * (y[:, 1] + self._velocity_score(y, s))
        return torch.stack([torch.zeros_like(force), force], 1)


class _Place:
    """The coefficients at s, floats or tensors that broadcast against x, and the map of (x, v) to z."""

    def __init__(self, s: Scalar, velocity: float, x: Tensor) -> None:
        place = _numbers(s)
        gamma, c, variance = mix(place, velocity)
        self.s, self.gamma, self.c = _wide(place, x), _wide(gamma, x), _wide(c, x)
        self.grown, self.std = _wide(np.exp(place), x), _wide(np.sqrt(variance), x)

    def back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return z_x and z_v, the halves of z = e^(-As) (x, v)."""
        x, v = y.unbind(1)
        return self.grown * ((1.0 - self.s) * x - self.s * v), self.grown * (self.s * x + (1.0 + self.s) * v)

    def forth(self, z_x: Tensor, z_v: Tensor) -> Tensor:
        """Return (x, v) = e^(As) z, stacked."""
        x, v = (1.0 + self.s) * z_x + self.s * z_v, (1.0 - self.s) * z_v - self.s * z_x
        return torch.stack([x / self.grown, v / self.grown], 1)


def _numbers(value: Scalar) -> Array:
    """Convert a float to a 0-dim array, a tensor to a 1-dim array."""
    if isinstance(value, Tensor):
        return np.asarray(value.detach().cpu().double().reshape(-1).numpy())
    return np.asarray(value, dtype=np.float64)


def _wide(value: Array, x: Tensor) -> Scalar:
    """Convert one number to a float, several to a tensor that broadcasts against states x."""
    if value.size == 1:
        return float(value.reshape(()))
    return torch.from_numpy(value).reshape(-1, *[1] * (x.ndim - 1)).to(x)


def _mapped(f: Callable[[Array], Array], value: Any) -> Any:
    """Apply a function of arrays to a float or to a tensor, whose shape is kept."""
    result = f(_numbers(value))
    if isinstance(value, Tensor):
        return torch.from_numpy(result).reshape(value.shape).to(value)
    return float(result)
