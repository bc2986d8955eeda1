"""Products with second derivatives, forward over reverse: the program of a gradient, walked once with
tangents.

For a loss L(w) with gradient g(w) and Hessian H, the derivative of g along v is the product (Pearlmutter
1994)

    H v = d/dr g(w + r v) at r = 0.

So nothing is needed beside the rules: they make the program of g, and their tangents walk it. Where
L(w) = l(z) with outputs z = f(w), J = dz/dw and H_l the Hessian of l, the Gauss-Newton matrix (Schraudolph
2002) leaves out the curvature of f:

    G = J^T H_l J,   H = G + sum_k (dl/dz_k) d^2 z_k / dw^2.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from bpresearch.chainrule import engine, tangents, transforms
from bpresearch.chainrule.calls import WholeFunction, layers_whole, named
from bpresearch.chainrule.primitives import Value, is_floating
from bpresearch.chainrule.program import is_model, picked, take_apart, trace, trace_of
from bpresearch.chainrule.registry import has_rule, version
from bpresearch.functional import Loss, Params, Program, State, as_inputs, merge, split


def hvp(f: nnx.Module | Callable[..., PyTree], *given: Any, argnums: int | Sequence[int] = 0) -> PyTree:
    """The Hessian times a vector, by hand-written rules, in one of two forms.

    `hvp(model, loss_fn, x, y, vector)` is of the loss of a model with respect to its parameters, compiled;
    `model, loss_fn, x, y` are as in `value_and_grad`, and the vector is a nested dict with the paths and
    shapes of the parameters, as gradients have them.

    `hvp(f, primals, vector)` is of a scalar function `f(*primals)`. The vector is like what `grad(f,
    argnums)` gives; of a model among the primals, an `nnx.State` or a nested dict of its parameters.

    Args:
        f: a model, or a function of pytrees and models that returns a scalar.
        given: `loss_fn, x, y, vector` or `primals, vector`.
        argnums: which primals the Hessian is of.

    Returns:
        The product, a pytree like the gradient.

    >>> model = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
    >>> x, y = jnp.array([[1.0, 2.0]]), jnp.array([[3.0]])
    >>> product = bp.chainrule.hvp(model, optax.squared_error, x, y, {"kernel": jnp.array([[1.0], [0.0]])})
    >>> print(product["kernel"][:, 0])  # the Hessian is 2 x^T x
    [2. 4.]
    >>> print(bp.chainrule.hvp(lambda w: jnp.sum(w**3), (jnp.array([1.0, 2.0]),), jnp.array([1.0, 1.0])))
    [ 6. 12.]
    """
    if len(given) == 4:
        return _of_model(hessian_vector_product, f, *given)
    if len(given) != 2:
        raise TypeError("hvp takes (model, loss_fn, x, y, vector) or (f, primals, vector)")
    return _of_function(f, *given, argnums)


def gauss_newton(model: nnx.Module, loss_fn: Loss, x: PyTree, y: PyTree, vector: Params) -> Params:
    """The Gauss-Newton matrix J^T H_l J of a loss times a vector, by hand-written rules, compiled.

    J is the Jacobian of the model's outputs with respect to its parameters, and H_l the Hessian of the mean
    of `loss_fn(outputs, y)` with respect to the outputs. It is the Hessian where the outputs are linear in
    the parameters, and for the natural losses (squared error, cross-entropy of logits) the Fisher matrix.

    Args:
        model, loss_fn, x, y, vector: as in `hvp`.

    >>> model = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
    >>> x, y = jnp.array([[1.0, 2.0]]), jnp.array([[3.0]])
    >>> vector = {"kernel": jnp.array([[1.0], [0.0]])}
    >>> print(bp.chainrule.gauss_newton(model, optax.squared_error, x, y, vector)["kernel"][:, 0])
    [2. 4.]
    """
    return _of_model(gauss_newton_product, model, loss_fn, x, y, vector)


def hessian_vector_product(graphdef: nnx.GraphDef, loss_fn: Loss) -> Callable[..., Params]:
    """The pure function `(params, state, (x, y), vector) -> H vector`."""
    gradient = transforms.gradient(graphdef, loss_fn)

    def product(params: Params, state: State, batch: tuple[PyTree, PyTree], vector: Params) -> Params:
        return forward_over_reverse(lambda params: gradient(params, state, batch)[1], params, vector)

    return product


def gauss_newton_product(graphdef: nnx.GraphDef, loss_fn: Loss) -> Callable[..., Params]:
    """The pure function `(params, state, (x, y), vector) -> G vector`."""
    loss = WholeFunction(loss_fn, "loss") if has_rule(loss_fn) else loss_fn

    def product(params: Params, state: State, batch: tuple[PyTree, PyTree], vector: Params) -> Params:
        x, y = batch
        weights, structure = jax.tree.flatten(params)

        def outputs(*weights):
            model = named(merge(graphdef, structure.unflatten(weights), state))
            with layers_whole([model]):
                return model(*as_inputs(x))

        f = trace(outputs, *weights)
        wanted = [is_floating(w) for w in weights]
        z, tape = engine.forward(f.jaxpr, f.consts, weights, wanted)
        _, z_dot = tangents.walk(f.jaxpr, f.consts, weights, _along(vector, weights))

        def of_outputs(z):
            return jnp.mean(loss(*as_inputs(f.structure.unflatten(z)), *as_inputs(y)))

        z_bar_dot = _hessian_of_outputs(of_outputs, z, z_dot)  # H_l J v
        cotangents = engine.backward(f.jaxpr, tape, z_bar_dot, wanted)
        return structure.unflatten(_filled(cotangents, weights))

    return product


def forward_over_reverse(gradient: Callable[[PyTree], PyTree], at: PyTree, vector: PyTree) -> PyTree:
    """H v: the tangent of a gradient at a point along a vector."""
    w, structure = jax.tree.flatten(at)
    g = trace(lambda *w: gradient(structure.unflatten(w)), *w)
    values, value_dots = tangents.walk(g.jaxpr, g.consts, w, _along(vector, w))
    return g.structure.unflatten(_filled(value_dots, values))


def _hessian_of_outputs(
    loss: Callable[..., Value], z: Sequence[Value], z_dot: Sequence[Value | None]
) -> list[Value | None]:
    """H_l z_dot for each output; None for those that are not floating point or do not move."""
    places = [
        i
        for i, (output, dot) in enumerate(zip(z, z_dot, strict=True))
        if is_floating(output) and dot is not None
    ]

    def of_moving(moving):
        filled = dict(enumerate(z)) | dict(zip(places, moving, strict=True))
        return loss([filled[i] for i in range(len(z))])

    product: list[Value | None] = [None] * len(z)
    if places:
        gradient = transforms.grad(of_moving)
        z_bar_dots = forward_over_reverse(gradient, [z[i] for i in places], [z_dot[i] for i in places])
        for i, z_bar_dot in zip(places, z_bar_dots, strict=True):
            product[i] = z_bar_dot
    return product


def _of_function(
    f: Callable[..., PyTree], primals: Sequence[PyTree], vector: PyTree, argnums: int | Sequence[int]
) -> PyTree:
    primals, chosen = tuple(primals), (argnums,) if isinstance(argnums, int) else tuple(argnums)
    chosen = tuple(n % len(primals) for n in chosen)
    vectors = dict(zip(chosen, (vector,) if isinstance(argnums, int) else vector, strict=True))
    parts = take_apart((primals, {}))
    leaves, structure = jax.tree.flatten(parts.leaves)
    dots: list[Value | None] = []
    for n, primal in enumerate(primals):
        dots += _directions(primal, vectors[n]) if n in vectors else [None] * len(_arrays(primal))

    wanted = [dot is not None for dot in dots]
    moving = [jnp.asarray(x) for x in picked(leaves, wanted)]

    def gradient(leaves):
        (primals, _), _ = parts.together(structure.unflatten(leaves))
        return transforms.grad(f, argnums=argnums)(*primals)

    g = trace_of(gradient, leaves, wanted)
    values, value_dots = tangents.walk(g.jaxpr, g.consts, moving, _along(picked(dots, wanted), moving))
    return g.structure.unflatten(_filled(value_dots, values))


def _arrays(primal: PyTree) -> list[Value]:
    """The arrays of an argument in the order of `take_apart`: of a model, its parameters come first."""
    return jax.tree.leaves(take_apart(primal).leaves)


def _directions(primal: PyTree, vector: PyTree) -> list[Value | None]:
    """A tangent for each array of an argument; None for variables of models that are no parameters."""
    models = [leaf for leaf in jax.tree.leaves(primal, is_leaf=is_model) if is_model(leaf)]
    if not models:
        _require_like(vector, primal)
        return jax.tree.leaves(vector)
    if primal is not models[0]:
        raise TypeError("hvp: a model is an argument of its own, not a part of one")
    _, params, state = split(primal)
    vector = nnx.to_pure_dict(vector) if isinstance(vector, nnx.State) else vector
    _require_like(vector, params)
    return [*jax.tree.leaves(vector), *[None] * len(jax.tree.leaves(state))]


def _require_like(vector: PyTree, params: PyTree) -> None:
    if jax.tree.map(jnp.shape, vector) != jax.tree.map(jnp.shape, params):
        raise ValueError(
            "the vector must have the paths and shapes of the model's parameters, or of the argument"
        )


def _along(vector: PyTree, leaves: Sequence[Value]) -> list[Value | None]:
    """The vector's arrays in the types of what they move; None where there is no derivative."""
    dots = jax.tree.leaves(vector, is_leaf=lambda dot: dot is None)
    return [
        jnp.asarray(dot, w.dtype) if dot is not None and is_floating(w) else None
        for w, dot in zip(leaves, dots, strict=True)
    ]


def _filled(dots: Sequence[Value | None], values: Sequence[Value]) -> list[Value]:
    return [jnp.zeros_like(value) if dot is None else dot for value, dot in zip(values, dots, strict=True)]


def _of_model(
    product: Callable[..., PyTree], model: nnx.Module, loss_fn: Loss, x: PyTree, y: PyTree, vector: Params
) -> Params:
    graphdef, params, state = split(model)
    _require_like(vector, params)
    program = Program(product, graphdef, (loss_fn, version(), engine.rules_in_force()))
    return _compiled(program, params, state, (x, y), vector)


@partial(jax.jit, static_argnums=0)
def _compiled(program: Program, params: Params, state: State, batch: PyTree, vector: Params) -> Params:
    return program.gradient(program.graphdef, program.options[0])(params, state, batch, vector)
