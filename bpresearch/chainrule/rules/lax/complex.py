"""Complex numbers and their parts.

Cotangents are transposed, not conjugated: y_bar and y_dot make the number re(y_bar y_dot).
The absolute value is with the other absolute values, in `elementwise.py`.
"""

import jax.numpy as jnp
from jax import lax

from bpresearch.chainrule.primitives import fit, linear, primitive, total


@linear("real")
def real(e, y_bar):
    """y = re(x):  x_bar = y_bar, since re(y_bar x_dot) = y_bar re(x_dot)"""
    return lax.complex(y_bar, jnp.zeros_like(y_bar))


@linear("imag")
def imag(e, y_bar):
    """y = im(x):  x_bar = -i y_bar, since re(-i y_bar x_dot) = y_bar im(x_dot)"""
    return lax.complex(jnp.zeros_like(y_bar), -y_bar)


@linear("conj")
def conj(e, y_bar):
    """y = conj(x):  x_bar = conj(y_bar), and its real part for a real x"""
    return lax.conj(y_bar) if jnp.iscomplexobj(e.ins[0]) else lax.real(y_bar)


@primitive("complex")
class Complex:
    """y = a + i b:  a_bar = re(y_bar),  b_bar = -im(y_bar)"""

    def backward(e, y_bar):
        a, b = e.ins
        return (
            fit(lax.real(y_bar), a) if e.wanted[0] else None,
            fit(-lax.imag(y_bar), b) if e.wanted[1] else None,
        )

    def tangent(e, a_dot, b_dot):
        a_dot = jnp.zeros_like(b_dot) if a_dot is None else a_dot
        b_dot = jnp.zeros_like(a_dot) if b_dot is None else b_dot
        return total([lax.complex(a_dot, b_dot)], e.outs[0])
