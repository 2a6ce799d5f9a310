"""One smooth problem with known end points, which the tests of orders share."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from problems import DDIM, Mixture, smooth_mixture
from solvers import Taylor, final, grids, march


class Short(NamedTuple):
    """The smooth mixture with 16 trajectories from t = 0.3 to 0.1 and their end points, good to 1e-14."""

    problem: Mixture
    start: float
    stop: float
    x: Tensor
    end: Tensor


@pytest.fixture(scope="session")
def short() -> Short:
    problem, start, stop = smooth_mixture(), 0.3, 0.1
    x = problem.sample(16, start, torch.Generator().manual_seed(0))
    times = grids.log_snr(60, problem.schedule, start, stop)
    return Short(problem, start, stop, x, final(march(DDIM(problem), Taylor(12), times, x)).x)
