"""What does back-propagation save by storing values, sharing products and avoiding divisions?

Each saving on and off, over networks of 8 to 32 equal layers: (a) the forward values that derivatives need,
stored or computed again; (b) the product of derivatives from the loss backward, shared by all layers, or
multiplied afresh for each (operations grow as depth and as depth squared: exponents 1.0 and 2.0 +- 0.1), or
forward mode, one parameter at a time; (c) in softmax, normalisation and sigmoid, a division of every element
or a multiplication by a reciprocal. Operations and memory are XLA's counts for the compiled programs.
"""

import time
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from rich.table import Table

from bpresearch import command, report
from bpresearch.command import Flag, listed
from bpresearch.theory import savings

ELEMENTWISE = {f.__name__: f for f in (savings.softmax, savings.normalize, savings.sigmoid)}
HOWS = ("division", "written", "reciprocal")


def page(
    *,
    width: Annotated[int, Flag("width of the layers", low=1)] = 32,
    batch_size: Annotated[int, Flag("examples", low=1)] = 64,
    depth: Annotated[
        tuple[int, ...],
        Flag("numbers of layers", low=1, least=2, why="for an exponent"),
    ] = listed("8,12,16,24,32", int),
    quick: bool = False,
) -> report.Finding:
    """What every variant costs by the depth, and which divisions are left in the compiled programs."""
    depths = sorted(depth)[:3] if quick else list(depth)
    frame = pd.DataFrame(row for layers in depths for row in costs(layers, width, batch_size))
    exponents = {
        name: savings.exponent(part.depth.tolist(), part.operations.tolist())
        for name, part in frame.groupby("variant", sort=False)
    }
    divisions = pd.DataFrame(division_costs(512, 512, rounds=5 if quick else 30))
    last = frame[frame.depth == max(depths)].set_index("variant")
    stored, again = last.loc["values stored"], last.loc["values recomputed"]
    afresh, shared = last.loc["products afresh"], last.loc["products shared"]
    verdict = (
        f"At depth {max(depths)}, storing values saves a factor "
        f"{again.operations / stored.operations:.1f} in operations and takes "
        f"{stored.memory / again.memory:.1f} times the memory; sharing products saves a "
        f"factor {afresh.operations / shared.operations:.1f}; reverse mode instead of forward mode "
        f"{last.loc['forward mode'].operations / stored.operations:,.0f}. The compiler divides once a row "
        "where it sees that a row has one divisor, and not at all by a square root: writing the reciprocal "
        "out changes nothing."
    )
    figures = {f"exponent.{name.replace(' ', '_')}": value for name, value in exponents.items()}
    figures |= {f"divided.{r.function}.{r.how}": int(r.divided) for r in divisions.itertuples()}
    figures |= {f"microseconds.{r.function}.{r.how}": float(r.time) for r in divisions.itertuples()}
    figures |= {
        "memory_ratio": stored.memory / again.memory,
        "operations_ratio": again.operations / stored.operations,
        "forward_mode_ratio": last.loc["forward mode"].operations / stored.operations,
    }
    tables = [cost_table(frame, exponents), division_table(divisions)]
    return report.Finding(verdict, checks(exponents, divisions), figures, tables, {"savings": picture(frame)})


def checks(exponents: dict[str, float], divisions: pd.DataFrame) -> list[report.Check]:
    """The exponents, the variants' gradients, and the divisions that the compiler leaves."""
    # Softmax has one divisor a row; x / sqrt(v) becomes x * rsqrt(v); the sigmoid divides each element.
    divided = {"softmax": 512, "normalize": 0, "sigmoid": 512 * 512}
    written = divisions[divisions.how == "written"].set_index("function").divided
    return [
        report.Check("products shared: exponent of depth", exponents["products shared"], 1, 0.1),
        report.Check("products afresh: exponent of depth", exponents["products afresh"], 2, 0.1),
        report.Check("forward mode: exponent of depth", exponents["forward mode"], 2, 0.1),
        report.Check("largest error of a variant's gradient", worst_error(), 0, 1e-12),
        *(
            report.Check(f"{name} as written: numbers divided", written[name], expected, 0)
            for name, expected in divided.items()
        ),
    ]


