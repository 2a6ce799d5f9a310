"""A solver, a problem, a form, a grid, features and an experiment for genie-bench."""
