"""Where trajectories end, against where they should: the measurement behind every study of global errors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from analysis.measure.case import Case
from analysis.measure.features import Features, classifier
from analysis.measure.rows import Row
from analysis.methods import Method
from analysis.study.cells import Cell, Result, Study


def end_point(
    case: Case, method: Method, steps: int, encode_steps: int, features: Features | None
) -> dict[str, Any]:
    """Measure where each trajectory ends, how far from where it should, and what it cost.

    Parameters
    ----------
    case
        The trajectories.
    method, steps
        How they are sampled.
    encode_steps
        Steps of the way there: trajectories are then sent from exact samples of p_{t_cut} to the latents and
        back, and compared with themselves. 0 where they begin with latents.
    features
        Features of images, in which errors are measured too.

    Returns
    -------
    Arrays by name: the L2 errors in x (samples,), the bills, the errors in features, the error of the
    reference and, where the data have components, whether the trajectory ends nearest to another component
    than the exact one does (samples,).

    Raises
    ------
    ArithmeticError
        If no error is finite.
    """
    problem, there = case.problem, 0.0
    begin = case.data(problem.schedule.stop) if encode_steps else case.latents
    x = begin
    if encode_steps:
        x, bill = case.encode(method, encode_steps, begin)
        there = bill.nfe
    x, back = case.sample(method, steps, x)
    exact, own_error = (begin, 0.0) if encode_steps else (case.exact().x[-1], case.exact().error)
    target = exact
    if method.denoise:
        target = case.denoise(exact) if encode_steps else case.denoised
    error = (x - target).flatten(1).norm(dim=1)
    if len(error) and not bool(error.isfinite().any()):
        raise ArithmeticError("no trajectory stays finite, or none of the exact ones does")
    arrays: dict[str, Any] = {
        "error": error.numpy(),
        "encode_nfe": there,
        **asdict(back),
    }
    if features is not None:
        arrays["feature_error"] = (features.of(x) - features.of(target)).norm(dim=1).numpy()
    alpha = 1.0 if method.denoise else problem.schedule.alpha(problem.schedule.stop)
    here, wanted = problem.nearest(x / alpha), problem.nearest(target / alpha)
    if here is not None and wanted is not None:
        arrays["flip"] = (here != wanted).numpy()
    return {**arrays, "reference_error": own_error}


def ends(case: Case, rows: Iterable[Row], study: Study, features: Features | None = None) -> list[Result]:
    """Return the ends by every row's method, from the store where they are there; see ``end_point``.

    Errors are measured in features too: by default in those of a shipped classifier of such states.
    """
    features = features or classifier(case.problem)
    cells = []
    for row in rows:
        factors = {name: factor for name, factor in row.factors.items() if name != "billed"}
        steps = {"steps": row.steps, "encode_steps": row.encode_steps}
        arguments = {"case": case, "method": row.method, "features": features, **steps}
        cells.append(Cell({**case.config, **factors, **steps}, end_point, arguments))
    return study.run("ends", cells)
