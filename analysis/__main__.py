"""Run a command by its name, or list all of them: ``python -m analysis``, and the console script."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import takewhile

from analysis.command.experiment import PLUGGED, REPORT, commands, experiments
from analysis.command.run import main, start
from analysis.methods import plugins
from analysis.study.libraries import package_version
from problems.console import UsageError

SCRIPT = "genie-bench "


def listed(launcher: str) -> str:
    """Return a line for each command."""
    found = {e.name: e.finding for e in experiments()}
    rest = {"report": REPORT, "pages": "Lists of experiments in README.md and tox.ini, tables of the docs."}
    lines = {**found, **{name: rest.get(name, "") for name in commands() if name not in found}}
    width = max(map(len, lines))
    return "\n".join(f"  {launcher}{name:{width}}  {what}" for name, what in lines.items())


def script(argv: Sequence[str] | None = None, launcher: str = SCRIPT) -> int:
    """Run what was typed after ``genie-bench``; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["--version"]:
        print(package_version())
        return 0
    if words[:1] == ["--plugin"]:  # files may come before the name of the command too
        files = list(takewhile(lambda word: word.endswith(".py"), words[1:]))
        words = [*words[1 + len(files) :], "--plugin", *files]
    plugins.installed()
    try:
        for file in plugins.files_in(words):
            plugins.from_file(file)
    except UsageError as error:
        print(f"{launcher.strip()}: {error}", file=sys.stderr)
        return 2
    if not words or words[0] in ("-h", "--help", "--plugin"):
        print(f"usage: {launcher}NAME ... (NAME --help says more)\n\n{listed(launcher)}")
        return 0
    name, *rest = words
    if name in PLUGGED:
        return main(PLUGGED[name], rest, launcher)
    if name in commands():
        return start(name, rest, launcher)
    near = get_close_matches(name, [*commands(), *PLUGGED], n=3)
    advice = f"did you mean {' or '.join(near)}?" if near else f"{launcher.strip()} --help lists all"
    print(f"{launcher.strip()}: there is no command {name!r}; {advice}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(script(launcher="python -m analysis "))
