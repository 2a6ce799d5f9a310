"""Manners: mistakes get one sentence and exit code 2, files are whole, runs are repeatable and resumable."""

import errno
import functools
import importlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis import lte
from analysis.command.arguments import parser
from analysis.methods import METHODS
from analysis.show import plots
from problems import files
from problems.terminal import Lasting

ROOT = Path(__file__).parents[3]
EXPERIMENTS = (
    "lte",
    "derivatives",
    "gte",
    "orders",
    "samples",
    "overhead",
    "heads",
    "budget",
    "smoothness",
    "guidance",
    "interpolate",
    "fid",
    "weak",
)
SMALL = ["--t", "0.3", "--samples", "20", "--points", "4", "--solvers", "ddim", "ttm2", "s-pndm"]

MISTAKES = {
    "lte --t 2": "outside (0.001, 1]",
    "lte --t 0.001": "outside (0.001, 1]",
    "lte --t soon": "invalid float value: 'soon'",
    "lte --solvers genius": "unknown solver 'genius'; choose from genie",
    "lte --solvers genie": "has no distilled head",
    "overhead --problem toy": "is no network; choose one, such as --problem digits",
    "gte --problem nowhere.safetensors": "there is no file or folder nowhere.safetensors",
    "lte --solvers rk45": "no single deterministic step",
    "lte --solvers euler-maruyama": "no single deterministic step",
    "lte --problem imagenet": "unknown problem 'imagenet'; type a name that --help lists",
    "lte --problem toy_flow": "unknown problem 'toy_flow'; did you mean toy-flow",
    "lte --device quantum": "type --device cpu or --device cuda",
    "lte --dtype int8": "invalid choice: 'int8'",
    "lte --samples 0": "0 is not a positive whole number",
    "lte --samples many": "many",
    "lte --sampels 10": "unrecognized arguments",
    "derivatives --t 1": "leaves no room for a backward difference",
    "samples --steps 0": "0 is not a positive whole number",
    "gte --solvers f-pndm --nfe 5": "12",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_gets_one_sentence_and_exit_code_2(line, tmp_path, capsys):
    name, *arguments = line.split()
    with pytest.raises(SystemExit) as left:
        importlib.import_module(f"analysis.{name}").command([*arguments, "--out", str(tmp_path)])
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert MISTAKES[line] in message
    assert "Traceback" not in message
    assert message.count("\n") == 1


def test_cuda_where_there_is_none_gets_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as left:
        lte.command(["--device", "cuda", "--out", str(tmp_path)])
    assert left.value.code == 2
    assert "type --device cpu" in capsys.readouterr().err


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_has_examples_that_parse(name, capsys):
    module = importlib.import_module(f"analysis.{name}")
    with pytest.raises(SystemExit) as left:
        module.command(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    lines = [
        line.split()[3:] for line in text.splitlines() if line.startswith(f"  python -m analysis.{name}")
    ]
    assert len(lines) >= 2
    for line in lines:
        parser(module.EXPERIMENT).parse_args(line)


@pytest.fixture(scope="module")
def first(tmp_path_factory, save):
    """The files of a run, with figures as users get them."""
    out = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", save)
        assert lte.command([*SMALL, "--out", str(out)]) == 0
    return out


def test_files_manifest_and_repetition(first, tmp_path, capsys):
    """Same seed, same result, in another folder and from another store."""
    assert lte.command([*SMALL, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "lte.csv").read_bytes() == (first / "lte.csv").read_bytes()
    for suffix in (".pdf", ".png"):
        assert (first / f"lte{suffix}").stat().st_size > 5_000
    manifest = json.loads((first / "lte.json").read_text())
    assert manifest["arguments"]["samples"] == 20
    assert manifest["seed"] == 0
    assert manifest["packages"]["torch"]
    assert manifest["wall_seconds"] > 0
    assert not list(first.glob(".writing*"))
    table = pd.read_csv(first / "lte.csv")
    assert len(table) == 12
    assert capsys.readouterr().err == ""  # no progress bar where stderr is no terminal


def test_another_seed_gives_another_result(first, tmp_path):
    assert lte.command([*SMALL, "--out", str(tmp_path), "--seed", "1"]) == 0
    a, b = (pd.read_csv(folder / "lte.csv") for folder in (first, tmp_path))
    assert (a["error"] != b["error"]).all()


def test_a_second_run_measures_nothing_and_fresh_measures_all(tmp_path, written):
    lte.command([*SMALL, "--out", str(tmp_path)])
    assert len(written) == 12
    lte.command([*SMALL, "--out", str(tmp_path)])
    assert len(written) == 12
    lte.command([*SMALL, "ab2", "--out", str(tmp_path)])
    assert len(written) == 16
    lte.command([*SMALL, "--out", str(tmp_path), "--fresh"])
    assert len(written) == 28


class Uncounted(list):
    """Calls, on which no result depends."""

    def __key__(self):
        return None


def test_an_interrupted_run_exits_130_and_resumes(tmp_path, monkeypatch, capsys):
    step, calls = lte.single_step, Uncounted()

    @functools.wraps(step)
    def interrupted(**arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(**arguments)

    monkeypatch.setattr(lte, "single_step", interrupted)
    assert lte.command([*SMALL, "--out", str(tmp_path)]) == 130
    assert "the same command resumes" in capsys.readouterr().err
    assert lte.command([*SMALL, "--out", str(tmp_path)]) == 0
    assert len(calls) == 13  # 5 kept, 1 interrupted, 7 left


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("old")

    def fail(path):
        path.write_text("half of the n")
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        files.atomically(target, fail)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_what_a_killed_process_was_writing_goes_when_the_next_file_is_written(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    node = platform.node()
    stays = [f"{files.PREFIX}{node}-{os.getpid()}-x", f"{files.PREFIX}elsewhere-{gone.pid}-x", "else"]
    for name in (f"{files.PREFIX}{node}-{gone.pid}-x", *stays):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("half of the n")
    files.atomically(tmp_path / "new", lambda file: file.write_text("all"))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["new", *stays])
    left = tmp_path / "results" / f"{files.PREFIX}{node}-{gone.pid}-x"
    left.mkdir(parents=True)
    with pytest.raises(SystemExit):
        lte.command([*SMALL, "--problem", "nowhere", "--out", str(left.parent)])
    assert not left.exists()


def test_json_is_the_manifest_with_its_tables_and_nothing_else(tmp_path, capsys):
    assert lte.command([*SMALL, "--json", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    about = json.loads(said.out)
    assert about == json.loads((tmp_path / "lte.json").read_text())
    assert about["tables"][0]["rows"]
    assert said.err == ""
    assert lte.command([*SMALL, "--quiet", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr() == ("", "")


def test_what_could_not_be_measured_is_told_to_the_quiet_too(tmp_path, capsys, monkeypatch):
    step = lte.single_step

    @functools.wraps(step)
    def failing(**arguments):
        if arguments["method"] == METHODS["ddim"]:
            raise ArithmeticError("no room")
        return step(**arguments)

    monkeypatch.setattr(lte, "single_step", failing)
    assert lte.command([*SMALL, "--json", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "no room" in said.err
    assert json.loads(said.out)["experiment"] == "lte"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_files_are_written_where_nobody_reads_what_is_said(name, tmp_path, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, name, Lasting(pipe))
        assert lte.command([*SMALL, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "lte.json").exists()


def test_a_disk_that_is_full_while_a_figure_is_written(tmp_path, capsys, monkeypatch, figures):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    assert lte.command([*SMALL, "--out", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "No space left on device" in message
    assert message.count("\n") == 1
    assert not list(tmp_path.glob(".writing*"))
    assert (tmp_path / "lte.csv").exists()


def test_an_unusable_out_exits_1_with_one_sentence(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert lte.command([*SMALL, "--out", str(blocked)]) == 1
    message = capsys.readouterr().err
    assert "give another --out" in message
    assert message.count("\n") == 1


@pytest.mark.slow
def test_as_a_user_types_it(tmp_path):
    line = ["--t", "0.3", "--samples", "4", "--points", "2", "--solvers", "ddim"]
    command = [sys.executable, "-m", "analysis.lte", *line, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "Local truncation error" in done.stdout
    assert done.stderr == ""
