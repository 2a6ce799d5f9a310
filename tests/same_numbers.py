"""Do two trees of this project give the same numbers, to the last bit?

Typed in the root of each tree, with the interpreter of its environment:

    python tests/same_numbers.py run FOLDER [--only LABEL ...]

runs every line of ``LINES`` as a command, ``python -m analysis.NAME … --out FOLDER/LABEL``, in turn,
and keeps what it writes. The path of this file does not matter, so it serves a tree that has none, too. Then

    python tests/same_numbers.py compare OLD NEW

says of every CSV of the two folders whether it is the same to the last byte and, if not, in which columns and
rows it differs and by how much. The exit code is 1 if anything differs, or if a command fails. Seconds that
were measured are left out, by the names in ``TIMED``.

Sizes are the smallest ones that still take every way through the code: they measure nothing.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd

FLOW = (
    "ddim ttm2 ttm3 ttm4 ttm2-pf ttm2-ideal-ddim ttm2-ideal-pf heun midpoint ralston rk3 heun3 rk4 "
    "s-pndm f-pndm ipndm ipndm-v ab2 ab3 ab4 fon lms rho-deis2 adams22 adams32 tab-deis1 tab-deis2 "
    "tab-deis3 dpm-solver-2 dpm-solver-3 dpm-solver-2m dpm-solver-3m dpm-solver++2s dpm-solver++3s "
    "dpm-solver++2m dpm-solver++2m-lower dpm-solver++3m dpm-solver++3m-exact log-deis1 log-deis2 "
    "log-deis3 exp-ttm2 exp-ttm3 unipc1 unipc2 unipc3 unipc2-b1 unipc3-b1 unipc3-lower"
)
ADAPTIVE = "rk45 rk45-each taylor-each"
RANDOM = (
    "euler-maruyama analytic-ddim optimal-ddim analytic-ddpm optimal-ddpm sde-sscs sde-strang cld-em "
    "cld-sscs cld-strang adaptive-sde ddpm sde-dpm-solver++2m sde-dpm-solver++3m "
    "sde-dpm-solver++3m-exact ddim-eta0.5 ddpm-beta dpm2-ancestral edm-churn vesde-pc"
)
GRIDS = "linear rho1.5 quadratic rho2.5 log-snr edm gamma cosine sigmoid rough"

LINES = {
    "lte-toy": f"lte --samples 20 --t 0.1 0.5 --points 3 --solvers {FLOW}",
    "lte-network": "lte --problem digits --samples 2 --t 0.3 --points 3 --solvers ddim ttm2 genie f-pndm",
    "derivatives-toy": "derivatives --samples 20 --points 6 --stencils 1 2 3",
    "derivatives-network": "derivatives --problem digits --samples 2 --t 0.3 --points 3 --direction forward",
    "gte-toy": f"gte --samples 20 --nfe 15 --grids quadratic --solvers {FLOW} {ADAPTIVE} {RANDOM}",
    "gte-ve": f"gte --problem toy-ve --samples 20 --steps 5 --grids {GRIDS} 1,0.5,0.2,0.05,0.01,1e-5 "
    "--solvers ddim ttm2 ab2 ipndm lms log-deis2 vesde-pc ddpm-beta cld-em analytic-ddpm",
    "gte-smooth": "gte --problem smooth --samples 20 --seed 3 --nfe 4 12 --afs both --denoise both "
    "--bill both --forms ddim preconditioned --grids log-snr --solvers ddim ttm2 adams22 ddpm rk45",
    "gte-mixture": "gte --problem digits-mixture --samples 4 --nfe 8 --denoise both "
    "--solvers ddim ttm3 unipc3-lower optimal-ddpm rk45-each",
    "gte-gaussians": "gte --problem digits-gaussians --dtype float32 --samples 3 --nfe 8 --grids edm "
    "--solvers ddim ttm2 dpm-solver++3m analytic-ddim optimal-ddim",
    "gte-network": "gte --problem digits --samples 2 --nfe 8 --bill both "
    "--grids quadratic 1,0.5,0.3,0.15,0.08,0.04,0.02,0.01,0.001 "
    "--solvers ddim ttm2 genie s-pndm rk45-each analytic-ddpm edm-churn",
    "gte-guided": "gte --problem digits-guided --samples 3 --nfe 8 --grids linear --solvers ddim ttm2 ddpm",
    "encode-toy": "gte --encode --samples 20 --nfe 12 --denoise both "
    "--forms ddim pf data preconditioned --grids edm --solvers ddim ttm2 ipndm unipc2 rk45",
    "encode-network": "gte --encode --problem digits --samples 3 --steps 6 --solvers ddim genie s-pndm",
    "orders-forms": "orders --samples 8 --finest 16 --grids quadratic rough "
    "--solvers ddim ttm3 s-pndm ipndm adams22 dpm-solver-3 unipc2",
    "orders-random": "orders --problem toy --samples 4 --finest 16 --start 0.3 --stop 0.2 --forms ddim "
    "--grids log-snr --solvers euler-maruyama analytic-ddim cld-em",
    "samples-toy": "samples --samples 30 --steps 5 10 --solvers ddim ttm2 euler-maruyama",
    "samples-checkpoint": "samples --problem problems/images/weights/digits.safetensors --samples 16 "
    "--steps 5 --solvers ddim genie",
    "heads": "heads --samples 2 --nfe 5 8",
    "budget": "budget --samples 2 --nfe 5 --t 0.1 0.5",
    "smoothness": "smoothness --networks digits digits-gaussians-network --samples 2 --nfe 5 --show 8 "
    "--t 0.1 0.5 --solvers ddim ttm3",
    "guidance": "guidance --samples 2 --scales 0 1 --steps 5 8",
    "interpolate-network": "interpolate --samples 1 --points 3 --nfe 6",
    "interpolate-mixture": "interpolate --problem digits-mixture --samples 2 --points 2 --nfe 8 "
    "--solvers ddim ttm3 ab2",
    "fid-toy": "fid --problem toy --samples 300 --nfe 5 10 --afs both --denoise both --grids quadratic "
    "--solvers ddim ttm2 f-pndm euler-maruyama rk45-each",
    "fid-network": "fid --samples 100 --nfe 5 --grids quadratic --solvers ddim genie euler-maruyama",
    "weak-toy": f"weak --samples 40 --nfe 10 --solvers ddim rk45 {RANDOM}",
    "weak-ve": "weak --problem toy-ve --samples 40 --steps 5 --denoise both --forms data "
    "--solvers ddim ttm2 vesde-pc ddpm-beta",
    "weak-gaussians": "weak --problem digits-gaussians --dtype float32 --samples 20 --nfe 8 --bill both "
    "--solvers ttm2 sde-dpm-solver++2m optimal-ddpm",
    "work-precision": "work_precision --samples 20 --nfe 5 10 "
    "--solvers ddim ttm2 s-pndm dpm-solver++2m adams22 rk45 rk45-each ddpm",
    "work-precision-network": "work_precision --problem digits --samples 3 --nfe 6 --bill nfe "
    "--grids log-snr --solvers ddim ttm2 genie unipc3",
    "recommend-toy": "recommend --samples 64 --nfe 10",
    "recommend-gaussian": "recommend --problem gaussian --dtype float32 --samples 64 --steps 6 --afs both "
    "--forms ddim data --grids quadratic --solvers ddim ttm3 exp-ttm2 adams32 ab2 unipc2",
    "schedule": "schedule --samples 20 --fitted 4 --candidates 10 --nfe 5 --transfer smooth",
    "overhead": "overhead --samples 2",
}
"""What is run: an experiment with its arguments, by the name of its folder."""

TIMED = {
    "overhead.csv": ("median_seconds", "ratio", "ratio_low", "ratio_high"),
    "work_precision.csv": ("seconds", "pareto_seconds"),
}
"""Columns that hold measured seconds, or follow from them."""

FACTORS = (
    *("problem", "samples", "seed", "dtype", "device", "truth", "judged_on", "fitted_to", "solver"),
    *("form", "grid", "schedule", "afs", "denoise", "billed", "nfe_budget", "steps_budget", "budget", "kind"),
    *("against", "t", "dt", "stencil", "direction", "scale", "b", "part", "pair", "feature", "what"),
)
"""Columns that say what a row is about."""

DOUBTFUL = ("nfe", "steps", "order", "head")
"""Columns that do in some tables, and are measured in others."""

MOST = 20
"""Differences of one CSV that are printed."""


def run(folder: Path, labels: list[str]) -> int:
    """Run the lines of these labels; return 1 if a command fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    failed = []
    for label in labels:
        out, before = folder / label, os.times()
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob("*.csv"):
            old.unlink()
        name, *arguments = shlex.split(LINES[label])
        command = [sys.executable, "-m", f"analysis.{name}", *arguments, "--fresh", "--out", str(out)]
        with (out / "printed.txt").open("w", encoding="utf-8") as log:
            code = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False).returncode
        now = os.times()
        seconds = now.children_user + now.children_system - before.children_user - before.children_system
        verdict = f"FAILED with code {code}, see {out / 'printed.txt'}" if code else "done"
        print(f"{label}: {verdict}, {seconds:.1f} s of CPU, {now.elapsed - before.elapsed:.1f} s", flush=True)
        failed += [label] if code else []
    print(f"{len(labels) - len(failed)} of {len(labels)} done", *(["but not", *failed] if failed else []))
    return int(bool(failed))


