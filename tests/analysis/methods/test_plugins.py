"""Additions from outside: a file's values are in every command and on workers, mistakes get a sentence."""

import importlib.metadata
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest

from analysis import lte
from analysis.__main__ import script
from analysis.command.experiment import PLUGGED
from analysis.gte import end_points
from analysis.measure.case import Case
from analysis.measure.features import FEATURES
from analysis.measure.problems import PROBLEMS
from analysis.methods import FORMS, GRIDS, METHODS, plugins
from solvers import Solver

FILE = '''
import math
from dataclasses import dataclass
from functools import partial

import torch

from analysis.api import Cell, Coordinates, Experiment, Features, Grid, Method, Outcome, frame
from problems import Mixture, smooth_mixture
from problems.forms import DDIM
from solvers import RungeKutta
from solvers.grids import edm

@dataclass(frozen=True)
class Mine(RungeKutta):
    """Ralston's method of order 3."""
    stages = ((1 / 2,), (0.0, 3 / 4))
    weights = (2 / 9, 1 / 3, 4 / 9)
    classical_order = 3

class Shown(DDIM):
    """The DDIM ODE again."""

def pair(apart):
    return Mixture(torch.tensor([[-apart, 0.0], [apart, 0.0]], dtype=torch.float64), 0.2)

def norm(x):
    return x.double().cpu().norm(dim=1, keepdim=True)

def scaled(case, factor):
    return {"size": factor * case.latents.norm(dim=1).numpy()}

def measure(session):
    cells = [Cell({"factor": f}, scaled, {"case": session.case, "factor": f}) for f in (1.0, 2.0)]
    found = session.study.run("sizes", cells)
    return Outcome(frame(found, size=[r.arrays["size"].mean() for r in found]))

SIZES = Experiment(
    name="sizes", title="Sizes", finding="How large the latents are.", help="Sizes of latents.",
    examples=("--samples 5",), arguments=lambda p: None, measure=measure,
    report=lambda session, outcome: None, draw=lambda session, outcome: {},
)

GENIE_BENCH = {
    "methods": {"mine": Method(Mine())},
    "problems": {"pair": partial(pair, 0.5), "again": smooth_mixture},
    "forms": {"shown": Coordinates("shown", Shown, variable="gamma")},
    "grids": {"edm3": Grid("edm3", lambda n, schedule: edm(n, schedule, 3.0, schedule.start, schedule.stop))},
    "features": {"norm": lambda problem: Features("norm", norm)},
    "experiments": {"sizes": SIZES},
}
'''
RIGHT, WRONG = "(2 / 9, 1 / 3, 4 / 9)", "(2 / 9, 4 / 9, 1 / 3)"


@pytest.fixture(autouse=True)
def _tables():
    with (
        mock.patch.dict(METHODS),
        mock.patch.dict(PROBLEMS),
        mock.patch.dict(FORMS),
        mock.patch.dict(GRIDS),
        mock.patch.dict(FEATURES),
        mock.patch.dict(PLUGGED),
        mock.patch.dict(plugins._FILES),
    ):
        yield


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-plugin.py").write_text(FILE)
    return "my-plugin.py"  # a relative path, as one types it


def run(line, file):
    return script([*line.split(), "--plugin", file])


LINE = "gte --problem pair --samples 8 --solvers mine ddim --forms shown ddim --grids edm3 --nfe 6 --out"


def test_workers_measure_what_a_file_adds(file, cluster_address, capfd):
    """Its classes, partial functions and lambdas lie deep inside of cases and methods."""
    assert run(f"{LINE} here", file) == 0
    assert run(f"{LINE} there --scheduler {cluster_address}", file) == 0
    one, other = (pd.read_csv(f"{out}/gte.csv") for out in ("here", "there"))
    assert set(one["solver"]) == {"mine", "ddim"}
    assert set(one["form"]) == {"shown", "ddim"}
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert "Could not be measured" not in capfd.readouterr().out


def test_workers_measure_features_and_experiments_of_a_file(file, cluster_address):
    line = "fid --problem pair --features norm --samples 8 --solvers mine --grids edm3 --nfe 6 --out o"
    assert run(f"{line} --scheduler {cluster_address}", file) == 0
    assert "norm" in set(pd.read_csv("o/fid.csv")["feature"])
    assert run(f"sizes --problem pair --samples 5 --out o --scheduler {cluster_address}", file) == 0
    assert pd.read_csv("o/sizes.csv")["size"].is_monotonic_increasing


def test_problems_of_files_travel_by_value(file):
    plugins.from_file(Path(file))
    assert Case("again").typed == ""  # a function that can be imported, under a name that workers do not know
    assert Case("pair").typed == ""
    assert Case("smooth").typed == "smooth"


def test_help_and_the_list_of_commands_have_what_a_file_adds(file, capsys):
    assert script(["--plugin", file]) == 0
    assert "sizes" in capsys.readouterr().out
    for name, words in {"fid": ("pair", "shown", "edm3", "norm", "from plugins: mine"), "sizes": ()}.items():
        with pytest.raises(SystemExit, match="0"):
            script(["--plugin", file, name, "--help"])
        told = capsys.readouterr().out
        assert all(word in told for word in (*words, f"genie-bench {name} --"))


