"""On a GPU: commands give what they give on the CPU, marches copy nothing, peaks of memory are printed."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from analysis.__main__ import script
from analysis.measure.problems import opened
from analysis.methods import METHODS
from problems import Brownian, Network, Table
from tests.problems.test_network import Small

SMALL = {
    "lte": "--samples 8 --t 0.3 --points 3 --solvers ddim ttm2 f-pndm",
    "derivatives": "--samples 8 --t 0.3 --points 3",
    "gte": "--problem digits --samples 4 --nfe 8 --solvers ddim ttm2 genie ipndm unipc3 edm-churn",
    "orders": "--samples 8 --finest 16 --forms ddim --grids quadratic --solvers ddim ttm2 ab2",
    "work_precision": "--samples 8 --nfe 8 --solvers ddim ttm2 dpm-solver++2m",
    "recommend": "--samples 64 --nfe 6 --forms ddim --grids quadratic --solvers ddim ttm2 ipndm",
    "schedule": "--samples 8 --fitted 4 --candidates 8 --nfe 5",
    "weak": "--samples 40 --nfe 8 --solvers ddim ddpm",
    "samples": "--samples 16 --steps 8 --solvers ddim ttm2",
    "fid": "--samples 50 --nfe 8 --grids quadratic --solvers ddim genie",
    "heads": "--samples 2 --nfe 5",
    "budget": "--samples 2 --nfe 5 --t 0.3",
    "smoothness": "--networks digits --samples 2 --nfe 5 --t 0.3 --solvers ddim ttm3",
    "guidance": "--samples 2 --scales 0 1 --steps 5 8",
    "interpolate": "--samples 1 --points 3 --nfe 6",
}
"""A small run of every experiment whose numbers do not depend on seconds."""

MEASURED = ("error", "distance", "slope", "share")
"""Columns that start so are compared."""

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU with CUDA here")


class Copies(TorchDispatchMode):
    """Collects the operators that have tensors of more than one device, or hand a number to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        value = func(*args, **(kwargs or {}))
        tensors = [t for t in (*args, value) if isinstance(t, torch.Tensor) and t.ndim > 0]
        if len({t.device.type for t in tensors}) > 1 or func is torch.ops.aten._local_scalar_dense.default:
            self.found.append(str(func))
        return value


def test_copies_between_devices_are_seen():
    x = torch.ones(3)
    with Copies() as copies:
        x + 1.0
    assert copies.found == []
    with Copies() as copies:
        x.to("meta")
        bool((x > 0).all())
    assert copies.found == ["aten._to_copy.default", "aten._local_scalar_dense.default"]


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("name", SMALL)
def test_a_command_gives_what_it_gives_on_the_cpu(name, tmp_path, capsys):
    tables = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        torch.cuda.reset_peak_memory_stats()
        line = [name, *SMALL[name].split(), "--dtype", "float32", "--device", device, "--out", str(out)]
        assert script(line) == 0
        tables[device] = {path.name: pd.read_csv(path) for path in sorted(out.glob("*.csv"))}
    peak = torch.cuda.max_memory_allocated() / 2**20
    with capsys.disabled():
        print(f"\n{name}: peak of {peak:.0f} MiB on the GPU")
    for file, expected in tables["cpu"].items():
        found = tables["cuda"][file]
        columns = [c for c in expected.select_dtypes("number") if c.startswith(MEASURED)]
        for column in columns:
            a, b = found[column].to_numpy(), expected[column].to_numpy()
            scale = max(1.0, float(pd.Series(b).abs().max()))
            assert a == pytest.approx(b, rel=1e-4, abs=1e-4 * scale, nan_ok=True), column


def own():
    return Network(Small(3), Table.linear(), (1, 4, 4), classes=3, no_class=3, labels=1)


PROBLEMS = {"toy": lambda: opened("toy"), "digits": lambda: opened("digits"), "one's own": own}


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("method", ["ddim", "ttm2", "f-pndm", "unipc3", "dpm-solver++2m", "ddpm"])
def test_a_march_copies_nothing_between_cpu_and_gpu(method, problem):
    model = problem().to(torch.empty(0, device="cuda", dtype=torch.float32))
    x = model.schedule.prior_std * torch.randn(4, *model.event_shape, device="cuda")
    METHODS[method].sample(model, 13, x, Brownian(0))  # records graphs, fills caches
    with Copies() as copies:
        METHODS[method].sample(model, 13, x, Brownian(0))
    assert copies.found == []