def compare(old: Path, new: Path) -> int:
    """Print what differs between two folders of ``run``; return 1 if anything does."""
    labels = sorted({path.name for folder in (old, new) for path in folder.iterdir() if path.is_dir()})
    different = 0
    for label in labels:
        names = sorted({path.name for folder in (old, new) for path in (folder / label).glob("*.csv")})
        for name in names or ["*.csv"]:
            found = differences(old / label / name, new / label / name)
            seconds = " but for measured seconds" * (name in TIMED)
            print(f"{label}/{name}: " + ("differs" if found else f"identical{seconds}"))
            more = [f"and {len(found) - MOST} more"] if len(found) > MOST else []
            print(*(f"    {line}\n" for line in found[:MOST] + more), sep="", end="")
            different += bool(found)
    print(f"{different} differ" if different else f"all of {len(labels)} labels identical")
    return int(different > 0 or not labels)


def differences(old: Path, new: Path) -> list[str]:
    """Return a line for each thing in which two CSVs differ."""
    absent = [f"not in {path.parent}" for path in (old, new) if not path.exists()]
    if absent or old.read_bytes() == new.read_bytes():
        return absent
    a, b = (
        pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns=[*TIMED.get(old.name, ())])
        for path in (old, new)
    )
    lines = [f"column only in {x}: {c}" for x, c in apart([*map(str, a)], [*map(str, b)])]
    shared = [str(column) for column in a if column in set(b)]
    if not lines and list(a) != list(b):
        lines.append("columns in another order")
    if keys(a, shared) != keys(b, shared):
        # Rows are not in the same places: find those that both have, by all that could tell them apart.
        each = [keys(table, shared, *DOUBTFUL) for table in (a, b)]
        lines += [f"row only in {x}: {row}" for x, row in apart(*each)]
        common = [row for row in each[0] if row in set(each[1])]
        if common != [row for row in each[1] if row in set(each[0])]:
            lines.append("rows in another order")
        a, b = (t.iloc[[rows.index(row) for row in common]] for t, rows in zip((a, b), each, strict=True))
    for column in shared:
        x, y = a[column].to_numpy(), b[column].to_numpy()
        if places := [i for i in range(len(x)) if x[i] != y[i]]:
            lines.append(f"{column}: {len(places)} of {len(x)} rows, {size([(x[i], y[i]) for i in places])}")
    return lines or ([] if old.name in TIMED else ["in bytes, though in no cell"])


