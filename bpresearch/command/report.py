"""Makes the report of a sweep, or of several side by side: one page that opens in any browser, offline.

    bpresearch report --workdir=results/compare_optimizers-1a2b3c4d
    bpresearch report --workdir=results/a,results/b --title="Before and after" --out=compared

    bpresearch report --workdir=results/a --style=paper --only=loss_curves --width=column --labels=sgd:SGD

Writes index.html and its pictures, as PNG and SVG, to report/ in the workdir, or to --out. A sweep that is
still running is reported as far as it is. With --style=paper it writes pictures alone, without titles and in
a paper's sizes, as PDF and SVG; --only then takes the names of pictures and of recorded diagnostics.
"""

import os
import re
from pathlib import Path

from absl import flags

from bpresearch import report, sweep
from bpresearch.command.axes import values
from bpresearch.command.start import choose, output_folder
from bpresearch.command.target import define_target_flag, target_from_flag


def define_flags() -> None:
    """The flags of `bpresearch report`."""
    flags.DEFINE_string("workdir", None, "the folder of a sweep, or several with commas between")
    flags.DEFINE_string("title", "", "heading of the page; by default what was trained on what")
    flags.DEFINE_string("only", "", f"what to show, all by default: any of {', '.join(report.NAMES)}")
    flags.DEFINE_string(
        "out",
        None,
        "folder of the report; by default report/ in the (first) workdir, of a paper paper/ there",
    )
    flags.DEFINE_enum("style", "page", ["page", "paper"], "a page, or pictures for a paper as PDF and SVG")
    flags.DEFINE_string("width", None, "paper: column (3.25 inches), text (6.75), or a length such as 8.5cm")
    flags.DEFINE_string("labels", None, "paper: other words in the pictures, as sgd:SGD,step:updates")

    define_target_flag()


def main() -> int:
    target = target_from_flag()
    if not flags.FLAGS.workdir:
        raise ValueError("--workdir= is empty: name the folder of a sweep, or several with commas between")
    workdirs = [Path(name).expanduser() for name in values("workdir", flags.FLAGS.workdir, str)]
    only = values("only", flags.FLAGS.only, str) if flags.FLAGS.only else []
    paper = flags.FLAGS.style == "paper"
    for name in [] if paper else only:
        choose("only", name, report.NAMES)
    for flag in ("width", "labels"):
        if flags.FLAGS[flag].present and not paper:
            raise ValueError(f"--{flag} needs --style=paper")
    labels = _labels(flags.FLAGS.labels) if flags.FLAGS.labels else {}
    if flags.FLAGS.out == "":
        raise ValueError("--out= is empty: give the name of a folder")
    if flags.FLAGS.out:
        output_folder("out", Path(flags.FLAGS.out).expanduser())
    named = zip(workdirs, names(workdirs), strict=True)
    sweeps = [report.read(path, sweep.read_confirmed(path), name) for path, name in named]
    folder = Path(flags.FLAGS.out or workdirs[0] / ("paper" if paper else "report")).expanduser()
    if not paper:
        print(report.write(sweeps, folder, title=flags.FLAGS.title, only=only, target=target))
        return 0
    width = flags.FLAGS.width or "column"
    try:
        paths = report.paper(sweeps, folder, only=only, width=width, labels=labels)
    except ValueError as error:
        raise ValueError(re.sub("^(?=(only|width|labels)=)", "--", str(error))) from error
    print("\n".join(map(str, paths)))
    return 0


def _labels(text: str) -> dict[str, str]:
    """The words for names, from `name:words,name:words`."""
    pairs = [item.partition(":") for item in text.split(",")]
    for name, colon, words in pairs:
        if not (name.strip() and colon and words.strip()):
            raise ValueError(f"--labels={text}: takes names with words, such as sgd:SGD,step:updates")
    return {name.strip(): words.strip() for name, _, words in pairs}


def names(workdirs: list[Path]) -> list[str]:
    """The folders' names, with as much of their paths as tells them apart."""
    paths = [path.resolve() for path in workdirs]
    if len(set(paths)) < len(paths):
        raise ValueError(f"--workdir={flags.FLAGS.workdir} holds a folder twice")
    common = Path(os.path.commonpath(paths)) if len(paths) > 1 else paths[0].parent
    return [str(path.relative_to(common)) if path != common else path.name for path in paths]