def costs(depth: int, width: int, batch: int) -> list[dict]:
    """Operations, memory and time of every variant at one depth."""
    given = savings.inputs(depth, width, batch)
    by_variant = {name: savings.cost(variant, given) for name, variant in savings.VARIANTS.items()}
    # Forward mode is as many passes as there are parameters, each for one of them.
    once, count = savings.cost(savings.along, given.weights, given.xs[0], given.weights), given.weights.size
    by_variant["forward mode"] = once._replace(
        operations=once.operations * count, microseconds=once.microseconds * count
    )
    return [{"depth": float(depth), "variant": name, **cost._asdict()} for name, cost in by_variant.items()]


def worst_error() -> float:
    """The largest difference of a variant's gradient from autodiff's, over its largest element."""
    with jax.enable_x64(True):
        given = savings.inputs(4, 3, 5, "float64")
        right = jax.grad(savings.loss)(given.weights, given.xs[0])
        gradients = [jnp.stack(variant(given)) for variant in savings.VARIANTS.values()]
        gradients.append(savings.forward_mode(given.weights, given.xs[0]))
        return max(float(jnp.max(jnp.abs(one - right)) / jnp.max(jnp.abs(right))) for one in gradients)


def division_costs(rows: int, columns: int, rounds: int) -> list[dict]:
    """Numbers divided in the compiled program, and the median time of a call, in turn with the others."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(rows, columns)), "float32")
    timings = []
    for name, function in ELEMENTWISE.items():
        programs = {how: jax.jit(partial(function, how=how)) for how in HOWS}
        times: dict[str, list[float]] = {how: [] for how in HOWS}
        for _ in range(rounds + 1):
            for how, program in programs.items():
                begin = time.perf_counter()
                program(x).block_until_ready()
                times[how].append(1e6 * (time.perf_counter() - begin))
        timings += [
            {
                "function": name,
                "how": how,
                "divided": savings.elements_divided(partial(function, how=how), x),
                "time": float(np.median(times[how][1:])),
            }
            for how in HOWS
        ]
    return timings


def cost_table(frame: pd.DataFrame, fitted: dict[str, float]) -> Table:
    depths = sorted(set(frame.depth))
    shown = sorted({depths[0], depths[len(depths) // 2], depths[-1]})
    columns = ("variant", *(f"{depth:.0f} layers" for depth in shown), "exponent")
    grid = report.grid("Millions of operations, temporary memory and time", columns, words=("variant",))
    for name, part in frame.groupby("variant", sort=False):
        rows = part.set_index("depth")
        cells = [
            f"{rows.operations[d] / 1e6:,.1f}\n{rows.memory[d] / 1e3:,.0f} kB\n"
            f"{rows.microseconds[d] / 1e3:,.2f} ms"
            for d in shown
        ]
        grid.add_row(name, *cells, f"{fitted[name]:.2f}")
    return grid


def division_table(divisions: pd.DataFrame) -> Table:
    columns = ("function", "every element divided", "as written", "reciprocal (sigmoid: tanh)")
    title = "Division: numbers divided in the compiled program, and microseconds"
    grid = report.grid(title, columns, words=("function",))
    for name, part in divisions.groupby("function", sort=False):
        grid.add_row(name, *(f"{r.divided:,}\n{r.time:,.0f} µs" for r in part.itertuples()))
    return grid


def picture(frame: pd.DataFrame):
    return report.lines(
        frame,
        x=report.axis("depth", "layers", log=True),
        y=report.axis("operations", "floating-point operations for the gradient", log=True),
        line="variant",
        title="What does back-propagation save?",
        subtitle="XLA's count for the compiled program, by the depth of the network",
    )


if __name__ == "__main__":
    command.run_page(page)
