"""Writes a sweep's results in the formats of other tools: TensorBoard, Parquet and CSV.

    bpresearch export --workdir=results/compare_optimizers-1a2b3c4d
    bpresearch export --workdir=results/mine --format=csv --out=tables

--format=tensorboard makes a folder with an event file for each run: its curves as scalars, and its
hyper-parameters with what it reached, for the HParams tab. --format=parquet and csv make three tables: runs
(a row each: settings and last values), steps (run, step, training loss) and evaluations (run, step, and what
was measured). The column `fresh` tells the fresh runs of chosen settings. They go to export/ in the workdir,
or to --out. Runs that are not finished are left out.
"""

from pathlib import Path

import numpy as np
from absl import flags

from bpresearch.command.axes import positive, values
from bpresearch.command.start import choose, output_folder
from bpresearch.imports import extra
from bpresearch.sweep import read_confirmed
from bpresearch.sweep.export import write_events, write_tables

FORMATS = ("tensorboard", "parquet", "csv")
NEEDED = {"tensorboard": "tensorboardX", "parquet": "pyarrow"}


def define_flags() -> None:
    """The flags of `bpresearch export`."""
    flags.DEFINE_string("workdir", None, "the folder of a sweep")
    flags.DEFINE_string("format", "tensorboard,parquet,csv", f"one or many of {', '.join(FORMATS)}")
    flags.DEFINE_string("out", None, "folder for what is written; by default export/ in the workdir")
    flags.DEFINE_integer(
        "points", 500, "tensorboard: points of a training curve, each the mean of the steps up to it"
    )


def main() -> int:
    if not flags.FLAGS.workdir:
        raise ValueError("--workdir= is empty: name the folder of a sweep")
    if flags.FLAGS.out == "":
        raise ValueError("--out= is empty: give the name of a folder")
    positive("points")
    formats = [choose("format", f, FORMATS) for f in values("format", flags.FLAGS.format, str)]
    workdir = Path(flags.FLAGS.workdir).expanduser()
    if flags.FLAGS.out:
        output_folder("out", Path(flags.FLAGS.out).expanduser())
    results = read_confirmed(workdir)
    results = results.isel(run=np.flatnonzero(results.finished.values))
    if not results.sizes["run"]:
        raise ValueError(f"--workdir={workdir}: no run is finished yet")
    for name in formats:
        if name in NEEDED:
            extra(NEEDED[name], f"--format={name}")
    out = Path(flags.FLAGS.out or workdir / "export").expanduser()
    for name in formats:
        out.mkdir(parents=True, exist_ok=True)
        if name == "tensorboard":
            print(write_events(results, out / "tensorboard", flags.FLAGS.points))
        else:
            print(", ".join(str(path) for path in write_tables(results, out, name)))
    return 0
