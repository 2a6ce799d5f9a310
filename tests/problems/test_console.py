"""What a command does to its process, and what it says when something goes wrong."""

import argparse
import ctypes
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from problems import console
from problems.console import Parser, UsageError, attempt, device, finite, folder, positive, seed, size, stem


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_the_environment_takes_precedence(name, monkeypatch):
    asked = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: asked.append(1))
    monkeypatch.setenv(name, "1000000")
    console.keep_freed_memory()
    assert not asked


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    console.keep_freed_memory()


# --- what went wrong


def attempted(error, capsys):
    """The exit code of a command that fails, and what it says."""

    def action():
        raise error

    code = attempt(Parser("analysis.x", "", ""), action, "all is kept")
    said = capsys.readouterr().err
    assert said.startswith("python -m analysis.x: ")
    assert said.count("\n") == 1
    return code, said


def test_what_nothing_foresaw_is_one_sentence_and_its_traceback_is_in_a_file(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, said = attempted(KeyError("of\nthis"), capsys)
    assert code == 1
    (file,) = tmp_path.iterdir()
    assert f"its traceback is in {file}" in said
    text = file.read_text()
    assert text.startswith("Traceback (most recent call last)")
    assert "def action" not in said
    assert "KeyError" in text


def test_a_traceback_that_cannot_be_written_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert "could not be written" in attempted(TypeError("x"), capsys)[1]


def allocated(bytes_):
    try:
        torch.empty(bytes_, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), allocated(2**62)],
    ids=["python", "cuda", "cpu"],
)
def test_memory_that_is_not_there_has_its_own_sentence(error, capsys):
    code, said = attempted(error, capsys)
    assert code == 1
    assert "not enough memory" in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_say_what_is_kept(number, code, capsys):
    def action():
        os.kill(os.getpid(), number)
        time.sleep(5)

    assert attempt(Parser("analysis.x", "", ""), action, "all is kept") == code
    assert capsys.readouterr().err == "python -m analysis.x: interrupted; all is kept\n"


# --- arguments


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (positive, "1", 1),
        (positive, "1000000", 10**6),
        (size, str(2**63 - 1), 2**63 - 1),
        (seed, "0", 0),
        (seed, str(2**63 - 1), 2**63 - 1),
        (finite, "-1e300", -1e300),
        (folder, "results", Path("results")),
        (folder, ".", Path()),
        (stem, "runs/digits", Path("runs/digits")),
    ],
)
def test_arguments_that_are_taken(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((positive, text) for text in ("0", "-1", "1.5", "1e3", "", "1000001", "1000000000000000", "nan")),
        *((size, text) for text in ("0", str(2**63), "1e13")),
        *((seed, text) for text in ("-1", str(2**63), str(2**64), "1.0", "")),
        *((finite, text) for text in ("nan", "inf", "-inf", "1e999", "x")),
        *((folder, text) for text in ("", " ", "/", "//", "/..", "a\0b")),
        *((stem, text) for text in ("", ".", "/", "..", "runs/..", "a\0b")),
    ],
)
def test_arguments_that_are_refused(kind, text):
    with pytest.raises(argparse.ArgumentTypeError):
        kind(text)


@pytest.mark.parametrize("name", ["meta", "mps", "xpu", "hpu"])
def test_a_device_that_does_not_compute_is_refused(name):
    if name in ("mps", "xpu") and getattr(torch, name).is_available():
        pytest.skip("this machine has one")
    with pytest.raises(UsageError, match="type --device cpu"):
        device(name)


def test_memory_is_asked_for_before_it_is_needed():
    console.require_memory(1e6, "this", "type less")
    with pytest.raises(UsageError, match="this needs about 1,000,000,000 GB of memory"):
        console.require_memory(1e18, "this", "type less")
