"""Small networks with random weights, for tests: nothing in them is zero, so nothing is hidden."""

import torch

from problems import VP
from problems.images.head import Head, HeadConfig
from problems.images.unet import Config, ScoreNetwork

TINY = Config(size=4, colours=1, channels=8, multipliers=(1, 2), blocks=1)


def randomised(module, seed=0):
    """Give weights normal entries of variance 1/(number of inputs), gains and biases numbers of order one."""
    source = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=source, dtype=torch.float64)
        if p.ndim > 1:
            p.data = noise / p[0].numel() ** 0.5
        else:
            p.data = 0.3 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return module.eval().requires_grad_(False)


def network(config=TINY, schedule=None, seed=0):
    """A score network in float64."""
    return randomised(ScoreNetwork(config, schedule or VP()), seed)


def head(parameterisation="mixed", config=TINY, seed=1):
    """A head for it, in float64."""
    return randomised(Head(HeadConfig(8, 1, parameterisation), config.colours, config.channels), seed)


def states(n, config=TINY, seed=2):
    """States of order one, float64."""
    shape = (n, config.colours, config.size, config.size)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
