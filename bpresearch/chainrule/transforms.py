"""Derivatives of any JAX function, or NNX model, by hand-written rules: what `jax.grad` and its kin do.

All of them trace the function into a program and walk it, so they work inside `jit`, `vmap`, `scan` and
`shard_map`, and inside each other.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from bpresearch.chainrule import engine, tangents
from bpresearch.chainrule.calls import WholeFunction, layers_whole, named
from bpresearch.chainrule.primitives import is_floating
from bpresearch.chainrule.program import Parts, in_place, of_arrays, picked, take_apart, trace_of
from bpresearch.chainrule.registry import has_rule, version
from bpresearch.functional import Loss, State, compiled_value_and_grad, merge, objective, state_of


def value_and_grad(
    f: nnx.Module | Callable[..., PyTree],
    loss_fn: Loss | None = None,
    x: PyTree = None,
    y: PyTree = None,
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    inputs: bool = False,
    penalty: Loss | None = None,
) -> Any:
    """Value and gradient by the hand-written rules, in one of two forms.

    `value_and_grad(model, loss_fn, x, y)` gives `(loss, grads)` of a model on one batch, compiled; see
    `bpresearch.autodiff.value_and_grad`, which takes and returns the same.

    `value_and_grad(f)` gives a function, as `jax.value_and_grad` does, of any pytrees. An `nnx.Module` among
    the arguments is differentiated with respect to its `nnx.Param`s, as by `nnx.value_and_grad`: its
    gradient is an `nnx.State`, and what the call changes in the model's other variables is changed in the
    model.

    Args:
        f: a model, or a function of pytrees and models that returns a scalar.
        loss_fn, x, y, inputs, penalty: of the first form.
        argnums: which positional arguments of `f` to differentiate.
        has_aux: whether `f` returns a pair whose second part is not differentiated.

    Raises:
        NoPrimitiveRuleError: an operation has no rule; the message names it and the line it is in.
        TypeError: `f` does not return a real scalar, or an argument to differentiate is not floating point.

    >>> print(bp.chainrule.value_and_grad(lambda x: jnp.sum(jnp.sin(x)))(jnp.zeros(2)))
    (Array(0., dtype=float32), Array([1., 1.], dtype=float32))
    >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    >>> def loss(model, batch):
    ...     return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)
    >>> batch = {"x": jnp.ones((3, 2)), "y": jnp.ones((3, 1))}
    >>> value, grads = bp.chainrule.value_and_grad(loss)(model, batch)
    >>> print(grads["kernel"].shape)
    (2, 1)
    """
    if loss_fn is not None:
        if not callable(loss_fn):
            raise TypeError(f"value_and_grad: {loss_fn!r} is not a loss function; argnums= is a keyword")
        rules = engine.rules_in_force(), version()
        return compiled_value_and_grad(gradient, f, loss_fn, x, y, inputs, rules, penalty)
    return functools.wraps(f)(functools.partial(_value_and_grad, f, argnums, has_aux))


def grad(
    f: Callable[..., PyTree], *, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., PyTree]:
    """The gradient of a scalar function by the hand-written rules, as `jax.grad`; see `value_and_grad`.

    >>> print(bp.chainrule.grad(bp.chainrule.grad(jnp.sin))(0.5) + jnp.sin(0.5))
    0.0
    """

    @functools.wraps(f)
    def gradient(*args, **kwargs):
        value, grads = _value_and_grad(f, argnums, has_aux, *args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return gradient


def _value_and_grad(
    f: Callable[..., PyTree], argnums: int | Sequence[int], has_aux: bool, *args: PyTree, **kwargs: PyTree
) -> tuple[PyTree, PyTree]:
    parts = take_apart((args, kwargs))
    numbers = (argnums,) if isinstance(argnums, int) else argnums
    if not all(-len(args) <= n < len(args) for n in numbers):
        raise ValueError(f"argnums={argnums} of a function that is given {len(args)} positional arguments")
    numbers = tuple(n % len(args) for n in numbers)
    flat, structure = jax.tree.flatten(parts.leaves)
    wanted = _wanted(parts, args, numbers)
    function = of_arrays(f, parts)
    primals = [jnp.asarray(x) for x in picked(flat, wanted)]
    for x in primals:
        if not is_floating(x):
            raise TypeError(f"the gradient with respect to an argument of type {x.dtype} is not defined")
    program = trace_of(lambda flat: function(structure.unflatten(flat)), flat, wanted)
    live = [i == 0 for i in range(program.structure.num_leaves)]  # the value alone is differentiated
    every = [True] * len(primals)
    outs, tape = engine.forward(program.jaxpr, program.consts, primals, every, live)
    result, states = program.structure.unflatten(outs)
    value = result[0] if has_aux else result
    _require_real_scalar(value)
    bars = [jnp.ones_like(value), *[None] * (len(outs) - 1)]
    bars = engine.filled(engine.backward(program.jaxpr, tape, bars, every, live), primals)
    _write_back(parts, args, kwargs, states)
    grads = _gradients(parts, args, kwargs, numbers, in_place(bars, wanted))
    return result, grads if not isinstance(argnums, int) else grads[0]


def _wanted(parts: Parts, args: tuple[PyTree, ...], numbers: Sequence[int]) -> list[bool]:
    """Which of the arrays in the arguments are differentiated: those of some arguments, of models the
    parameters.
    """
    wanted = []
    for place, leaf in enumerate(parts.leaves):
        on = _argument_of(place, args) in numbers
        if place in parts.models:
            params, state = leaf
            wanted += [on] * len(jax.tree.leaves(params)) + [False] * len(jax.tree.leaves(state))
        else:
            wanted += [on] * len(jax.tree.leaves(leaf))
    return wanted


def _argument_of(place: int, args: tuple[PyTree, ...]) -> int:
    """The number of the argument that a leaf of `(args, kwargs)` belongs to."""
    counts = np.cumsum(
        [len(jax.tree.leaves(arg, is_leaf=lambda v: isinstance(v, nnx.Module))) for arg in args]
    )
    return int(np.searchsorted(counts, place, side="right"))


def _gradients(
    parts: Parts,
    args: tuple[PyTree, ...],
    kwargs: dict[str, PyTree],
    numbers: Sequence[int],
    bars: list[PyTree],
) -> tuple[PyTree, ...]:
    """For each chosen argument its gradient: arrays as they are, of a model an `nnx.State`."""
    leaves = jax.tree.structure(parts.leaves).unflatten(bars)
    originals = jax.tree.leaves((args, kwargs), is_leaf=lambda v: isinstance(v, nnx.Module))
    for place in parts.models:
        gradient = nnx.state(originals[place], nnx.Param)
        nnx.replace_by_pure_dict(gradient, leaves[place][0])
        leaves[place] = gradient
    whole_args, _ = parts.structure.unflatten(leaves)
    return tuple(whole_args[n] for n in numbers)


def _write_back(
    parts: Parts, args: tuple[PyTree, ...], kwargs: dict[str, PyTree], states: list[State]
) -> None:
    originals = jax.tree.leaves((args, kwargs), is_leaf=lambda v: isinstance(v, nnx.Module))
    for place, state in zip(parts.models, states, strict=True):
        if state:
            nnx.update(originals[place], nnx.State(state))


def _require_real_scalar(value: PyTree) -> None:
    if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise TypeError(
            "a gradient is of a function with one real number as its value, not "
            f"shape {jnp.shape(value)} and type {jnp.result_type(value)}; vjp takes others"
        )


def vjp(f: Callable[..., PyTree], *primals: PyTree, has_aux: bool = False) -> tuple[PyTree, ...]:
    """What `f(*primals)` returns and the function that takes cotangents back, as `jax.vjp`.

    Returns:
        `(outputs, pullback)`, with `has_aux` also the second part of what `f` returns. `pullback(bars)`
        takes a cotangent for each output and gives a tuple of one for each primal; integers have those of
        type float0.

    >>> y, pullback = bp.chainrule.vjp(lambda a, b: a * b, 2.0, 3.0)
    >>> print(y, *pullback(1.0))
    6.0 3.0 2.0
    """
    flat, structure = jax.tree.flatten(primals)
    flat = [jnp.asarray(x) for x in flat]
    wanted = [is_floating(x) for x in flat]
    program = trace_of(lambda flat: f(*structure.unflatten(flat)), flat, wanted)
    moving = picked(flat, wanted)
    every = [True] * len(moving)
    outs, tape = engine.forward(program.jaxpr, program.consts, moving, every)
    whole = program.structure.unflatten(outs)
    outputs = whole[0] if has_aux else whole
    results, of_outputs = jax.tree.flatten(outputs)

    def pullback(bars):
        bars = [
            jnp.asarray(bar, y.dtype) if is_floating(y) else None
            for bar, y in zip(of_outputs.flatten_up_to(bars), results, strict=True)
        ]
        for bar, y in zip(bars, results, strict=True):
            if bar is not None and bar.shape != y.shape:
                raise ValueError(f"the cotangent of an output of shape {y.shape} has shape {bar.shape}")
        given = [*bars, *[None] * (len(outs) - len(bars))]
        cotangents = engine.filled(engine.backward(program.jaxpr, tape, given, every), moving)
        return structure.unflatten(
            [
                _float0(x) if bar is None else bar
                for bar, x in zip(in_place(cotangents, wanted), flat, strict=True)
            ]
        )

    return (outputs, pullback, whole[1]) if has_aux else (outputs, pullback)


def jvp(
    f: Callable[..., PyTree], primals: Sequence[PyTree], tangents_: Sequence[PyTree], *, has_aux: bool = False
) -> tuple[PyTree, ...]:
    """What `f(*primals)` returns and how it changes along the tangents, as `jax.jvp`.

    >>> print(*bp.chainrule.jvp(jnp.sin, (0.0,), (2.0,)))
    0.0 2.0
    """
    flat, structure = jax.tree.flatten(tuple(primals))
    flat = [jnp.asarray(x) for x in flat]
    dots = [
        jnp.asarray(dot, x.dtype) if is_floating(x) else None
        for dot, x in zip(structure.flatten_up_to(tuple(tangents_)), flat, strict=True)
    ]
    wanted = [dot is not None for dot in dots]
    program = trace_of(lambda flat: f(*structure.unflatten(flat)), flat, wanted)
    outs, out_dots = tangents.walk(program.jaxpr, program.consts, picked(flat, wanted), picked(dots, wanted))
    out_dots = [
        _float0(y) if not is_floating(y) else jnp.zeros_like(y) if dot is None else dot
        for y, dot in zip(outs, out_dots, strict=True)
    ]
    whole, moved = program.structure.unflatten(outs), program.structure.unflatten(out_dots)
    return (whole[0], moved[0], whole[1]) if has_aux else (whole, moved)


def _float0(x: PyTree) -> np.ndarray:
    return np.zeros(jnp.shape(x), jax.dtypes.float0)


def gradient(
    graphdef: nnx.GraphDef, loss_fn: Loss, *, inputs: bool = False, penalty: Loss | None = None
) -> Callable[..., PyTree]:
    """The pure function `(params, state, (x, y)) -> (loss, new_state), grads`, as `autodiff.gradient`."""
    whole_loss = WholeFunction(loss_fn, "loss") if has_rule(loss_fn) else loss_fn
    of_batch = objective(whole_loss, penalty)

    def loss(params, x, state, y):
        model = named(merge(graphdef, params, state))
        with layers_whole([model]):
            return of_batch(model, params, x, y), state_of(model)

    def value_and_grad(params, state, batch):
        x, y = batch
        flat, structure = jax.tree.flatten((params, x, state, y))
        of_params, of_inputs = len(jax.tree.leaves(params)), len(jax.tree.leaves(x)) if inputs else 0
        count = of_params + of_inputs
        wanted = [i < count and is_floating(leaf) for i, leaf in enumerate(flat)]
        program = trace_of(lambda flat: loss(*structure.unflatten(flat)), flat, wanted)
        moving = picked(flat, wanted)
        every = [True] * len(moving)
        live = [i == 0 for i in range(program.structure.num_leaves)]  # the loss, not the new state
        outs, tape = engine.forward(program.jaxpr, program.consts, moving, every, live)
        value, new_state = program.structure.unflatten(outs)
        bars = [jnp.ones_like(value), *[None] * (len(outs) - 1)]
        bars = engine.filled(engine.backward(program.jaxpr, tape, bars, every, live), moving)
        bars = in_place(bars, wanted)[:count]
        grads = jax.tree.structure(params).unflatten(bars[:of_params])
        if inputs:
            return (value, new_state), (grads, jax.tree.structure(x).unflatten(bars[of_params:]))
        return (value, new_state), grads

    return value_and_grad
