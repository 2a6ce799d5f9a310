"""Figures are drafts here too, and writes can be counted."""

from tests.analysis.conftest import _drafts, written  # noqa: F401
