"""The sizes of outputs and cotangents are those that perturbations of the layers' outputs have."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch.verify import flow


def rms(x):
    return float(jnp.sqrt(jnp.mean(jnp.abs(x) ** 2)))


class Mixer(nnx.Module):
    """Layers with rules, a layer without one, and a raw parameter."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.gate = Gate(rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x, first=0.0, gate=0.0, last=0.0):
        return self.last(self.gate(self.first(x) + first) + gate) + last


class Gate(nnx.Module):
    def __init__(self, rngs):
        self.scale = nnx.Param(jax.random.normal(rngs(), 4))

    def __call__(self, x):
        return x * jnp.tanh(self.scale[...])[None]


def test_sizes_are_those_of_perturbed_outputs():
    model = Mixer(nnx.Rngs(0))
    x, y = jax.random.normal(jax.random.key(1), (5, 3)), jnp.ones((5, 2))
    zeros = {"first": jnp.zeros((5, 4)), "gate": jnp.zeros((5, 4)), "last": jnp.zeros((5, 2))}

    def loss(model, batch):
        return jnp.mean((model(batch[0]) - batch[1]) ** 2)

    report = flow(loss, model, (x, y))
    bars = jax.grad(lambda added: jnp.mean((model(x, **added) - y) ** 2))(zeros)
    outputs = {"first": model.first(x), "gate": model.gate(model.first(x)), "last": model(x)}
    assert [row.layer for row in report.rows] == ["first", "gate", "last"]
    for row in report.rows:
        np.testing.assert_allclose(row.output_rms, rms(outputs[row.layer]), rtol=1e-5)
        np.testing.assert_allclose(row.output_max, float(jnp.max(jnp.abs(outputs[row.layer]))), rtol=1e-5)
        np.testing.assert_allclose(row.cotangent_rms, rms(bars[row.layer]), rtol=1e-5)
        np.testing.assert_allclose(row.cotangent_max, float(jnp.max(jnp.abs(bars[row.layer]))), rtol=1e-5)
    np.testing.assert_allclose(report.rows[0].ratio, rms(bars["first"]) / rms(bars["gate"]), rtol=1e-5)
    assert np.isnan(report.rows[-1].ratio)
    short = flow(model, optax.losses.squared_error, x, y)
    assert [row.layer for row in short.rows] == ["first", "gate", "last"]
    np.testing.assert_allclose(short.rows[0].cotangent_rms, report.rows[0].cotangent_rms, rtol=1e-5)


def chain(factor, depth=4):
    layers = [nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(0)) for _ in range(depth)]
    for layer in layers:
        layer.kernel[...] = factor * jnp.eye(3)
    return nnx.Sequential(*layers)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1.0, "Neither vanishing nor exploding"),
        (0.01, "The cotangent shrinks 1e+06-fold from layers.3 to layers.0: vanishing."),
        (100.0, "The cotangent grows 1e+06-fold from layers.3 to layers.0: exploding."),
        (0.0, "The cotangent of layers.2 is zero: nothing comes back to it from layers.3."),
        (np.nan, "The cotangent is not finite from layers.3 on"),
    ],
)
def test_vanishing_and_exploding_are_said(factor, words):
    ones = np.ones((2, 3), np.float32)
    report = flow(chain(factor), optax.losses.squared_error, ones, 0 * ones + 7)
    assert words in report.summary
    table = str(report).splitlines()
    assert table[-1] == report.summary
    assert len(table) == 1 + 4 + 1
    assert all(len(line) <= 80 for line in table[:-1])
    found = json.loads(report.to_json())
    assert [row["layer"] for row in found["rows"]] == [f"layers.{i}" for i in range(4)]
    assert found["summary"] == report.summary
    if factor in (0.01, 100.0):
        np.testing.assert_allclose([row.ratio for row in report.rows[:-1]], factor, rtol=1e-5)


def test_in_a_loop_the_largest_step_is_listed():
    class Recurrent(nnx.Module):
        def __init__(self):
            self.cell = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))
            self.cell.kernel[...] = 0.1 * jnp.eye(2)

        def __call__(self, x):
            return nnx.scan(lambda cell, h: cell(h), in_axes=(None, nnx.Carry), out_axes=nnx.Carry, length=3)(
                self.cell, x
            )

    report = flow(lambda model, x: jnp.sum(model(x)), Recurrent(), jnp.ones((1, 2)))
    (row,) = report.rows
    assert row.layer == "cell"
    np.testing.assert_allclose((row.output_max, row.cotangent_max), (0.1, 1.0), rtol=1e-5)


def test_without_a_model_it_says_so():
    with pytest.raises(TypeError, match=r"is a flax\.nnx\.Module"):
        flow(jnp.sin, jnp.cos, 1.0, 2.0)
