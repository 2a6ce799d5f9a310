"""Fitted orders: which errors say something of the order of a method, and the slope through them."""

from __future__ import annotations

from typing import Any

import numpy as np

FLOOR = 30.0
"""An error enters a fit where it is this many times the error of the reference, and rounding.

The rest then bends a slope over a factor of two in the step size by log₂(1 + 1/30) = 0.05 at most.
"""


def stands(error: Any, reference_error: Any, rounding: Any) -> Any:
    """Return which errors enter a fit; those that are not finite do, for a fit is not to hide them.

    Parameters
    ----------
    error
        Mean errors.
    reference_error
        The error of the solution to which they are distances.
    rounding
        The error of rounding: so many units in the last place of numbers of order one.
    """
    return ~(np.asarray(error) <= FLOOR * np.maximum(reference_error, rounding))
