"""What a user types to run a method: lines of this suite, and code for diffusers. Made of plain values."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WIDTH = 100
"""Of the code."""

SAMPLES = 16
"""Samples that it makes."""

LIBRARY = """\
from dataclasses import replace

from analysis.api import {names}

method = replace(METHODS[{solver}], form=FORMS[{form}], grid={grid}{afs})
x, bill = Case({problem}, samples={samples}).sample(method, steps={steps})"""

DIFFUSERS = """\
import torch
from diffusers import {imports}

{model}
{levels}scheduler = {name}(
{options}
)
scheduler.set_timesteps({inference})
{given}x = torch.randn({shape}, generator=torch.Generator().manual_seed(0){dtype})
x = x * scheduler.init_noise_sigma
with torch.no_grad():
    for t in scheduler.timesteps:
        output = {output}
        x = scheduler.step(output, t, x).prev_sample
{end}"""

GIVEN = """\
scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
scheduler.timesteps = torch.tensor(timesteps)
"""


def command(name: str, options: Mapping[str, Any]) -> str:
    """Return the line that runs a command; options without a value are left out."""
    words = [f"python -m analysis.{name}"]
    for option, value in options.items():
        if value is True:
            words.append(f"--{option}")
            continue
        given = [value] if isinstance(value, str | int) and value is not False else list(value or ())
        if given:
            words += [f"--{option}", *(shlex.quote(str(v)) for v in given)]
    return " ".join(words)


def library(problem: str, solver: str, form: str, grid: str, afs: bool, steps: int) -> str:
    """Return the code that samples by a method with this library."""
    listed = "," in grid
    return LIBRARY.format(
        problem=_quoted(problem),
        solver=_quoted(solver),
        form=_quoted(form),
        names="FORMS, METHODS, Case, grid_of" if listed else "FORMS, GRIDS, METHODS, Case",
        grid=f"grid_of({_quoted(grid)})" if listed else f"GRIDS[{_quoted(grid)}]",
        afs=", afs=True" if afs else "",
        samples=SAMPLES,
        steps=steps,
    )


def levels(sigmas: Iterable[float], timesteps: Iterable[float]) -> str:
    """Return the lines that name noise levels and times, with nine digits each."""
    lines = []
    for name, values in {"sigmas": sigmas, "timesteps": timesteps}.items():
        text = f"{name} = [{', '.join(_number(value) for value in values)}]"
        lines += textwrap.wrap(text, WIDTH, subsequent_indent=" " * 4)
    return "\n".join(lines)


def diffusers(
    name: str,
    options: Mapping[str, Any],
    shape: Sequence[int],
    *,
    problem: str,
    subfolder: str | None,
    double: bool,
    visited: tuple[Sequence[float], Sequence[float]] | None,
    inference: int,
    raised: bool,
) -> str:
    """Return code that samples by a scheduler of diffusers.

    Parameters
    ----------
    name, options
        Class and configuration of the scheduler.
    shape
        Shape of a state.
    problem
        What the problem is called, or the folder of a pipeline.
    subfolder
        Where in that folder a ``UNet2DModel`` lies that takes nothing but a state and a time; None for any
        other problem, of which the suite is asked for ε.
    double
        Whether states are float64, and not float32.
    visited
        The noise levels and the times that the scheduler is given; None where it chooses nodes of a table.
    inference
        Its inference steps.
    raised
        Whether its states are x/α.
    """
    told = "scheduler.scale_model_input(x, t)"
    if subfolder is None:
        imports = f"{name}\n\nfrom analysis.api import Case"
        model, output = f"problem = Case({_quoted(problem)}).working", f"problem({told}, float(t))"
    else:
        imports = ", ".join(sorted([name, "UNet2DModel"]))
        inside = f", subfolder={_quoted(subfolder)}" if subfolder else ""
        model = f"model = UNet2DModel.from_pretrained({_quoted(problem)}{inside}).eval()"
        output = f"model({told}, t).sample"
    return DIFFUSERS.format(
        imports=imports,
        model=model,
        levels=f"{levels(*visited)}\n" if visited else "",
        name=name,
        options="\n".join(f"    {key}={_value(value)}," for key, value in options.items()),
        inference="len(timesteps)" if visited else inference,
        given=GIVEN if visited else "",
        shape=", ".join(map(str, (SAMPLES, *shape))),
        dtype=", dtype=torch.float64" if double else "",
        output=output,
        end="x = x / (1 + sigmas[-1] ** 2) ** 0.5  # this scheduler's states are x/alpha\n" if raised else "",
    ).rstrip()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _value(value: object) -> str:
    return _quoted(value) if isinstance(value, str) else repr(value)


def _number(value: float) -> str:
    text = f"{value:.9g}"
    return text if any(c in text for c in ".en") else f"{text}.0"
