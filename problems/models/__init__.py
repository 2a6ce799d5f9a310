"""Networks of other makers, and the readers of their files: one file for each architecture and each maker."""
