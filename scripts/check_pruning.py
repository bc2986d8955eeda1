"""How often does a pruner name the winner of the full sweep, and for how many of its steps?

    EXTRAS=optuna scripts/run scripts/check_pruning.py --sweeps=10 --prune=halving,hyperband,median

Each sweep trains 32 settings of momentum on MNIST-1D in full, with seeds and a width of its own. Pruned runs
train bit for bit as in the full sweep (tests/sweep/test_prune.py), so what a pruner would have done follows
from the curves. It is right if the best of the settings that it lets finish is the full sweep's best, or if
the 95 % interval of the difference between the two, seed by seed, holds zero.
"""

import numpy as np
import optax
import xarray as xr
from absl import flags

from bpresearch import command as shared
from bpresearch import data, files, models, optim, platform, statistics, sweep
from bpresearch.optim import schedules
from bpresearch.sweep import prune

flags.DEFINE_integer("sweeps", 10, "number of sweeps")
flags.DEFINE_integer("seeds", 3, "seeds of each setting")
flags.DEFINE_integer("steps", 400, "steps of a run")
flags.DEFINE_string("prune", ",".join(prune.PRUNERS), f"one or many of {', '.join(prune.PRUNERS)}")
flags.DEFINE_bool("quick", False, "two sweeps of 80 steps")
flags.DEFINE_string("json", None, "file for the figures, as one flat object")


def main() -> int:
    names = [shared.choose("prune", n, prune.PRUNERS) for n in shared.values("prune", flags.FLAGS.prune, str)]
    json_file = shared.output_file("json")
    sweeps = 2 if flags.FLAGS.quick else shared.positive("sweeps")
    steps = 80 if flags.FLAGS.quick else shared.positive("steps", low=8)
    seeds = shared.positive("seeds", low=2)
    platform.start(None)
    judgements: dict[str, list[tuple[bool, bool, float]]] = {name: [] for name in names}
    for number in range(sweeps):
        results, experiment = full_sweep(number, seeds, steps)
        for name in names:
            judgements[name].append(judged(name, results, experiment))
    figures = {"sweeps": float(sweeps)}
    for name in names:
        same, right, share = np.array(judgements[name], float).T
        figures |= {
            f"{name}.winner_named": right.sum(),
            f"{name}.same_setting": same.sum(),
            f"{name}.steps": share.mean(),
        }
        print(
            f"{name}: the winner in {right.sum():.0f} of {sweeps} sweeps ({same.sum():.0f} times the very "
            f"setting), at {share.mean():.0%} of the steps"
        )
    files.write_figures(json_file, figures)
    return 0


def full_sweep(number: int, seeds: int, steps: int) -> tuple[xr.Dataset, sweep.Experiment]:
    """32 settings: eight learning rates, two momenta, two schedules."""
    experiment = sweep.Experiment(
        data.load("mnist1d"),
        models.mlp,
        optax.losses.softmax_cross_entropy_with_integer_labels,
        model_options={"widths": (8 + 4 * number,)},
        steps=steps,
        eval_every=max(1, steps // 16),
    )
    axes = sweep.grid(
        optimizer=optim.momentum,
        schedule=[schedules.constant, schedules.cosine],
        lr=np.geomspace(1e-3, 3, 8).tolist(),
        momentum=[0.5, 0.9],
        batch_size=50,
        seed=range(seeds * number, seeds * (number + 1)),
    )
    return sweep.run(experiment, axes, quiet=True), experiment


def judged(name: str, results: xr.Dataset, experiment: sweep.Experiment) -> tuple[bool, bool, float]:
    """Whether a pruner ends with the best setting, or with one as good, and the part of the steps taken."""
    settings = statistics.settings_of(results)
    curves = np.stack([results.valid_accuracy.values[setting.runs] for setting in settings]).astype(
        np.float64
    )
    final = np.stack([setting.chosen_by for setting in settings])
    means = curves.mean(axis=1)
    rungs = prune.rungs_of(experiment)
    going_on, steps = np.ones(len(settings), bool), 0
    reached = np.full((len(settings), len(rungs)), np.nan)
    for count, (rung, before) in enumerate(zip(rungs, [0, *rungs], strict=False), 1):
        steps += going_on.sum() * (rung - before)
        reached[going_on, count - 1] = means[going_on, rung // experiment.eval_every]
        going_on &= prune.survivors(name, experiment.steps, rungs[:count], reached[:, :count], maximize=True)
    steps += going_on.sum() * (experiment.steps - rungs[-1])
    score = np.where(np.isnan(final).any(axis=1), -np.inf, final.mean(axis=1))
    best, survivor = int(np.argmax(score)), int(np.argmax(np.where(going_on, score, -np.inf)))
    gap = statistics.mean_and_interval(final[best] - final[survivor])
    right = best == survivor or gap.mean <= gap.half_width
    return best == survivor, bool(right), steps / (len(settings) * experiment.steps)


if __name__ == "__main__":
    shared.run(main)
