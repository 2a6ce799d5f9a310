"""The noun *grid*: at which times does a solver stop?

Each function with these arguments returns float64 times from ``start`` to ``stop``, shape (steps + 1,). The
grid of encoding is the same reversed, ``times.flip(0)``. Any grid can be used with any solver.

On a table of β, samplers have grids of their own, made of the nodes that they visit; ``visiting`` makes a
grid of these. diffusers' schedulers for n inference steps, where the schedule stops at node 0:

- "leading" without offset and "linspace", DDIM and PNDM: the n times of ``steps = n - 1``; the last inference
  step, from node 0 to γ = 0, is the denoising; PNDM takes it by its own rule. With
  ``set_alpha_to_one=False`` it does not move the state.
- The same, multistep DPM-Solver and UniPC: the first n of the n + 1 times of ``steps = n``; the last step
  goes to node 0 with ``final_sigmas_type="sigma_min"``. With "zero" it goes to γ = 0 instead.
- "trailing" (all), and "leading" with an offset (DDIM, PNDM): the first n of the n + 1 times of
  ``steps = n``; the last step goes to node 0 with ``set_alpha_to_one=False``. With True it goes to γ = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from solvers.interface import Schedule


def _ramp(steps: int, a: float, b: float) -> Tensor:
    if steps < 1:
        raise ValueError(f"a grid needs at least one step, not {steps}")
    n = torch.arange(steps + 1, dtype=torch.float64)
    return a + (b - a) * (n / steps)


def _ends(times: Tensor, start: float, stop: float) -> Tensor:
    """Set the first and last time exactly, in place."""
    times[0], times[-1] = start, stop
    return times


def power(steps: int, rho: float = 2.0, start: float = 1.0, stop: float = 1e-3) -> Tensor:
    """Return the striding t_n = (start^(1/ρ) + n/N (stop^(1/ρ) - start^(1/ρ)))^ρ (Eq. 83).

    Parameters
    ----------
    steps
        N, at least 1.
    rho
        ρ: 1 is linear striding, 2 quadratic striding (the paper's choice); Table 7 also has 1.5 and 2.5.
    start, stop
        First and last time.

    Returns
    -------
    N + 1 float64 times.
    """
    return _ends(_ramp(steps, start ** (1.0 / rho), stop ** (1.0 / rho)) ** rho, start, stop)


def log_snr(steps: int, schedule: Schedule, start: float = 1.0, stop: float = 1e-3) -> Tensor:
    """Return times at which the log-SNR is equally spaced (Lu et al. 2022).

    Parameters
    ----------
    steps, start, stop
        As in ``power``.
    schedule
        The noise schedule.
    """
    a, b = math.log(schedule.gamma(start)), math.log(schedule.gamma(stop))
    return _ends(schedule.time(torch.exp(_ramp(steps, a, b))), start, stop)


def edm(steps: int, schedule: Schedule, rho: float = 7.0, start: float = 1.0, stop: float = 1e-3) -> Tensor:
    """Return times at which γ^(1/ρ) is equally spaced (Karras et al. 2022, Eq. 5; γ is their σ).

    Parameters
    ----------
    steps, start, stop
        As in ``power``.
    schedule
        The noise schedule.
    rho
        ρ; 7 in the paper.
    """
    a, b = schedule.gamma(start) ** (1.0 / rho), schedule.gamma(stop) ** (1.0 / rho)
    return _ends(schedule.time(_ramp(steps, a, b) ** rho), start, stop)


def cosine(steps: int, schedule: Schedule, start: float = 1.0, stop: float = 1e-3) -> Tensor:
    """Return times at which the angle arctan γ is equally spaced.

    The angle is πτ/2 with τ the time of the cosine schedule without offset, α = cos(πτ/2) (Nichol & Dhariwal
    2021; Salimans & Ho 2022). The steps are equal in τ, whatever the schedule.

    Parameters
    ----------
    steps, start, stop
        As in ``power``.
    schedule
        The noise schedule.
    """
    a, b = math.atan(schedule.gamma(start)), math.atan(schedule.gamma(stop))
    return _ends(schedule.time(torch.tan(_ramp(steps, a, b))), start, stop)


def sigmoid(
    steps: int, schedule: Schedule, reach: float = 3.0, start: float = 1.0, stop: float = 1e-3
) -> Tensor:
    """Return times that are equally spaced on the sigmoid schedule (Jabri et al. 2022; Chen 2023).

    On that schedule the variance 1 - ᾱ = γ²/(1 + γ²) is the logistic function on [-reach, reach], rescaled
    to run from 0 to 1. The argument of the logistic function is equally spaced, whatever the schedule.

    Parameters
    ----------
    steps, start, stop
        As in ``power``.
    schedule
        The noise schedule.
    reach
        End of the interval of the argument, at temperature 1; 3 in both papers.
    """
    low, high = (1.0 / (1.0 + math.exp(end)) for end in (reach, -reach))

    def argument(t: float) -> float:
        square = schedule.gamma(t) ** 2
        level = low + (high - low) * square / (1.0 + square)
        return math.log(level / (1.0 - level))

    level = torch.sigmoid(_ramp(steps, argument(start), argument(stop)))
    return _ends(schedule.time(((level - low) / (high - level)).sqrt()), start, stop)


def listed(times: Sequence[float], steps: int, start: float = 1.0, stop: float = 1e-3) -> Tensor:
    """Return given times as a grid.

    Parameters
    ----------
    times
        The times, steps + 1 of them.
    steps
        Number of steps.
    start, stop
        First and last time; those given may deviate by a relative 1e-3 and are replaced.

    Raises
    ------
    ValueError
        If the number of times or their ends do not match.
    """
    if len(times) != steps + 1:
        raise ValueError(
            f"the list of {len(times)} times is a grid of {len(times) - 1} steps, not of {steps}"
        )
    if not (math.isclose(times[0], start, rel_tol=1e-3) and math.isclose(times[-1], stop, rel_tol=1e-3)):
        raise ValueError(f"the list of times must begin at {start:g} and end at {stop:g}")
    return _ends(torch.tensor(times, dtype=torch.float64), start, stop)


def alternating(steps: int, ratio: float = 2.0, start: float = 1.0, stop: float = 1e-3) -> Tensor:
    """Return times whose steps alternate between long and short.

    The family is not smooth: neighbouring steps stay unequal under refinement, and multistep methods with
    constant weights lose their order.

    Parameters
    ----------
    steps, start, stop
        As in ``power``.
    ratio
        Ratio of a long step to a short one.
    """
    short = torch.arange(steps, dtype=torch.float64) % 2
    sizes = ratio * (1.0 - short) + short
    fractions = torch.cat([torch.zeros(1, dtype=torch.float64), sizes.cumsum(0) / sizes.sum()])
    return _ends(start + (stop - start) * fractions, start, stop)


def shifted(steps: int, shift: float, start: float = 1.0, stop: float = 1e-3) -> Tensor:
    """Return equal steps of u between the ends, t = s u/(1 + (s - 1) u): the shift of flow matching.

    It is made for times in [0, 1] (Esser et al. 2024, Eq. 23): in γ = t/(1 - t) it is a factor s. Larger s
    spends more steps on the noise. The sigmas of ``FlowMatchEulerDiscreteScheduler`` in diffusers for n steps
    are those of n - 1 steps here, from 1 to its last sigma before 0; the step to 0 is the denoising.

    Parameters
    ----------
    steps, start, stop
        As in ``power``.
    shift
        s > 0; 1 is linear striding.
    """
    a, b = (t / (shift - (shift - 1.0) * t) for t in (start, stop))
    u = _ramp(steps, a, b)
    return _ends(shift * u / (1.0 + (shift - 1.0) * u), start, stop)


def leading(n: int, nodes: int, offset: int = 0) -> Tensor:
    """Return the nodes, float64, that n inference steps visit with spacing "leading" (Ho et al. 2020).

    They are i ⌊N/n⌋ + offset, i = n-1 … 0: the first is below the last node of the table.

    Parameters
    ----------
    n
        Number of nodes to visit, evaluations of the network.
    nodes
        N, the number of nodes of the table.
    offset
        What others call ``steps_offset``.
    """
    return torch.arange(n - 1, -1, -1, dtype=torch.float64) * (nodes // n) + offset


def trailing(n: int, nodes: int) -> Tensor:
    """Return the nodes that n inference steps visit with spacing "trailing": N - i N/n - 1, rounded."""
    # The difference as numpy's arange takes it, whose rounding decides where the fraction is a half.
    step = (nodes - nodes / n) - nodes
    return (nodes + torch.arange(n, dtype=torch.float64) * step).round() - 1.0


def linspace(n: int, nodes: int) -> Tensor:
    """Return the nodes that n inference steps visit with spacing "linspace": N-1 … 0, equal and rounded."""
    return (torch.arange(n - 1, -1, -1, dtype=torch.float64) * ((nodes - 1) / max(n - 1, 1))).round()


def visiting(spacing: Callable[[int], Tensor], steps: int, start: float, stop: float) -> Tensor:
    """Return the nodes that a spacing visits, and the stop after them, as a grid.

    Where the last node visited is the stop, n = steps + 1 nodes make a grid of ``steps`` steps, and the last
    inference step is the denoising. Otherwise it is n = steps, and the step from the last node to the stop is
    part of the grid.

    Parameters
    ----------
    spacing
        Gives the nodes for n inference steps, falling.
    steps
        Number of steps.
    start, stop
        The largest time, to which a later first node is moved (γ is infinite there), and the last time.

    Raises
    ------
    ValueError
        If the nodes do not fall strictly from at most ``start`` to ``stop``: a table that was cut, or more
        steps than it has nodes.
    """
    if steps < 1:
        raise ValueError(f"a grid needs at least one step, not {steps}")
    times = spacing(steps + 1)
    if times[-1] != stop:
        times = torch.cat([spacing(steps), torch.tensor([stop], dtype=torch.float64)])
    times[0] = min(float(times[0]), start)
    if not bool((times.diff() < 0.0).all()):
        raise ValueError(
            f"{steps} steps over the nodes of this table do not fall from {start:g} to {stop:g}: "
            "take fewer steps, or the whole table"
        )
    return times
