"""The noun *noise*: where do the random numbers of a stochastic method come from?

``Brownian`` gives every sample its own Brownian path, a function of the seed and of the sample's index. The
increment over an interval does not depend on the step sizes, on the order of the steps or on the batch. Runs
with different steps or methods are then coupled, and strong errors can be measured. ``Drawn`` draws numbers
from a generator.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from problems.series import Scalar

Array = NDArray[np.float64]
Words = NDArray[np.uint64]


class Noise(ABC):
    """A source of standard normal numbers, of the shape, dtype and device of given states."""

    @abstractmethod
    def over(self, like: Tensor, a: Scalar, b: Scalar) -> Tensor:
        """Return (W(b) - W(a))/√(b - a), the normal numbers of an interval of a Brownian path W.

        Parameters
        ----------
        like
            States, shape (N, *event).
        a, b
            Ends of the interval, 0 < a < b: floats, or tensors with one number per state.
        """

    @abstractmethod
    def at(self, like: Tensor, place: Scalar, stream: int = 1) -> Tensor:
        """Return normal numbers for one place, independent of the path and of other places.

        Parameters
        ----------
        like
            States, shape (N, *event).
        place
            Any number; a float, or a tensor with one number per state.
        stream
            Index of an independent set of numbers at the same place, at least 1.
        """

    @abstractmethod
    def part(self, rows: Tensor) -> Self:
        """Return the noise of some rows of the batch."""


class Drawn(Noise):
    """Numbers drawn from a generator at each call.

    Parameters
    ----------
    generator
        A generator on the device of the states; None is torch's default generator.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self._generator = generator

    def over(self, like: Tensor, a: Scalar, b: Scalar) -> Tensor:
        """Draw numbers; the interval plays no role."""
        return torch.randn(like.shape, generator=self._generator, dtype=like.dtype, device=like.device)

    def at(self, like: Tensor, place: Scalar, stream: int = 1) -> Tensor:
        """Draw numbers; the place plays no role."""
        return self.over(like, place, place)

    def part(self, rows: Tensor) -> Self:
        """Return this object: all rows draw from the same generator."""
        return self


LOWEST, HIGHEST = -13.0, 13.0
"""Range of ½ log w covered by the paths; γ runs from 2e-6 to 4e5."""

DEPTH = 15
"""Number of bisections of that range."""

LEAF = (HIGHEST - LOWEST) / 2**DEPTH
"""Length of the shortest subinterval in log γ, 8e-4. Steps must not be shorter."""


_NOTHING = None, np.empty(0, dtype=np.uint64), np.empty(0)