def test_an_edited_file_is_read_anew_and_its_certificate_measured_anew(file, tmp_path, written):
    line = "orders --solvers mine heun --forms ddim --grids edm3 --samples 16 --finest 24 --start 0.3 --out o"
    assert run(line, file) == 0
    assert len(written) == 2
    (tmp_path / file).write_text(FILE.replace(RIGHT, WRONG))
    assert run(line, file) == 3
    assert len(written) == 3  # Heun's method is not measured again
    table = pd.read_csv("o/orders.csv").set_index("solver")
    assert dict(table["verdict"]) == {"mine": "FAIL", "heun": "pass"}
    (tmp_path / file).write_text(FILE)
    assert run(line, file) == 0
    assert len(written) == 3


SOME = """
from analysis.api import Grid, Method
from analysis.lte import EXPERIMENT
from problems import toy_mixture
from solvers import Heun
GENIE_BENCH = """
MISTAKES = {
    "x = 1": 'it lists nothing; write GENIE_BENCH = {"methods": {"name": METHOD}}',
    "GENIE_BENCH = [1]": "it lists nothing",
    "def f(:": "SyntaxError: invalid syntax (my-plugin.py, line 1)",
    "\nimport nothing_of_this_name": "No module named 'nothing_of_this_name' (line 2)",
    "raise SystemExit": "SystemExit",
    "raise RuntimeError('first\\nsecond')": "RuntimeError: first (line 1)",
    SOME + "{'solvers': {'x': Heun()}}": "there is no group 'solvers'; choose from methods, forms, grids",
    SOME + "{'methods': {'x': Heun()}}": "'x' among the methods is a Heun, not a Method",
    SOME + "{'methods': {'x': Heun}}": "'x' among the methods is the class Heun, not a Method",
    SOME
    + "{'methods': {'heun': Method(Heun())}}": "the name 'heun' is taken among the methods; choose another",
    SOME + "{'methods': {'euler': Method(Heun())}}": "the name 'euler' is taken",
    SOME + "{'problems': {'x': toy_mixture()}}": "'x' among the problems is a Mixture, not a function",
    SOME + "{'grids': {'x': Grid('y', print)}}": "'x' among the grids calls itself 'y'; give it one name",
    SOME + "{'experiments': {'lte': EXPERIMENT}}": "the name 'lte' is taken",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_a_file_gets_one_sentence_and_exit_code_2(text, file, tmp_path, capsys):
    (tmp_path / file).write_text(text)
    before = [dict(group.table) for group in plugins._GROUPS.values()]
    assert script(["lte", "--plugin", file]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"genie-bench: --plugin {file} cannot be used: ")
    assert MISTAKES[text] in message
    assert message.count("\n") == 1
    assert [dict(group.table) for group in plugins._GROUPS.values()] == before


def test_a_file_that_is_not_there_or_no_python_gets_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plugin.txt").write_text("")
    for file, words in {"none.py": "there is no such file", "plugin.txt": "is no Python file"}.items():
        with pytest.raises(SystemExit, match="2"):
            lte.command(["--plugin", file])
        message = capsys.readouterr().err
        assert message.startswith(f"python -m analysis.lte: --plugin {file}")
        assert words in message


def test_a_file_can_import_its_neighbours(file, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "neighbour_of_a_plugin.py").write_text("from problems import toy_mixture as far")
    text = "from neighbour_of_a_plugin import far\nGENIE_BENCH = {'problems': {'far': far}}"
    (tmp_path / "sub" / "mine.py").write_text(text)
    plugins.from_file(Path("sub/mine.py"))
    assert "far" in PROBLEMS
    del sys.modules["neighbour_of_a_plugin"]


def test_a_half_used_file_leaves_nothing_behind(file, tmp_path):
    (tmp_path / file).write_text(FILE.replace('"sizes": SIZES', '"lte": SIZES'))
    assert script(["lte", "--plugin", file]) == 2
    assert "mine" not in METHODS
    assert "pair" not in PROBLEMS


def test_a_package_that_cannot_be_used_is_told_of_and_left_out(monkeypatch, capsys):
    entry = importlib.metadata.EntryPoint("broken", "nothing_of_this_name:VALUE", "genie_bench.methods")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == entry.group else [])
    monkeypatch.setattr(plugins, "_ASKED", set())
    plugins.installed()
    assert "plugin nothing_of_this_name:VALUE cannot be used: ModuleNotFoundError" in capsys.readouterr().err
    assert "broken" not in METHODS


def test_a_solver_that_is_no_value_is_answered():
    @dataclass
    class Changing(Solver):
        order = 1

        def step(self, eq, y, s0, s1, past): ...

    with pytest.raises(TypeError, match=r"write @dataclass\(frozen=True\) above the class Changing"):
        end_points("toy", Changing())


def test_functions_take_forms_and_grids_by_name_and_answer_a_mistake():
    with pytest.raises(ValueError, match="unknown grid 'edm9'; choose from linear"):
        end_points("toy", "ddim", grids=["edm9"])
    with pytest.raises(ValueError, match="unknown form 'dim'; choose from ddim"):
        end_points("toy", "ddim", forms=["dim"])


def test_the_console_script_answers_a_mistyped_name(capsys):
    assert script(["ordres"]) == 2
    assert capsys.readouterr().err == "genie-bench: there is no command 'ordres'; did you mean orders?\n"
    assert script(["--version"]) == 0
    assert capsys.readouterr().out == f"{importlib.metadata.version('genie-bench')}\n"
