"""The flags that every experiment of the theory takes."""

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

from absl import flags

from bpresearch.command.axes import numbers
from bpresearch.distribution import Uniform

FLAGS = flags.FLAGS


def define_experiment_flags() -> None:
    """`--quick`, `--json`, `--workdir` and `--platform`."""
    flags.DEFINE_bool("quick", False, "reduced size: done within 50 s")
    flags.DEFINE_string("json", None, "file for the figures, as one flat object")
    flags.DEFINE_string(
        "workdir", None, "folder of the results; by default one in results/ named after the settings"
    )
    flags.DEFINE_string("platform", None, "cpu, gpu, tpu; by default the best there is")


def listed(flag: str, kind: type = float, *, low: float | int, high: float | int = math.inf) -> list[Any]:
    """The numbers that a flag lists, with low <= number < high; nothing to draw from, as in a search."""
    text = getattr(FLAGS, flag)
    found = numbers(flag, text, kind, low=low, high=high)
    if any(isinstance(value, Uniform) for value in found):
        raise ValueError(
            f"--{flag}={text}: takes a list or a range; only a sweep with --sampler draws values"
        )
    return found


def experiment_workdir(name: str) -> Path:
    """--workdir, or a folder in results/ named after the experiment and its settings; made if need be."""
    if FLAGS.workdir == "":
        raise ValueError("--workdir= is empty: give the name of a folder")
    own = {flag.name: flag.value for flag in FLAGS.flags_by_module_dict().get(sys.argv[0], [])}
    settings = own | {"quick": FLAGS.quick}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    workdir = Path(FLAGS.workdir or f"results/{name}-{digest[:8]}").expanduser()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--workdir={workdir}: cannot write there ({error.strerror})") from error
    return workdir
