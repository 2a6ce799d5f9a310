"""Figures that the paper prints, to stand beside ours: GENIE (NeurIPS 2022), arXiv:2210.05475.

They are FIDs of CIFAR-10 samples: other images, another network and other features than those of the suite.
So the order of the methods and how fast they fall can be compared, not the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

CAVEAT = "the paper's: CIFAR-10, Inception features, another model"


@dataclass(frozen=True)
class Published:
    """A table of the paper, or the rows of it that the suite has methods for.

    Attributes
    ----------
    source
        The table.
    what
        What it shows.
    columns
        Names of the columns.
    rows
        Cells, digit by digit as they are printed.
    notes
        Lines below it.
    """

    source: str
    what: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


_NFE = ("5 NFE", "10 NFE", "15 NFE", "20 NFE", "25 NFE")


def _lines(*lines: str) -> tuple[tuple[str, ...], ...]:
    """Return rows; the last words of each line are the cells, one for each budget, the others its name."""
    return tuple(tuple(line.rsplit(maxsplit=len(_NFE))) for line in lines)


BEST = Published(
    "Table 1",
    "FID, best over AFS and denoising",
    ("method", *_NFE),
    _lines(
        "GENIE, best ρ 11.2 5.28 4.49 3.94 3.64",
        "GENIE 13.9 5.97 4.49 3.94 3.67",
        "DDIM, best ρ 27.6 11.2 7.35 5.87 5.16",
        "DDIM 29.7 11.2 7.35 5.87 5.16",
        "S-PNDM 35.9 10.3 6.61 5.20 4.51",
        "F-PNDM N/A N/A 10.3 5.96 4.73",
        "Euler–Maruyama 325 230 164 112 80.3",
    ),
    (
        "the methods of one checkpoint; linear striding for S-PNDM and F-PNDM, quadratic for the others",
        "GENIE with exact derivatives, each counted as an evaluation (Sec. 5.1): "
        "9.22 at 10 NFE, 4.11 at 20, 3.54 at 30, 3.46 at 40",
    ),
)

ABLATION = Published(
    "Table 2",
    "FID of GENIE by the head that is used",
    ("head", *_NFE),
    _lines(
        "Standard 13.9 6.04 4.49 3.94 3.67",
        "No mixed 14.7 6.32 4.82 4.31 4.10",
        "No weighting 14.8 7.45 5.89 5.17 4.80",
        "Bigger model 13.7 5.58 4.46 4.05 3.77",
    ),
    ("analytical first step always, best over denoising",),
)

STRIDING = Published(
    "Table 7",
    "FID by the exponent ρ of the grid",
    ("method", "ρ", *_NFE),
    tuple(
        (*name.split(), *cells)
        for name, *cells in _lines(
            "GENIE 1.5 11.2 5.28 5.03 4.35 3.97",
            "GENIE 2.0 13.9 5.97 4.49 3.94 3.67",
            "GENIE 2.5 17.8 7.19 4.57 3.94 3.64",
            "DDIM 1.5 27.6 13.5 8.97 7.20 6.15",
            "DDIM 2.0 29.7 11.2 7.35 5.87 5.16",
            "DDIM 2.5 33.2 13.4 8.28 6.36 5.39",
        )
    ),
    ("AFS and denoising as they are best for ρ = 2; quadratic is ρ = 2",),
)


class Claim(NamedTuple):
    """An order of convergence that a publication states for its method.

    Attributes
    ----------
    order
        The order.
    source
        Who states it, and where.
    remark
        Why it is not what is measured, if it is not.
    """

    order: int
    source: str
    remark: str = ""


_FIRST = "the first step is corrected with two data, h³ off"

CLAIMS = {
    "heun": Claim(2, "Karras et al. 2022, Sec. 3"),
    "ttm2": Claim(2, "Dockhorn et al. 2022, App. B.1"),
    "ttm3": Claim(3, "Dockhorn et al. 2022, App. B.1"),
    "s-pndm": Claim(2, "Liu et al. 2022, Sec. 3.3"),
    "f-pndm": Claim(2, "Liu et al. 2022, Sec. 3.3"),
    "fon": Claim(4, "Liu et al. 2022, Sec. 4, by its name"),
    "dpm-solver-2": Claim(2, "Lu et al. 2022a, Thm. 3.2"),
    "dpm-solver-3": Claim(3, "Lu et al. 2022a, Thm. 3.2"),
    "dpm-solver++2s": Claim(2, "Lu et al. 2022b, Sec. 4, Alg. 1"),
    "dpm-solver++2m": Claim(2, "Lu et al. 2022b, Sec. 4, Alg. 2"),
    "unipc1": Claim(2, "Zhao et al. 2023, Sec. 3"),
    "unipc2": Claim(3, "Zhao et al. 2023, Sec. 3"),
    "unipc2-b1": Claim(3, "Zhao et al. 2023, Sec. 3"),
    "unipc3": Claim(4, "Zhao et al. 2023, Sec. 3", _FIRST),
    "unipc3-b1": Claim(4, "Zhao et al. 2023, Sec. 3", _FIRST),
}
"""What publications claim for methods, to be held against what they show: 2022a is DPM-Solver, 2022b its ++.

The numbers in k-diffusion, diffusers and the authors' code are parameters, such as how many points a
polynomial goes through, and no claims: ``lms``, ``ipndm``, ``ipndm-v``, ``log-deis…``, ``…3m`` are not here.
"""
