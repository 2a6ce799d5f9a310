"""Problems of one's own by file and function, by module, and by the path of a model, also on workers."""

import pickle
import sys
import warnings

import pandas as pd
import pytest
import torch

from analysis.__main__ import script
from analysis.measure import reference
from analysis.measure.case import Case
from analysis.measure.problems import opened, portable
from problems import Gaussian
from problems.console import UsageError
from problems.images.score import weights
from tests.problems.models.test_diffusers_folder import unet, write

TEXT = """
import torch
from torch import nn

from problems import VP, Network

FACTOR = {factor}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.layer.weight.data = FACTOR * torch.arange(6.0).view(2, 3) / 6.0
        self.layer.bias.data = torch.zeros(2)

    def forward(self, x, time):
        return torch.tanh(self.layer(torch.cat([x, time[:, None]], 1)))


def make():
    return Network(Net(), VP(), (2,))


def number():
    return 3


def wrong():
    raise KeyError("missing")


NOTHING = 3
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text(TEXT.format(factor=1.0))
    return path


@pytest.fixture
def rough(monkeypatch):
    """References of networks in few steps, where errors are compared with each other only."""
    monkeypatch.setattr(reference, "STEPS", (8, 16))


def errors(line):
    assert script([*line.split(), "--out", "out"]) == 0
    return pd.read_csv("out/gte.csv")["error"].tolist()


LINE = "gte --problem mine.py:make --samples 4 --nfe 6 --solvers ddim ttm2 ipndm --grids quadratic"


def test_a_function_of_a_file_is_a_problem_and_an_edit_of_it_another(file, rough):
    one = opened("mine.py:make")
    assert one.event_shape == (2,)
    assert opened(f"{file}:make") is one
    before = errors(LINE)
    assert errors(LINE) == before
    file.write_text(TEXT.format(factor=2.0))
    assert errors(LINE) != before


def test_a_function_of_a_module_is_a_problem(file, monkeypatch):
    monkeypatch.syspath_prepend(str(file.parent))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert opened("mine:make").event_shape == (2,)


def test_workers_find_the_same_problem(file, cluster_address):
    alone = errors(LINE)
    assert errors(f"{LINE} --fresh --scheduler {cluster_address}") == alone


def test_other_processes_are_told_the_whole_path(file, tmp_path):
    case = Case("mine.py:make", 3)
    assert case.typed == portable("mine.py:make") == f"{tmp_path}/mine.py:make"
    assert case.name == "mine.py:make"
    other = pickle.loads(pickle.dumps(case))
    assert (other, other.name) == (case, "mine.py:make")
    assert portable("toy") == "toy"
    assert portable(str(weights("digits"))) == str(weights("digits").resolve())


STRANGE = {
    "nowhere": "unknown problem 'nowhere'",
    "mine.py": "type mine.py:FUNCTION",
    "mine.py:nowhere": "no function 'nowhere'",
    "mine.py:NOTHING": "no function 'NOTHING'",
    "mine.py:number": "returns a int, not a Problem",
    "mine.py:wrong": "the problem of wrong cannot be made: 'missing'",
    "nowhere.py:make": "there is no such file",
    "no.such.module:make": "cannot be imported",
    "broken.py:make": r"cannot be used: ZeroDivisionError: division by zero \(line 1\)",
    "empty": "folder without model_index.json",
}


@pytest.mark.parametrize(("name", "words"), STRANGE.items(), ids=STRANGE)
def test_what_is_no_problem_is_told_in_a_sentence(name, words, file, tmp_path, capsys):
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=words):
        opened(name)
    with pytest.raises(SystemExit) as left:
        script(["gte", "--problem", name, "--out", "out"])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_class_in_place_of_a_problem(monkeypatch):
    from analysis.measure import problems

    monkeypatch.setitem(problems.PROBLEMS, "odd", lambda: Gaussian)
    with pytest.raises(UsageError, match="not a Problem"):
        opened("odd")


def test_a_folder_of_diffusers_runs_and_says_what_it_assumes(tmp_path, monkeypatch, capsys, rough):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, unet())
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        table = errors("gte --problem . --samples 2 --steps 3 --solvers ddim ttm2 --grids linear")
    assert len(table) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"genie-bench gte: {tmp_path} has no scheduler")
    assert said.count("\n") == 1


def test_a_model_that_is_written_again_is_read_again(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(tmp_path, unet())
        one = opened(str(tmp_path))
        assert opened(str(tmp_path)) is one
        network = unet()
        network.conv_in.bias.data += 1.0
        write(tmp_path, network)
        x = torch.zeros(1, 1, 8, 8)
        assert not torch.equal(opened(str(tmp_path))(x, 3.0), one(x, 3.0))
