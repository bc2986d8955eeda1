"""What Adam's first step on each layer does as a network grows wider, in the standard scaling and in muP."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import losses, models
from bpresearch.functional import merge, split
from bpresearch.optim import mup
from bpresearch.theory.widths import exponent, first_steps, own_output

WIDTHS = (64, 512)
KERNELS = ("layers.1.kernel", "layers.3.kernel", "layers.5.kernel")
X = jax.random.normal(jax.random.key(1), (64, 20))
Y = jax.random.randint(jax.random.key(2), (64,), 0, 5)


def build(width, seed=0):
    return models.mlp((20,), 5, widths=(width, width), rngs=nnx.Rngs(seed))


def test_the_loss_falls_by_what_adams_first_step_is_said_to_do():
    loss_fn, rate = losses.named("cross_entropy"), 1e-4
    model = build(16)
    said = first_steps(model, loss_fn, X, Y, {KERNELS[1]: 0.5})
    graphdef, params, state = split(model)
    adam = optax.adam(rate, eps=1e-20)  # 0 where the gradient is: behind a unit that no example moves

    @jax.jit
    def lowered(params):
        """By a step on each kernel alone."""

        def loss(params):
            return jnp.mean(loss_fn(merge(graphdef, params, state)(X), Y))

        before, gradients = jax.value_and_grad(loss)(params)
        updates, _ = adam.update(gradients, adam.init(params), params)
        return [
            before
            - loss(
                jax.tree.map_with_path(
                    lambda place, w, u, path=path: w + u if mup.path_of(place) == path else w, params, updates
                )
            )
            for path in KERNELS
        ]

    for path, difference in zip(KERNELS, lowered(params), strict=True):
        part = 0.5 if path == KERNELS[1] else 1.0
        assert part * float(difference) / rate == pytest.approx(said[path], rel=0.02)


def test_in_the_standard_scaling_it_grows_like_powers_of_the_width_and_in_mup_not_at_all():
    base = split(nnx.eval_shape(lambda: build(WIDTHS[0])))[1]
    standard, scaled = [], []
    for width in WIDTHS:
        found = first_steps(build(width), own_output, X, Y)
        standard.append([found[path] for path in KERNELS])
        model = mup.widened(lambda rngs, width=width: build(width), base)(nnx.Rngs(0))
        rates = mup.rates_of("adam", split(model)[1], mup.shapes_of(base))
        found = first_steps(model, own_output, X, Y, rates)
        scaled.append([found[path] for path in KERNELS])
    for values, expected in ((standard, (0.5, 1.5, 1.0)), (scaled, (0, 0, 0))):
        measured = [exponent(np.array(WIDTHS, float), column) for column in np.array(values).T]
        np.testing.assert_allclose(measured, expected, rtol=0, atol=0.1)
