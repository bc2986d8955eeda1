"""The flags of a search: what draws its settings, and what ends poor ones early."""

from absl import flags

from bpresearch import sweep
from bpresearch.command.axes import positive, values
from bpresearch.command.start import choose
from bpresearch.sweep import sample
from bpresearch.sweep.prune import PRUNERS, check_pruner

FLAGS = flags.FLAGS


def define_sampler_flags() -> None:
    """The flags of a search."""
    flags.DEFINE_string(
        "sampler", "grid", f"how settings are chosen from the axes: grid (all), {', '.join(sample.SAMPLERS)}"
    )
    flags.DEFINE_integer("trials", None, "settings that the sampler draws, each for every seed")
    flags.DEFINE_integer(
        "trials_at_once",
        None,
        "trials that are drawn and trained together; by default all, and for tpe 16 or more",
    )
    flags.DEFINE_string(
        "factor_out",
        None,
        "axes of which every trial has all values, and is judged by the best: with lr a schedule's shape, "
        "say, is searched at the base rate that is best for it",
    )
    flags.DEFINE_string("prune", None, f"end poor runs early, and which are: {', '.join(PRUNERS)}")
    flags.DEFINE_integer("sampler_seed", 0, "another one draws other settings")


def check_sampler(axes: sweep.Axes) -> None:
    """Refuses distributions without a sampler, and flags of samplers without one."""
    name = choose("sampler", FLAGS.sampler, ["grid", *sample.SAMPLERS])
    if FLAGS.prune is not None:
        check_pruner(choose("prune", FLAGS.prune, PRUNERS), axes)
        sample.optuna()
    for axis, entries in axes.items():
        if isinstance(entries[0], sweep.Uniform) and (name == "grid" or axis == "seed"):
            way = (
                "takes integers, all of which are trained"
                if axis == "seed"
                else "needs --sampler=random, qmc or tpe"
            )
            raise ValueError(f"--{axis}={entries[0]}: a distribution {way}")
    for flag in ("trials", "trials_at_once", "sampler_seed"):
        if name == "grid" and FLAGS[flag].present:
            raise ValueError(f"--{flag} needs --sampler=random, qmc or tpe")
    if name != "grid":
        sample.optuna()
        if FLAGS.trials is None:
            raise ValueError(f"--sampler={name} needs --trials, the number of settings that it draws")
        positive("trials")
        if FLAGS.trials_at_once is not None:
            positive("trials_at_once")


def factored_out(axes: sweep.Axes) -> list[str]:
    """The axes that --factor_out names."""
    if FLAGS.factor_out is None:
        return []
    if FLAGS.sampler == "grid":
        raise ValueError("--factor_out needs --sampler=random, qmc or tpe; a grid trains all values anyway")
    listed = [name for name in axes if name != "seed"]
    names = [choose("factor_out", name, listed) for name in values("factor_out", FLAGS.factor_out, str)]
    for name in names:
        if isinstance(axes[name][0], sweep.Uniform):
            raise ValueError(f"--factor_out={name}: --{name}={axes[name][0]} is a distribution: takes a list")
    return names