def keys(table: pd.DataFrame, shared: list[str], *more: str) -> list[str]:
    """Return what tells each row from the others; those that are alike in all of ``FACTORS`` are numbered."""
    columns, seen = [column for column in shared if column in (*FACTORS, *more)], Counter[str]()
    found = []
    for row in table[columns].itertuples(index=False, name=None):
        words = ", ".join(row)
        seen[words] += 1
        found.append(f"{words} (no. {seen[words]})" if seen[words] > 1 else words)
    return found


def apart(old: list[str], new: list[str]) -> list[tuple[str, str]]:
    """Return what only one of two lists has, and which."""
    return [("OLD", x) for x in old if x not in set(new)] + [("NEW", x) for x in new if x not in set(old)]


def size(pairs: list[tuple[str, str]]) -> str:
    """Say how far apart the cells of some pairs are: relatively, where both are numbers."""
    gaps, others = [], []
    for x, y in pairs:
        try:
            a, b = float(x), float(y)
            gaps.append(abs(a - b) / (max(abs(a), abs(b)) or 1.0))
        except ValueError:
            others.append(f"{x!r} is now {y!r}")
    worst = max((math.inf if math.isnan(gap) else gap for gap in gaps), default=None)
    words = [] if worst is None else [f"by {worst:.2g} at most, relatively"]
    return ", ".join(words + others[:1])


def main() -> int:
    """Read the arguments and do what they say."""
    p = argparse.ArgumentParser(description="Do two trees of this project give the same numbers?")
    commands = p.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="run every experiment at small sizes, with the packages here")
    runs.add_argument("folder", type=Path, help="where the results go, a folder for each line")
    runs.add_argument("--only", nargs="+", default=list(LINES), choices=LINES, metavar="LABEL", help="these")
    compares = commands.add_parser("compare", help="say in which CSVs two folders of results differ")
    compares.add_argument("old", type=Path)
    compares.add_argument("new", type=Path)
    args = p.parse_args()
    if args.command == "run":
        return run(args.folder.resolve(), args.only)
    for folder in (args.old, args.new):
        if not folder.is_dir():
            p.error(f"there is no folder {folder}")
    return compare(args.old, args.new)


if __name__ == "__main__":
    raise SystemExit(main())
