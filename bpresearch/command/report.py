"""Makes the report of a sweep, or of several side by side: one page that opens in any browser, offline.

    bpresearch report --workdir=results/compare_optimizers-1a2b3c4d
    bpresearch report --workdir=results/a,results/b --title="Before and after" --out=compared

Writes index.html and its pictures, as PNG and SVG, to report/ in the workdir, or to --out. A sweep that is
still running is reported as far as it is.
"""

import os
from pathlib import Path

from absl import flags

from bpresearch import report, sweep
from bpresearch.command.axes import values
from bpresearch.command.start import choose


def define_flags() -> None:
    """The flags of `bpresearch report`."""
    flags.DEFINE_string("workdir", None, "the folder of a sweep, or several with commas between")
    flags.DEFINE_string("title", "", "heading of the page; by default what was trained on what")
    flags.DEFINE_string("only", "", f"what to show, all by default: any of {', '.join(report.NAMES)}")
    flags.DEFINE_string("out", None, "folder of the report; by default report/ in the (first) workdir")


def main() -> int:
    if not flags.FLAGS.workdir:
        raise ValueError("--workdir= is empty: name the folder of a sweep, or several with commas between")
    workdirs = [Path(name) for name in values("workdir", flags.FLAGS.workdir, str)]
    only = values("only", flags.FLAGS.only, str) if flags.FLAGS.only else []
    for name in only:
        choose("only", name, report.NAMES)
    if flags.FLAGS.out == "":
        raise ValueError("--out= is empty: give the name of a folder")
    named = zip(workdirs, names(workdirs), strict=True)
    sweeps = [report.read(path, sweep.read(path), name) for path, name in named]
    folder = Path(flags.FLAGS.out or workdirs[0] / "report")
    print(report.write(sweeps, folder, title=flags.FLAGS.title, only=only))
    return 0


def names(workdirs: list[Path]) -> list[str]:
    """The folders' names, with as much of their paths as tells them apart."""
    paths = [path.resolve() for path in workdirs]
    if len(set(paths)) < len(paths):
        raise ValueError(f"--workdir={flags.FLAGS.workdir} holds a folder twice")
    common = Path(os.path.commonpath(paths)) if len(paths) > 1 else paths[0].parent
    return [str(path.relative_to(common)) if path != common else path.name for path in paths]
