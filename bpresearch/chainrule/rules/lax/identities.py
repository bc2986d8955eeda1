"""What hands its operand on: conversions, copies, names, barriers, places in memory and on devices."""

import jax
import jax.numpy as jnp
from jax import lax

from bpresearch.chainrule.primitives import constant, is_floating, linear, primitive, refused


@primitive("convert_element_type")
class Convert:
    """y = x in another dtype:  x_bar = y_bar in the dtype of x; for a real x, its real part."""

    def backward(e, y_bar):
        return None if y_bar is None else converted(y_bar, e.ins[0].dtype)

    def tangent(e, x_dot):
        return converted(x_dot, e.outs[0].dtype) if is_floating(e.outs[0]) else None


def converted(x, dtype):
    """x in another dtype; of a complex number that becomes real, the real part."""
    if jnp.iscomplexobj(x) and not jnp.issubdtype(dtype, jnp.complexfloating):
        x = lax.real(x)
    return lax.convert_element_type(x, dtype)


@linear("copy", "stage")
def copy(e, y_bar):
    """y = x:  x_bar = y_bar"""
    return y_bar


@linear("reduce_precision", "sharding_constraint", "layout_constraint")
def constrained(e, y_bar):
    """y = x, rounded or placed as asked for:  x_bar = y_bar, rounded or placed alike."""
    return e.bind(y_bar)[0]


@linear("reshard")
def moved(e, y_bar):
    """y = x under another sharding:  x_bar = y_bar under the sharding of x."""
    sharding = jax.typeof(e.ins[0]).sharding
    with jax.sharding.use_abstract_mesh(sharding.mesh):
        return e.primitive.bind(y_bar, **{**e.params, "dst_sharding": sharding})


@linear("relayout")
def laid_out(e, y_bar):
    """y = x in another layout:  x_bar = y_bar in the layout of x."""
    return e.primitive.bind(y_bar, dst_layout=jax.typeof(e.ins[0]).layout)


@primitive("name")
class Name:
    """y = x, under a name that a policy of `jax.checkpoint` knows:  x_bar = y_bar, which has no name."""

    def backward(e, y_bar):
        return y_bar

    def tangent(e, x_dot):
        return x_dot


@primitive("tie")
class Tie:
    """y = x, held back until `before` has been computed:  x_bar = y_bar"""

    def backward(e, y_bar):
        return None, y_bar

    def tangent(e, before_dot, x_dot):
        return x_dot


@primitive("optimization_barrier")
class Barrier:
    """ys = xs, which the compiler does not see through:  x_bars = y_bars behind a barrier of their own."""

    def flow(params, flags):
        return flags

    def backward(e, *y_bars):
        return behind_barrier(e, y_bars)

    def tangent(e, *x_dots):
        return behind_barrier(e, x_dots)


def behind_barrier(e, values):
    """The values behind one barrier; None stays None."""
    behind = iter(e.bind(*(x for x in values if x is not None)))
    return tuple(None if x is None else next(behind) for x in values)


@primitive("device_put")
class DevicePut:
    """ys = xs on other devices or in another memory:  x_bar = y_bar where x came from.

    Where the source is not written down, x_bar stays on its device, as in JAX, in the kind of memory of x.
    """

    def flow(params, flags):
        return flags

    def backward(e, *y_bars):
        return tuple(
            None if bar is None else put_back(bar, x, source)
            for bar, x, source in zip(y_bars, e.ins, e.params["srcs"], strict=True)
        )

    def tangent(e, *x_dots):
        return tuple(
            None if dot is None else dot if target is None else jax.device_put(dot, target)
            for dot, target in zip(x_dots, e.params["devices"], strict=True)
        )


def put_back(y_bar, x, source):
    """y_bar where x came from."""
    if source is not None:
        return jax.device_put(y_bar, source)
    memory = jax.typeof(x).memory_space
    return y_bar if jax.typeof(y_bar).memory_space == memory else jax.device_put(y_bar, memory)


constant("stop_gradient", why="that is its purpose")
constant("bitcast_convert_type", why="it reads bits")
constant("dce_sink", why="it has no result")
refused("to_edtype", "from_edtype", why="users have no floating-point values of extended types")
refused("with_memory_space_constraint", why="it occurs in Pallas kernels only")
