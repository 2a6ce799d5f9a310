"""What a command does to its process before it begins."""

import ctypes
import os
import resource
import subprocess
import sys

import pytest

from problems import console

FAULTS = """
import resource, torch
from problems.console import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [torch.ones(2**18, dtype=torch.float64) for _ in range(16)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
page_faults()
print(page_faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="not the GNU C library")
def test_freed_memory_is_kept():
    """Sixteen arrays of two megabytes, which have 8192 pages, are asked for twice."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    faults = int(subprocess.check_output([sys.executable, "-c", FAULTS], env=environment))
    assert faults < 0.1 * 16 * 2**21 / resource.getpagesize()


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
