"""How the walk for one example goes into equations that hold programs of their own.

Calls are walked where they stand. A loop, a branch or a `remat` becomes one whose body is that of one
example. Derivatives that someone wrote stay what they are; see `one_example_passes.py`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from bpresearch.chainrule.example_axis import TERM, Axis, CannotTell, ExamplesMeet
from bpresearch.chainrule.one_example import Enter, Held, Mixed, OneExample, Own, Shared, entered, like
from bpresearch.chainrule.primitives import Value
from bpresearch.jaxprs import body, sizes


def enters(*names: str) -> Callable[[Enter], Enter]:
    """Decorator of a function `(walk, eqn, ins) -> outs` that goes into these primitives.

    It is not asked where nothing depends on the examples.
    """

    def register(function: Enter) -> Enter:
        def enter(walk, eqn, ins):
            shared = all(isinstance(x, Shared) for x in ins)
            return walk.shared(eqn, ins) if shared else function(walk, eqn, ins)

        entered.update(dict.fromkeys(names, enter))
        return function

    return register


def values_of(held: Sequence[Held]) -> list[Value | None]:
    return [x.value for x in held]


def with_values(held: Sequence[Held], values: Sequence[Value | None]) -> list[Held]:
    """The same kinds of values."""
    return [like(x, value) for x, value in zip(held, values, strict=True)]


def kinds_of(held: Sequence[Held]) -> list[Held]:
    return [like(x, None) for x in held]


class Noted:
    """A function of held values as one of arrays; of what kind its results are is noted when it is called."""

    def __init__(self, function: Callable[[list[Held]], list[Held]]):
        self.function = function
        self.kinds: list[Held] = []

    def __call__(self, ins: Sequence[Held], values: Sequence[Value | None]) -> list[Value | None]:
        outs = self.function(with_values(ins, values))
        self.kinds = kinds_of(outs)
        return values_of(outs)


def joined(kinds: Sequence[Held]) -> Held:
    """What a value is that may be any of these: mixed before the example's own before shared."""
    for type_ in (Mixed, Own):
        if matching := [kind for kind in kinds if isinstance(kind, type_)]:
            if len({kind.axis for kind in matching if isinstance(kind, Own)}) > 1:
                raise ExamplesMeet
            return matching[0]
    return kinds[0]


def as_kinds(walk: OneExample, held: Sequence[Held], kinds: Sequence[Held]) -> list[Value | None]:
    """Values as they are in a kind: the example's part of what is shared, where others are its own."""
    return [
        None if isinstance(kind, Mixed) else walk.part(x, kind.axis) if isinstance(kind, Own) else x.value
        for x, kind in zip(held, kinds, strict=True)
    ]


@enters("closed_call", "core_call", "custom_vmap_call", "eval_jaxpr", "composite")
def call(walk, eqn, ins):
    jaxpr, consts = body(eqn.params)
    return walk.run(jaxpr, consts, ins)


# Also where all is shared: copies that are made there for all examples are made for one.
entered["jit"] = entered["pjit"] = call


@enters("remat2", "checkpoint", "remat")
def remat(walk, eqn, ins):
    p, run = eqn.params, Noted(lambda held: walk.run(eqn.params["jaxpr"], (), held))
    again = jax.checkpoint(lambda values: run(ins, values), prevent_cse=p["prevent_cse"], policy=p["policy"])
    values = again(values_of(ins))
    return with_values(run.kinds, values)


@enters("cond")
def cond(walk, eqn, ins):
    """Which branch is taken is the same for all examples."""
    index, *operands = ins
    if not isinstance(index, Shared):
        raise ExamplesMeet
    runs = [Noted(lambda held, b=b: walk.run(b.jaxpr, b.consts, held)) for b in eqn.params["branches"]]
    for run in runs:
        jax.eval_shape(lambda values, run=run: run(operands, values), values_of(operands))
    kinds = [joined(column) for column in zip(*[run.kinds for run in runs], strict=True)]

    def branch(run):
        return lambda values: as_kinds(walk, run.function(with_values(operands, values)), kinds)

    values = lax.switch(index.value, [branch(run) for run in runs], values_of(operands))
    return with_values(kinds, values)


