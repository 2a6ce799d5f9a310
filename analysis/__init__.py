"""What is measured: one module per experiment, each a command, ``python -m analysis.NAME``."""

import problems  # noqa: F401  its first act, before torch is imported, is to answer interruptions