class Brownian(Noise):
    """A Brownian path W(w) for each sample by Lévy's construction.

    The value at a point is found by bisection of the range of log w. The value at each midpoint is drawn from
    the Brownian bridge between the ends of its interval. The random numbers are a counter-based function of
    the seed, the sample and the node of the bisection tree (Salmon et al. 2011). Steps longer than a leaf
    have exactly the distribution of Brownian increments.

    Parameters
    ----------
    seed
        Seed of all paths, any integer.
    first
        Index of the first sample of the batch among all samples.
    """

    def __init__(self, seed: int, first: int = 0) -> None:
        self._seed = seed % 2**64
        self._first = first
        self._rows: NDArray[np.int64] | None = None
        self._last: tuple[object, Array] = None, np.empty(0)
        self._above: tuple[object, Words, Array] = _NOTHING

    def over(self, like: Tensor, a: Scalar, b: Scalar) -> Tensor:
        """Return (W(b) - W(a))/√(b - a); see ``Noise.over``.

        Raises
        ------
        ValueError
            If the interval is empty or not inside the range of the paths.
        """
        low, high = _column(a, like), _column(b, like)
        if not bool((low < high).all()):
            raise ValueError("a Brownian increment needs an interval of positive length")
        ends = [self._value(like, w) for w in (low, high)]
        return _tensor((ends[1] - ends[0]) / np.sqrt(high - low), like)

    def at(self, like: Tensor, place: Scalar, stream: int = 1) -> Tensor:
        """Return the normal numbers of a place; see ``Noise.at``."""
        bits = _column(place, like).view(np.uint64)
        return _tensor(self._normal(like, bits[None], stream)[0], like)

    def part(self, rows: Tensor) -> Self:
        """Return the paths of some of the samples."""
        other = copy.copy(self)
        index = rows.cpu().numpy().astype(np.int64)
        other._rows = index if self._rows is None else self._rows[index]
        other._last, other._above = (None, np.empty(0)), _NOTHING
        return other

    def _value(self, like: Tensor, w: Array) -> Array:
        """Return W(w), shape (N, event size); w has shape (1, 1) or (N, 1)."""
        if w.size != 1:
            return self._found(like, w)
        # A step ends where the next one begins, so the last value is kept.
        key = float(w[0, 0]), like.shape
        if self._last[0] != key:
            self._last = key, self._found(like, w)
        return self._last[1]

    def _found(self, like: Tensor, w: Array) -> Array:
        """Return W(w): a sum of the normal numbers of the nodes above it, weighted by the bridges."""
        place = (0.5 * np.log(w) - LOWEST) / (HIGHEST - LOWEST)
        if not bool(((place >= 0.0) & (place < 1.0)).all()):
            raise ValueError("noise-to-signal ratios are outside the range in which paths are known")
        parts = 2.0 ** np.arange(DEPTH + 1)[:, None, None]
        index = np.floor(place * parts)
        # Nodes are numbered as in a heap, whose root is 1; numbers 0 and 2^40 are the ends of the range.
        ends = np.broadcast_to(np.array([0, 2**40], dtype=np.uint64)[:, None, None], (2, *w.shape))
        z = self._numbers(like, np.concatenate([ends, (parts + index).astype(np.uint64)]))
        # Bridges run from (a, begin) to (b, end), to the middle on every level and to w on the last.
        length = (HIGHEST - LOWEST) / parts
        log_a = LOWEST + index * length
        a, b = np.exp(2.0 * log_a), np.exp(2.0 * (log_a + length))
        to = np.concatenate([np.exp(2.0 * log_a + length)[:-1], w[None]])
        # By rounding, a point at the end of an interval may lie outside.
        share = np.clip((to - a) / (b - a), 0.0, 1.0)
        spread = np.sqrt(share * (1.0 - share) * (b - a))
        right = index[1:] % 2.0
        weights = _weights(*(x[:, 0, 0].tolist() if w.size == 1 else list(x) for x in (share, spread, right)))
        value: Array = (np.array(weights).reshape(len(z), *w.shape) * z).sum(0)
        return value

    def _numbers(self, like: Tensor, nodes: Words) -> Array:
        """Return the normal numbers of the nodes above a point; those of the last point are kept."""
        key, known = (like.shape, nodes.shape), 0
        if self._above[0] == key:
            # Below the first node that differs, all do.
            known = int((nodes == self._above[1]).all((1, 2)).sum())
        z = self._normal(like, nodes[known:], 0)
        if known:
            z = np.concatenate([self._above[2][:known], z])
        self._above = key, nodes, z
        return z

    def _normal(self, like: Tensor, nodes: Words, stream: int) -> Array:
        """Return normal numbers (K, N, event size) for nodes (K, 1 or N, 1)."""
        n, size = len(like), like[0].numel() if len(like) else 0
        rows = np.arange(n) if self._rows is None else self._rows
        blocks = -(-size // 4)
        counter = np.empty((len(nodes), n, blocks, 4), dtype=np.uint64)
        counter[..., 0] = np.arange(blocks, dtype=np.uint64)
        counter[..., 1] = (self._first + rows).astype(np.uint64)[:, None]
        counter[..., 2] = nodes & 0xFFFFFFFF
        counter[..., 3] = nodes >> np.uint64(32)
        key = np.random.SeedSequence((self._seed, stream)).generate_state(2, np.uint32)
        words = philox(counter, (int(key[0]), int(key[1]))).reshape(len(nodes), n, 4 * blocks)
        normal: Array = ndtri((words[..., :size] + 0.5) / 2.0**32)
        return normal


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Return the output words of Philox-4x32-10, a pseudorandom function (Salmon et al. 2011).

    Parameters
    ----------
    counter
        Shape (..., 4), 32-bit words stored as uint64.
    key
        Two 32-bit words.

    Returns
    -------
    Shape (..., 4), 32-bit words stored as uint64.
    """
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = (counter[..., i].copy() for i in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (p1 >> half) ^ c1 ^ np.uint64(k0), p1 & mask
        c2, c3 = (p0 >> half) ^ c3 ^ np.uint64(k1), p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def _weights(share: list[Any], spread: list[Any], right: list[Any]) -> list[Any]:
    """Return the weights of the numbers of both ends of the range and of each level, from the leaf upwards.

    A bridge has the value (1 - share) begin + share end + spread z. On all levels but the last it becomes the
    begin of the next level if ``right`` is 1, and the end if it is 0. The lists hold floats or arrays.
    """
    begin, end, weights = 1.0 - share[-1], share[-1], [spread[-1]]
    for p, q, r in zip(reversed(share[:-1]), reversed(spread[:-1]), reversed(right), strict=True):
        value = r * begin + (1.0 - r) * end
        weights.append(q * value)
        begin, end = (1.0 - r) * begin + (1.0 - p) * value, r * end + p * value
    first = math.exp(LOWEST)
    return [first * (begin + end), math.sqrt(math.exp(2.0 * HIGHEST) - first**2) * end, *reversed(weights)]


def _column(value: Scalar, like: Tensor) -> Array:
    """Convert a float to shape (1, 1), one number per state to shape (N, 1)."""
    flat: Any = value.detach().cpu().double().reshape(-1, 1).numpy() if isinstance(value, Tensor) else value
    return np.array(flat, dtype=np.float64).reshape(-1, 1)


def _tensor(values: Array, like: Tensor) -> Tensor:
    return torch.from_numpy(values).reshape(like.shape).to(like)
