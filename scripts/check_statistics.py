"""Are the statistics right? Comparisons with a known truth are simulated, and what is said of them counted.

Two optimizers are tuned over settings that are all equally good, and the best of each is trained again with
fresh seeds. Of each optimizer's reported mean the error is measured, in standard deviations of a run; of
optimizers that are equal, how often a difference is claimed; of a true difference of one standard deviation,
how often it is found, beside a plain paired t test of as many fresh runs. Then the coverage of every interval
that is offered, at 3, 5 and 10 seeds. Exit code 1 if one of them is out of bounds by more than the
simulation's own error.
"""

import math
import secrets

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from bpresearch import command, files
from bpresearch.statistics.simulation import Outcome, Truth, covered, outcome

FLAGS = flags.FLAGS
flags.DEFINE_integer("comparisons", 10_000, "comparisons that are simulated of each kind")
flags.DEFINE_integer("samples", 4_000, "samples of which each interval's coverage is counted")
flags.DEFINE_integer("seed", None, "draws the simulations; by default another each time, which is printed")
flags.DEFINE_bool("quick", False, "500 comparisons and 300 samples")
flags.DEFINE_string("json", None, "file for the figures, as one flat object")

KINDS = {
    "equal": Truth(),
    "unequal_budgets": Truth(settings=(30, 5)),
    "different": Truth(difference=1.0),
    "equal_3_fresh": Truth(fresh=3),
    "equal_5_fresh": Truth(fresh=5),
}


def main() -> int:
    json_file = command.output_file("json")
    comparisons = 500 if FLAGS.quick else command.positive("comparisons")
    samples = 300 if FLAGS.quick else command.positive("samples")
    seed = secrets.randbits(32) if FLAGS.seed is None else FLAGS.seed
    print(f"seed {seed}: {comparisons:,} comparisons of each kind, {samples:,} samples of each interval")
    random = np.random.default_rng(seed)
    outcomes = {name: outcome(random, truth, comparisons) for name, truth in KINDS.items()}
    coverage = {seeds: covered(random, seeds, samples) for seeds in (3, 5, 10)}
    console = Console()
    console.print(table_of(outcomes))
    console.print(coverage_table(coverage))
    wrong = complaints(outcomes, comparisons, coverage, samples)
    for text in wrong:
        console.print(text, markup=False)
    console.print("All within bounds." if not wrong else f"{len(wrong)} out of bounds.")
    files.write_figures(json_file, figures(outcomes, coverage) | {"seed": seed, "comparisons": comparisons})
    return bool(wrong)


def table_of(outcomes: dict[str, Outcome]) -> Table:
    columns = ("kind", "error", "untold", "claimed", "plain", "covered", "mean covered")
    table = Table(*columns, title="Simulated comparisons", caption="Errors in standard deviations of a run.")
    for name, tally in outcomes.items():
        shares = (f"{100 * value:.2f} %" for value in tally[2:])
        table.add_row(name, f"{tally.error:+.3f}", f"{tally.error_untold:+.3f}", *shares)
    return table


def coverage_table(coverage: dict[int, dict[str, float]]) -> Table:
    table = Table("interval", *(f"{seeds} seeds" for seeds in coverage), title="Coverage")
    for name in next(iter(coverage.values())):
        values = [of_intervals[name] for of_intervals in coverage.values()]
        table.add_row(name, *("not offered" if math.isnan(v) else f"{100 * v:.1f} %" for v in values))
    return table


def complaints(
    outcomes: dict[str, Outcome], comparisons: int, coverage: dict[int, dict[str, float]], samples: int
) -> list[str]:
    """What is out of bounds by more than three standard errors of the simulation."""
    shares = [
        (f"{name}: claimed", tally.claimed, 0.035, 0.055, comparisons)
        for name, tally in outcomes.items()
        if KINDS[name].difference == 0
    ]
    for name, tally in outcomes.items():
        for what, value in (("difference", tally.covered), ("mean", tally.mean_covered)):
            shares.append((f"{name}: coverage of the {what}", value, 0.93, 0.97, comparisons))
    for seeds, of_intervals in coverage.items():
        shares += [(f"{name} at {seeds} seeds", v, 0.93, 0.97, samples) for name, v in of_intervals.items()]
    wrong = []
    for name, value, low, high, count in shares:
        error = 3 * math.sqrt(value * (1 - value) / count)
        if value + error < low or value - error > high:
            wrong.append(f"{name}: {100 * value:.2f} %, and should be {100 * low:g} to {100 * high:g} %")
    for name, tally in outcomes.items():
        if abs(tally.error) > 0.05 + 3 / math.sqrt(comparisons * 2):
            wrong.append(f"{name}: the reported mean is off by {tally.error:+.3f}")
        if tally.claimed < tally.claimed_plainly:
            wrong.append(f"{name}: a plain paired t test finds more")
    return wrong


def figures(outcomes: dict[str, Outcome], coverage: dict[int, dict[str, float]]) -> dict[str, float]:
    flat = {f"{n}.{key}": v for n, tally in outcomes.items() for key, v in tally._asdict().items()}
    for seeds, of_intervals in coverage.items():
        flat |= {f"coverage.{name}.{seeds}": v for name, v in of_intervals.items() if not math.isnan(v)}
    return flat


if __name__ == "__main__":
    command.run(main)
