"""Lanczos against dense eigenvalues."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch.theory.spectra import eigh, spectrum


def symmetric(eigenvalues, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))
    return jnp.asarray(q @ np.diag(eigenvalues) @ q.T), jnp.asarray(q)


def test_as_many_steps_as_dimensions_give_every_eigenvalue_and_its_weight(float64):
    eigenvalues = np.sort(np.random.default_rng(1).normal(size=12))
    matrix, q = symmetric(eigenvalues)
    start = jnp.asarray(np.random.default_rng(2).normal(size=12))
    found = spectrum(lambda v: matrix @ v, start, 50)
    np.testing.assert_allclose(found.values, eigenvalues, atol=1e-10)
    np.testing.assert_allclose(found.weights, (q.T @ start / jnp.linalg.norm(start)) ** 2, atol=1e-10)
    np.testing.assert_allclose(found.largest(3), eigenvalues[:-4:-1], atol=1e-10)
    np.testing.assert_allclose(found.smallest, eigenvalues[0], atol=1e-10)


def test_few_steps_find_the_outermost_and_integrate_polynomials_exactly(float64):
    eigenvalues = np.concatenate([np.linspace(-1, 1, 196), [-4.0, 3.0, 5.0, 10.0]])
    matrix, _ = symmetric(eigenvalues)
    start = {"a": jnp.ones(120), "b": jnp.ones((8, 10))}
    flat = jnp.ones(200) / np.sqrt(200)

    def product(v):
        image = matrix @ jnp.concatenate([v["a"], v["b"].ravel()])
        return {"a": image[:120], "b": image[120:].reshape(8, 10)}

    found = spectrum(product, start, 25)
    np.testing.assert_allclose(found.largest(3), [10, 5, 3], rtol=1e-6)
    np.testing.assert_allclose(found.smallest, -4, rtol=1e-6)
    for power in (0, 1, 2, 7):  # Gauss's quadrature with 25 nodes is exact up to a power of 49
        moment = flat @ np.linalg.matrix_power(np.asarray(matrix), power) @ flat
        np.testing.assert_allclose((found.weights * found.values**power).sum(), moment, rtol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_where_few_eigenvalues_differ_there_are_few(float64, dtype):
    """Lanczos's vectors come to an end there; nothing is divided by zero."""
    for eigenvalues in ([0.0] * 9, [2.0] * 9, [-3.0] * 4 + [-1.0] * 5, [0.0] * 7 + [1.0, 5.0]):
        matrix = symmetric(eigenvalues)[0].astype(dtype)
        found = spectrum(lambda v, matrix=matrix: matrix @ v, jnp.ones(9, dtype), 9)
        different = np.unique(eigenvalues)
        there = np.asarray(found.values)[-len(different) :]
        np.testing.assert_allclose(there, different, atol=1e-5)
        assert np.isnan(found.values[: -len(different)]).all()
        np.testing.assert_allclose(found.weights.sum(), 1, rtol=1e-5)
        assert np.isnan(found.largest(5)[len(different) :]).all()


def test_in_single_precision_no_eigenvalue_appears_twice():
    """As it does without vectors made orthogonal again."""
    eigenvalues = np.concatenate([np.geomspace(1e-3, 1, 95), [10, 20, 40, 80, 160.0]])
    matrix = symmetric(eigenvalues)[0].astype(jnp.float32)
    found = jax.jit(lambda v: spectrum(lambda v: matrix @ v, v, 30))(jnp.ones(100, jnp.float32))
    np.testing.assert_allclose(found.largest(5), eigenvalues[:-6:-1], rtol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 5, 30])
def test_rotations_give_the_eigenvalues_and_vectors_of_numpy(float64, size):
    generator = np.random.default_rng(size)
    dense = generator.normal(size=(size, size))
    diagonal, alike = np.diag(np.round(dense[0])), np.ones((size, size))
    for matrix in (dense + dense.T, diagonal, alike, 1e-200 * np.eye(size)):
        values, vectors = map(np.asarray, jax.jit(eigh)(jnp.asarray(matrix)))
        np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), atol=1e-12 * np.abs(matrix).sum())
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(size), atol=1e-12)
        np.testing.assert_allclose(vectors * values @ vectors.T, matrix, atol=1e-12 * np.abs(matrix).sum())


def test_batches_of_spectra_do_not_wait_for_each_other_on_several_devices():
    """As those of LAPACK in jaxlib 0.10 do, for ever."""
    devices = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))
    spec = jax.sharding.PartitionSpec("devices")
    matrices = jnp.asarray(np.random.default_rng(0).normal(size=(2 * devices.size, 6, 6)), jnp.float32)

    def values(matrix):
        return spectrum(lambda v: (matrix + matrix.T) @ v, jnp.ones(6, jnp.float32), 6).values

    program = jax.shard_map(jax.vmap(values), mesh=devices, in_specs=spec, out_specs=spec, check_vma=False)
    symmetric = np.asarray(matrices + matrices.transpose(0, 2, 1), np.float64)
    np.testing.assert_allclose(jax.jit(program)(matrices), np.linalg.eigvalsh(symmetric), atol=1e-4)
