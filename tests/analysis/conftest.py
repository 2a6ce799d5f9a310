"""Figures of tests are drafts, drawn and laid out in full but written coarsely; writes can be counted."""

from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from analysis.show import plots
from analysis.study.store import Store

SAVE = plots.save


def draft(figure, path):
    """Write a figure as a coarse PNG, and a PDF that is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(path.name + suffix) for suffix in (".pdf", ".png")]
    files[0].write_bytes(b"%PDF-1.4\n")
    with plots.style():
        figure.savefig(files[1], dpi=20)
    plt.close(figure)
    return files


@pytest.fixture(scope="session", autouse=True)
def _drafts():
    patch = pytest.MonkeyPatch()
    patch.setattr(plots, "save", draft)
    yield
    patch.undo()


@pytest.fixture
def figures(monkeypatch):
    """Write figures as users get them."""
    monkeypatch.setattr(plots, "save", SAVE)


@pytest.fixture
def written(monkeypatch):
    """The keys of the cells that are written to any store, in their order."""
    keys: list[str] = []
    write = Store.write
    monkeypatch.setattr(Store, "write", lambda self, *a: (keys.append(a[0]), write(self, *a)))
    return keys


@pytest.fixture(scope="session")
def root():
    """The folder of the checkout."""
    return Path(__file__).parents[2]
