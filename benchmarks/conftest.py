"""Timings on one thread, and after them what each row's work bought: its NFE and its error."""

from __future__ import annotations

import pytest
import torch
from tabulate import tabulate


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter, config):
    """Print the extra_info of every benchmark beside its time, so that a row is a work-precision point."""
    session = getattr(config, "_benchmarksession", None)
    done = [b for b in session.benchmarks if b.extra_info and b.stats.rounds] if session else []
    for group in dict.fromkeys(b.group for b in done):
        rows = [
            {"benchmark": b.name, "min (ms)": f"{1e3 * b.stats.min:.4g}"}
            | {k: f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in b.extra_info.items()}
            for b in done
            if b.group == group
        ]
        terminalreporter.write_line(f"\n{group}: work and precision\n")
        terminalreporter.write_line(tabulate(rows, headers="keys", disable_numparse=True))
