"""Power series of what is normalised over groups of numbers."""

from __future__ import annotations

import torch
from torch import Tensor


class Normaliser:
    """Series of c = x - mean x, v = mean c² + ε and r = v^(-1/2).

    c itself is not stored, only x and the means. Numbers per group have shape (N, groups, 1).
    """

    def __init__(self, groups: int) -> None:
        self.path: list[Tensor] = []
        self.mean: Tensor
        self.scale: Tensor
        self._groups = groups
        self._x: list[Tensor] = []
        self._means: list[Tensor] = []
        self._v: list[Tensor] = []
        self._r: list[Tensor] = []

    def add_rest(self, value: Tensor) -> None:
        """Add coefficient j of c r without its term linear in x_j, where j coefficients of x are known."""
        for k in range(len(self._x), len(self.path)):
            self._append(k)
        j, r = len(self._x), self._r
        gains = [self._root(j, self._square(j)), *(r[j - i] for i in range(1, j))]
        total = value.view_as(self._x[0])
        total -= sum(gain * mean for gain, mean in zip(gains, self._means, strict=True))
        for x, gain in zip(self._x, gains, strict=True):
            total.addcmul_(x, gain)

    def _append(self, k: int) -> None:
        x = self.path[k].reshape(len(self.path[k]), self._groups, -1)
        self._x.append(x)
        if k == 0:
            self._means.append(self.mean.reshape(*x.shape[:2], 1))
            self._r.append(self.scale.reshape(*x.shape[:2], 1))
            self._v.append(self._r[0] ** -2)
        else:
            self._means.append(x.mean(-1, keepdim=True))
            self._v.append(self._square(k) + 2.0 * self._product(0, k))
            self._r.append(self._root(k, self._v[k]))

    def _product(self, i: int, k: int) -> Tensor:
        """Return the mean of c_i c_k."""
        x, y = self._x[i], self._x[k]
        dots: Tensor = torch.linalg.vecdot(x, y)[..., None]
        return dots / x.shape[-1] - self._means[i] * self._means[k]

    def _square(self, k: int) -> Tensor:
        """Return coefficient k of mean c² without the two products that contain c_k."""
        total = torch.zeros_like(self._r[0])
        for i in range(1, k):
            total = total + self._product(i, k - i)
        return total

    def _root(self, k: int, newest: Tensor) -> Tensor:
        """Return r_k, from v₀ … v_{k-1} and the ``newest``: 2 k v₀ r_k = -Σ (2k - i) v_i r_{k-i}."""
        v, r = [*self._v[:k], newest], self._r
        total = k * newest * r[0]
        for i in range(1, k):
            total = total + (2 * k - i) * v[i] * r[k - i]
        return -total / (2.0 * k * v[0])
