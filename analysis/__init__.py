"""What is measured: one module per experiment, each a command, ``python -m analysis.NAME``."""
