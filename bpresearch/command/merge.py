"""Joins the slices of a sweep, which the processes of a job array have trained, into one workdir.

    bpresearch merge --workdir=results/mine
    bpresearch merge --workdir=results/mine/slice-1-of-2,elsewhere/slice-2-of-2 --out=results/whole

Of a folder with slices in it, all are joined, in the folder itself unless --out names another. The results
are those of the undivided sweep. If `compare` began it and all runs are finished, `compare` ends it: the best
settings are trained again with fresh seeds, and compared. Else its command, without --slice, does so, after
training what a slice has not finished.
"""

import json
import subprocess
import sys
from pathlib import Path

from absl import flags

from bpresearch import sweep
from bpresearch.command.axes import values

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The flags of `bpresearch merge`."""
    flags.DEFINE_string("workdir", None, "the workdir of the whole sweep, or those of its slices")
    flags.DEFINE_string("out", None, "folder of the whole sweep; by default --workdir, if that is one folder")


def main() -> int:
    if not FLAGS.workdir:
        raise ValueError("--workdir= is empty: name the folder of a sweep, or those of its slices")
    given = [Path(name).expanduser() for name in values("workdir", FLAGS.workdir, str)]
    slices = [folder for path in given for folder in sorted(path.glob("slice-*-of-*")) or [path]]
    if FLAGS.out == "" or (FLAGS.out is None and len(given) > 1):
        raise ValueError("--out= is empty: give the name of a folder")
    into = Path(FLAGS.out).expanduser() if FLAGS.out else given[0]
    results = sweep.merge(slices, into)
    finished = int(results.finished.sum())
    print(f"{finished} of {results.sizes['run']} runs are finished, in {into}", flush=True)
    if finished < results.sizes["run"] or not began_by_compare(into):
        return 0
    again = ["compare", f"--flagfile={into / 'flagfile'}", f"--workdir={into}"]
    return subprocess.run([sys.executable, "-m", "bpresearch.command.main", *again]).returncode


def began_by_compare(workdir: Path) -> bool:
    """Whether `compare` began a sweep, by what the workdir holds of its command."""
    if not (workdir / "flagfile").exists():
        return False
    command = json.loads((workdir / "config.json").read_text())["provenance"]["command"]
    return command.startswith(("compare_optimizers.py ", "bpresearch compare "))
