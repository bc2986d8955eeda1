"""Physics-informed network for a damped oscillator, after flaxdocs.

Source: mlnomadpy/flaxdocs, examples/scientific/pinn_oscillator.py (PINN, physics_loss); avitai/opifex,
examples/pinns/burgers.py. There the loss takes the model and differentiates it; here the outer module's
__call__ does, so that it fits loss_fn(model(x), y). Glue: jax.grad of a scalar function of the module,
twice, under jax.vmap, inside __call__; reshape, indexing [0, 0], python loop over nnx.List, three outputs;
the loss squares and adds them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Displacement(nnx.Module):
    def __init__(self, hidden, depth, rngs):
        self.layers = nnx.List([nnx.Linear(1 if i == 0 else hidden, hidden, rngs=rngs) for i in range(depth)])
        self.out = nnx.Linear(hidden, 1, rngs=rngs)

    def __call__(self, t):
        for layer in self.layers:
            t = nnx.tanh(layer(t))
        return self.out(t)


class Oscillator(nnx.Module):
    def __init__(self, rngs):
        self.u = Displacement(6, 2, rngs)

    def __call__(self, t):
        def u(s):
            return self.u(s.reshape(1, 1))[0, 0]

        du = jax.grad(u)
        points = t[:, 0]
        residual = jax.vmap(jax.grad(du))(points) + 1.2 * jax.vmap(du)(points) + 9.0 * jax.vmap(u)(points)
        zero = jnp.zeros((), t.dtype)
        return residual, u(zero), du(zero)


def loss_fn(residual, u0, v0, start):
    return jnp.mean(residual**2) + 10.0 * ((u0 - start[0]) ** 2 + (v0 - start[1]) ** 2)


def make():
    t = np.linspace(0.0, 4.0, 9).astype("float32").reshape(-1, 1)
    return Oscillator(nnx.Rngs(0)), loss_fn, t, np.array([1.0, 0.0], "float32")