@enters("scan")
def scan(walk, eqn, ins):
    """A loop in which one example goes along.

    What is carried becomes the example's own as soon as it is so in any step.
    """
    p, closed = eqn.params, eqn.params["jaxpr"]
    a, b = sizes(p)
    consts, init, xs = ins[:a], ins[a:b], ins[b:]
    own = [x.axis for x in ins if isinstance(x, Own)]
    if TERM in own:
        raise CannotTell
    if not init and any(isinstance(x, Own) and x.axis == Axis(0) for x in xs):
        return over_examples(walk, eqn, ins)
    if any(isinstance(x, Own) and x.axis.dim == 0 for x in xs):
        raise ExamplesMeet
    slices = [Own(None, x.axis.at(x.axis.dim - 1)) if isinstance(x, Own) else like(x, None) for x in xs]
    run = Noted(lambda held: walk.run(closed.jaxpr, closed.consts, held))

    def step(kinds):
        def one_step(carry, slice_values):
            outs = run.function([*consts, *with_values(kinds, carry), *with_values(slices, slice_values)])
            run.kinds = kinds_of(outs)
            as_before = [joined(pair) for pair in zip(kinds, outs, strict=False)] == kinds
            carried = as_kinds(walk, outs[: b - a], kinds) if as_before else ()
            return carried, values_of(outs[b - a :])

        return one_step

    kinds = kinds_of(init)
    while True:
        first = [None if x.value is None else jax.eval_shape(lambda x: x[0], x.value) for x in xs]
        jax.eval_shape(step(kinds), as_kinds(walk, init, kinds), first)
        grown = [joined(pair) for pair in zip(kinds, run.kinds, strict=False)]
        if grown == kinds:
            break
        kinds = grown
    if any(isinstance(kind, Own) and kind.axis == TERM for kind in run.kinds):
        raise CannotTell
    options = {name: p[name] for name in ("length", "reverse", "unroll")}
    carry, ys = lax.scan(step(kinds), as_kinds(walk, init, kinds), values_of(xs), **options)
    stacked = [
        Own(y, kind.axis.at(kind.axis.dim + 1)) if isinstance(kind, Own) else like(kind, y)
        for kind, y in zip(run.kinds[b - a :], ys, strict=True)
    ]
    return [*with_values(kinds, carry), *stacked]


def over_examples(walk, eqn, ins):
    """`lax.map` over the examples: the example's own step, by itself."""
    closed, (count, _) = eqn.params["jaxpr"], sizes(eqn.params)
    if any(isinstance(x, Own) for x in ins[:count]):
        raise ExamplesMeet
    types = [v.aval.shape[1:] for v in eqn.invars[count:]]
    xs = [walk.part(x, Axis(0)).reshape(shape) for x, shape in zip(ins[count:], types, strict=True)]
    ys = jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *values_of(ins[:count]), *xs)
    return [Own(jnp.expand_dims(y, 0), Axis(0)) for y in ys]


@enters("while")
def while_loop(walk, eqn, ins):
    raise CannotTell


@enters("custom_linear_solve")
def linear_solve(walk, eqn, ins):
    """A x = b for each example; what all share of A and b is cut as x is."""
    lengths, programs, at = eqn.params["const_lengths"], eqn.params["jaxprs"], 0
    consts = {}
    for name, count in zip(lengths._fields, lengths, strict=True):
        consts[name] = ins[at : at + count]
        at += count
    b, x = ins[at:], Noted(lambda held: walk.run(programs.solve.jaxpr, programs.solve.consts, held))
    if len(b) != len(eqn.outvars) or any(isinstance(held, Mixed) for held in ins):
        raise CannotTell
    given = [*consts["solve"], *b]
    jax.eval_shape(lambda values: x(given, values), values_of(given))
    kinds = [joined(pair) for pair in zip(x.kinds, kinds_of(b), strict=True)]

    def applied(name):
        closed = getattr(programs, name)

        def apply(_, vectors):
            outs = walk.run(closed.jaxpr, closed.consts, [*consts[name], *with_values(kinds, vectors)])
            return as_kinds(walk, outs, kinds)

        return None if closed is None else apply

    matvec, solve, transposed = map(applied, ("matvec", "solve", "transpose_solve"))
    # That it is symmetric only says that nobody need find the transpose of `matvec`, which no rule reads.
    solution = lax.custom_linear_solve(
        lambda v: matvec(None, v), as_kinds(walk, b, kinds), solve, transposed, symmetric=True
    )
    return with_values(kinds, solution)
