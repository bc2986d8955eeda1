"""SOAP against its algorithm in NumPy, and against what it is said to be: Adam in a basis of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpresearch import optim


def moved(gradients, start, **options):
    """The weights after each gradient."""
    optimizer = optim.soap(0.1, **options)
    step = jax.jit(optimizer.update)
    weights, state, found = jnp.asarray(start), optimizer.init(jnp.asarray(start)), []
    for g in gradients:
        updates, state = step(jnp.asarray(g), state, weights)
        weights = optax.apply_updates(weights, updates)
        found.append(np.asarray(weights))
    return found


def algorithm(gradients, w, every, lr=0.1, b1=0.95, b2=0.95, eps=1e-8, weight_decay=0.01):
    """Vyas et al. 2024, algorithm 3, with the conventions of its authors' program, in float64."""
    left, right, m, v, found = np.zeros((len(w),) * 2), np.zeros((w.shape[1],) * 2), 0 * w, 0 * w, []
    for t, g in enumerate(gradients):
        if t:
            rotated = ql.T @ g @ qr
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * rotated**2
            scaled = (ql.T @ m @ qr) / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
            w = w - lr * (ql @ scaled @ qr.T + weight_decay * w)
        else:
            w = w - lr * weight_decay * w
        left, right = b2 * left + (1 - b2) * g @ g.T, b2 * right + (1 - b2) * g.T @ g
        if t == 0:
            ql, qr = (np.linalg.eigh(c)[1][:, ::-1] for c in (left, right))
        elif t % every == 0:
            rows = np.argsort(-np.diag(ql.T @ left @ ql))
            columns = np.argsort(-np.diag(qr.T @ right @ qr))
            ql, qr = (np.linalg.qr((c @ q)[:, o])[0] for c, q, o in ((left, ql, rows), (right, qr, columns)))
            v = v[rows][:, columns]
        found.append(w)
    return found


@pytest.fixture(scope="module")
def gradients():
    generator = np.random.default_rng(0)
    return generator.normal(size=(8, 4, 4)) @ np.diag([3, 1, 0.5, 0.2]) + generator.normal(size=(4, 4))


@pytest.mark.parametrize(
    ("every", "others"),
    [(1, {}), (3, {}), (3, {"b1": 0.8, "b2": 0.7, "eps": 0.1, "weight_decay": 0.2})],
    ids=["every", "third", "others"],
)
def test_it_is_algorithm_3(float64, gradients, every, others):
    start = np.arange(16.0).reshape(4, 4) / 10
    found = moved(gradients, start, precondition_every=every, **others)
    np.testing.assert_allclose(found, algorithm(gradients, start, every, **others), rtol=1e-7)


def test_a_rotation_of_the_layer_rotates_its_course(float64, gradients):
    left, right = (np.linalg.qr(np.random.default_rng(n).normal(size=(4, 4)))[0] for n in (1, 2))
    start = np.eye(4)
    plain = moved(gradients, start, precondition_every=2)
    turned = moved(left @ gradients @ right.T, left @ start @ right.T, precondition_every=2)
    np.testing.assert_allclose(turned, [left @ w @ right.T for w in plain], atol=1e-7)
    adam = optim.adam(0.1)
    steps = [
        adam.update(jnp.asarray(g), adam.init(jnp.eye(4)))[0] for g in (gradients[0], left @ gradients[0])
    ]
    assert np.abs(left @ steps[0] - steps[1]).max() > 0.01  # as Adam's does not


def test_vectors_and_large_sides_have_adam(float64, gradients):
    adam = optax.adamw(0.1, 0.95, 0.95, weight_decay=0.01)
    for options, values in (({}, gradients[:, 0]), ({"largest_side": 3}, gradients)):
        weights, state, expected = jnp.ones(values.shape[1:]), adam.init(jnp.ones(values.shape[1:])), []
        for g in values:
            updates, state = adam.update(jnp.asarray(g), state, weights)
            weights = optax.apply_updates(weights, updates)
            expected.append(weights)
        np.testing.assert_allclose(moved(values, np.ones(values.shape[1:]), **options), expected, rtol=1e-9)


def test_kernels_of_convolutions_are_matrices(float64, gradients):
    found = moved(gradients.reshape(8, 2, 1, 2, 4), np.ones((2, 1, 2, 4)))
    flat = moved(gradients, np.ones((4, 4)))
    np.testing.assert_allclose([w.reshape(4, 4) for w in found], flat, rtol=1e-12)


def test_a_basis_is_looked_at_every_step_at_most():
    with pytest.raises(ValueError, match="precondition_every=0: takes at least 1 step"):
        optim.soap(0.1, precondition_every=0)
