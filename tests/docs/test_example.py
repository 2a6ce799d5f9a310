"""The example of a package: installed, its additions are in every command, and a broken one is found out."""

import contextlib
import json
import os
import runpy
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
import torch

from analysis.__main__ import script
from analysis.api import Case, Coordinates, assert_order
from analysis.methods import GRIDS, METHODS, plugins
from problems import Gaussian, Preconditioned
from solvers import Heun

ROOT = Path(__file__).parents[2]
EXACT = Coordinates("exact", lambda score, noise: Preconditioned(score, 0.5, noise))
"""A form in which the flow of Gaussian data of standard deviation 0.5 is a straight line."""

DRIVER = """
import json, sys
from analysis.__main__ import script
from analysis.show import plots
plots.save = lambda figure, path: []
for line in json.loads(sys.argv[1]):
    sys.argv = ["genie-bench", *line.split()]
    try:
        code = script()
    except SystemExit as left:
        code = left.code
    print(f"exit code {code} of {line}", flush=True)
"""
CERTIFICATE = "orders --solvers ralston3 --forms ddim angle --grids edm3 --samples 16 --finest 24 --out out"
LINES = (
    "",
    "fid --help",
    CERTIFICATE,
    "lte --problem ring --solvers ralston3 --t 0.3 --samples 8 --points 3 --out out",
    "recommend --solvers ralston3 ddim --forms angle --grids edm3 --nfe 6 --samples 64 --out out",
    "fid --problem ring --features radius --solvers ralston3 --grids edm3 --nfe 6 --samples 8 --out out",
)
RADIAL = "radial --steps 6 12 --samples 8 --out out"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory, with an ``analysis`` of its own, and beside it the installed package."""
    folder = tmp_path_factory.mktemp("user")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    where = ["--no-compile", "--disable-pip-version-check", "--target", str(folder / "installed")]
    subprocess.run([*pip, *where, str(ROOT / "docs" / "example")], check=True)
    for name in ("analysis", "problems"):
        (folder / "work" / name).mkdir(parents=True)
        (folder / "work" / name / "__init__.py").write_text("raise SystemExit('of somebody else')")
    return folder


@pytest.fixture
def fresh(monkeypatch):
    """This process as it was before any package of additions."""
    monkeypatch.setattr(plugins, "_ASKED", set())
    monkeypatch.setattr(plugins, "_INSTALLED", set())
    with contextlib.ExitStack() as stack:
        for group in plugins._GROUPS.values():
            stack.enter_context(mock.patch.dict(group.table))
        forget()
        yield monkeypatch
    forget()


def forget():
    """Let the package be imported anew, from wherever it then is."""
    for name in [name for name in sys.modules if name.startswith("genie_bench_example")]:
        del sys.modules[name]


def typed(folder, *lines):
    """Run lines of the console script in one process; returns what was printed, and the exit codes."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "installed"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", DRIVER, json.dumps(lines)],
        capture_output=True,
        text=True,
        cwd=folder / "work",
        env=environment,
        check=False,
    )
    assert done.stderr == ""
    printed = done.stdout.splitlines()
    return done.stdout, [int(line.split()[2]) for line in printed if line.startswith("exit code ")]


@pytest.fixture(scope="module")
def printed(folder, cluster_address):
    from distributed import Client

    def also(path):
        sys.path.insert(0, path)

    with Client(cluster_address) as client:
        client.run(also, str(folder / "installed"))
    text, codes = typed(folder, *LINES, RADIAL, f"{RADIAL}/there --scheduler {cluster_address}")
    assert codes == [0] * 8, text
    return text


def test_additions_are_in_the_list_of_commands_and_in_help(printed):
    listed, told = printed.split("exit code 0")[:2]
    assert "genie-bench radial" in listed
    assert "How far samples end from the circle" in listed
    for name in ("ring", "angle", "edm3", "radius", "from plugins: ralston3"):
        assert name in told, name


def test_additions_are_in_every_command(printed, folder):
    tables = {path.stem: pd.read_csv(path) for path in (folder / "work" / "out").glob("*.csv")}
    assert set(tables["orders"]["verdict"]) == {"pass"}
    assert set(tables["orders"]["form"]) == {"ddim", "angle"}
    assert set(tables["lte"]["problem"]) == {"ring"}
    best = tables["recommend"].iloc[0]
    assert (best["form"], best["grid"]) == ("angle", "edm3")
    assert "radius" in set(tables["fid"]["feature"])


def test_workers_have_the_package_too(printed, folder):
    here, there = ((folder / "work" / "out" / name / "radial.csv").read_bytes() for name in ("", "there"))
    assert here == there


def test_a_broken_solver_fails_its_certificate_and_nothing_stale_is_served(printed, folder, fresh):
    """The store has the results of the right one; the store of another solver's stays as it is."""
    file = folder / "installed" / "genie_bench_example" / "solver.py"
    file.write_text(file.read_text().replace("(2 / 9, 1 / 3, 4 / 9)", "(2 / 9, 4 / 9, 1 / 3)"))
    fresh.syspath_prepend(str(folder / "installed"))
    fresh.chdir(folder / "work")
    assert script(CERTIFICATE.split()) == 3
    table = pd.read_csv("out/orders.csv")
    # From the prior the slopes of 192 and 384 steps may still differ, and are then no order.
    assert set(table["verdict"][table["interval"] == "interior"]) == {"FAIL"}
    assert set(table["verdict"]) <= {"FAIL", "unsettled"}
    assert table["slope"].between(0.9, 1.1).all()


def test_the_package_passes_its_own_test(fresh):
    fresh.syspath_prepend(str(ROOT / "docs" / "example"))
    from genie_bench_example.grid import EDM3
    from genie_bench_example.solver import RALSTON3

    METHODS["ralston3"], GRIDS["edm3"] = RALSTON3, EDM3
    runpy.run_path(str(ROOT / "docs" / "example" / "test_example.py"))["test_order"]()


@dataclass(frozen=True)
class Wrong(Heun):
    """Heun's method with weights that make it Euler's in the limit."""

    weights = (0.75, 0.25)


class Failing(Heun):
    def step(self, eq, y, s0, s1, past):
        if len(y) > 1:  # it can be rehearsed
            raise ArithmeticError("it does not converge")
        return super().step(eq, y, s0, s1, past)


def test_assert_order_has_the_declared_and_the_measured_order():
    case = Case("smooth", samples=16)
    with pytest.raises(AssertionError) as wrong:
        assert_order(Wrong(), case, forms=["ddim", "data"], finest=24)
    first, second = str(wrong.value).split("; ")
    assert first.startswith("wrong declares order 2 and shows 1.0")
    assert first.endswith("(ddim form, 0.3 to 0.1, ends)")
    assert second.endswith("(data form, 0.3 to 0.1, ends)")


def test_assert_order_passes_nothing_that_could_not_be_measured():
    with pytest.raises(AssertionError, match="on the pf form it could not be measured: it does not converge"):
        assert_order(Failing(), Case("smooth", samples=16))
    with pytest.raises(AssertionError, match="all errors are those of rounding"):
        assert_order("ddim", Gaussian(torch.zeros(2, dtype=torch.float64), 0.5), forms=[EXACT], finest=16)
    with pytest.raises(ValueError, match="rk45 cannot be certified: it chooses its own steps"):
        assert_order("rk45")


def test_the_console_script_is_declared():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert about["project"]["scripts"] == {"genie-bench": "analysis.__main__:script"}
