"""Means that the tests of diffusers publish for whole runs of its schedulers, by the methods of the suite.

There the model is x t/(t + 1), with t the index of the training step, whatever it is said to predict. The
sample is a ramp from 0 to 1, of shape (4, 3, 8, 8), and there are ten inference steps on a linear table of β.
The numbers are those of tests/schedulers/test_scheduler_*.py in huggingface/diffusers (Apache-2.0), with the
tolerance that they have there. What is DEIS there interpolates in the log-SNR: here it is ``log-deis*``.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch

from analysis.methods import GRIDS, METHODS
from problems import Autodiff, Clipped, Table

TOLERANCE = 1e-3
RAMP = (torch.arange(768, dtype=torch.float64) / 768).reshape(3, 8, 8, 4).permute(3, 0, 1, 2)

linear = cache(Table.linear)


def mean(method, beta=1e-4, predicts="eps", limit=None):
    """Return the mean absolute value of what becomes of the ramp; v = α ε - σ x₀, so ε = α v + σ x."""
    schedule = linear(beta)

    def eps(x, t):
        t = round(t)
        predicted = x * t / (t + 1.0)
        return predicted if predicts == "eps" else schedule.alpha(t) * predicted + schedule.sigma(t) * x

    model = Autodiff(eps, schedule)
    model = model if limit is None else Clipped(model, limit)
    # Ten nodes of spacing "leading" are nine steps and the denoising; of "linspace" ten steps and none.
    steps = 9 if method.grid.name == "leading" else 10
    return float(method.sample(model, steps, RAMP).abs().mean())


def on(name, grid, **options):
    return replace(METHODS[name], grid=GRIDS[grid], **options)


DDIM, PNDM = on("ddim", "leading", denoise=True), on("f-pndm", "leading")
DPM, DEIS, UNIPC = (on(name, "linspace") for name in ("dpm-solver++2m", "log-deis1-lower", "unipc2-lower"))


@pytest.mark.parametrize(
    ("published", "method", "options"),
    [
        (0.223967, DDIM, {"limit": 1.0}),
        (0.0684, DDIM, {"predicts": "v", "limit": 1.0}),
        (0.1951, DDIM, {"beta": 0.01, "limit": 1.0}),
        (0.2580, PNDM, {}),
        (0.2434, PNDM, {"beta": 0.01}),
        (0.3301, DPM, {}),
        (0.2251, DPM, {"predicts": "v"}),
        (0.23916, DEIS, {}),
        (0.091, DEIS, {"predicts": "v"}),
        (0.2464, UNIPC, {}),
    ],
)
def test_the_mean_of_a_whole_run_is_the_published_one(published, method, options):
    assert mean(method, **options) == pytest.approx(published, abs=TOLERANCE)
