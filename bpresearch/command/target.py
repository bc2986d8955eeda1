"""The flag of a target that is set before training begins."""

import dataclasses
import math

from absl import flags

from bpresearch.statistics import Target
from bpresearch.sweep import Axes, Experiment
from bpresearch.sweep.choosing import choice_before

FLAGS = flags.FLAGS


def define_target_flag() -> None:
    """`--target`."""
    flags.DEFINE_string(
        "target",
        None,
        "what training shall reach, of the part that settings are chosen by: accuracy:0.65, or loss:0.5:0.01 "
        "with the level of the test that the mean over seeds is there (0.05)",
    )


def target_from_flag() -> Target | None:
    """What --target says."""
    if FLAGS.target is None:
        return None
    try:
        name, value, *level = FLAGS.target.split(":")
        target = Target(name, float(value), *map(float, level))
    except (ValueError, TypeError):
        target = Target("", math.nan)
    if not (target.metric and math.isfinite(target.value) and 0 < target.level < 0.5):
        raise ValueError(
            f"--target={FLAGS.target}: takes a metric, a value and, below 0.5, a level: accuracy:0.65:0.01"
        )
    return target


def checked_target(experiment: Experiment, axes: Axes) -> Target | None:
    """The same, of a metric that evaluations measure; found to be one before any run begins."""
    target = target_from_flag()
    if target:
        try:
            choice_before(dataclasses.replace(experiment, choose=target.metric), axes)
        except ValueError as error:
            reason = str(error).partition(": ")[2]
            raise ValueError(f"--target={FLAGS.target}: {reason}") from error
    return target
