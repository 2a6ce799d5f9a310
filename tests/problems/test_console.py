"""What a command does to its process before it begins."""

import ctypes

import pytest

from problems import console


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
