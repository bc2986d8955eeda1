"""`shard_map` on two devices: what each device does by rules, and what goes between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from bpresearch import chainrule
from bpresearch.chainrule.notes import collecting, note

CHECKED = pytest.mark.parametrize("check_vma", [True, False])


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))


@pytest.fixture
def x():
    return jnp.linspace(-1.0, 1.5, 12).reshape(4, 3)


@pytest.fixture
def w():
    return jnp.array([0.3, -1.2, 0.7])


def row(w):
    return jnp.expand_dims(w, 0)


@CHECKED
def test_collectives_between_devices(mesh, x, w, check_vma, assert_program_right):
    """Some values are the same on all devices, some not, among operands and results."""

    def on_device(x, w):
        y = jnp.sin(x * row(w))
        all_of_y = lax.all_gather(y, "i") * jnp.array([1.0, 3.0]).reshape(2, 1, 1)
        z = jnp.sum(all_of_y, 0) * lax.ppermute(y, "i", [(0, 1), (1, 0)])
        return lax.psum(jnp.sum(z**2), "i"), jnp.tanh(y), lax.pmean(z, "i"), lax.axis_index("i").reshape(1)

    specs = {"in_specs": (P("i"), P()), "out_specs": (P(), P("i"), P(), P("i"))}
    assert_program_right(jax.shard_map(on_device, mesh=mesh, check_vma=check_vma, **specs), x, w)


@CHECKED
def test_programs_inside(mesh, x, w, check_vma, assert_program_right):
    """`jit`, `scan` and `cond`, with a sum over devices and the weights in the loop.

    (They are not in a branch that only some devices take: the cotangent's sum over all devices would be
    there, too, and wait for ever, as in JAX.)
    """

    def on_device(x, w):
        @jax.jit
        def mixed(c, t):
            return jnp.tanh(c * w + lax.psum(jnp.sum(t), "i")), jnp.sum(c * t)

        def step(c, t):
            c, y = mixed(c, t)
            return lax.cond(jnp.sum(t) > 0, lambda c: c**2, lambda c: jnp.sin(c) * jnp.cos(c), c), y

        c, ys = lax.scan(step, x[0], x)
        return row(c), ys

    specs = {"in_specs": (P("i"), P()), "out_specs": (P("i"), P("i"))}
    assert_program_right(jax.shard_map(on_device, mesh=mesh, check_vma=check_vma, **specs), x, w)


@CHECKED
@pytest.mark.parametrize("out_spec", [P(), P("i")])
def test_a_value_that_all_devices_hold(mesh, w, check_vma, out_spec, assert_program_right):
    """What is the same everywhere counts once if it is returned once, and twice if it is returned twice."""
    f = jax.shard_map(
        lambda w: 2 * jnp.sin(w), mesh=mesh, in_specs=P(), out_specs=out_spec, check_vma=check_vma
    )
    assert_program_right(f, w)


@CHECKED
def test_random_keys_inside(mesh, x, check_vma, assert_program_right):
    def on_device(x, key):
        def step(key, x):
            key, own = jax.random.split(key)
            return key, jnp.where(jax.random.bernoulli(own, 0.5, x.shape), jnp.sin(x), 0.0)

        return lax.scan(step, jax.random.fold_in(key, lax.axis_index("i")), x)[1]

    f = jax.shard_map(on_device, mesh=mesh, in_specs=(P("i"), P()), out_specs=P("i"), check_vma=check_vma)
    assert_program_right(lambda x: f(x, jax.random.key(0)), x)


@pytest.mark.parametrize("check_vma", [True, False])
def test_the_gradient_inside(mesh, x, w, check_vma):
    """Data parallel training: each device differentiates its part; JAX sums over devices where it checks."""

    def gradients(engine):
        def on_device(x, w):
            loss, w_bar = engine.value_and_grad(lambda w: jnp.sum(jnp.sin(x * row(w)) ** 2))(w)
            return lax.psum(loss, "i"), w_bar if check_vma else lax.psum(w_bar, "i")

        f = jax.shard_map(on_device, mesh=mesh, in_specs=(P("i"), P()), out_specs=P(), check_vma=check_vma)
        return jax.jit(f)(x, w)

    loss, w_bar = gradients(chainrule)
    expected_loss, expected = jax.value_and_grad(lambda w: jnp.sum(jnp.sin(x * row(w)) ** 2))(w)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-14)
    np.testing.assert_allclose(w_bar, expected, rtol=1e-13)
    np.testing.assert_allclose(w_bar, gradients(jax)[1], rtol=1e-14)


@CHECKED
def test_a_model_on_each_device(mesh, x, check_vma, random_model):
    model = random_model(lambda: nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.relu))
    graphdef, state = nnx.split(model)

    def on_device(state, x):
        return lax.pmean(jnp.mean(nnx.merge(graphdef, state)(x) ** 2), "i")

    f = jax.shard_map(on_device, mesh=mesh, in_specs=(P(), P("i")), out_specs=P(), check_vma=check_vma)
    found = jax.jit(chainrule.grad(f))(state, x)
    expected = jax.jit(jax.grad(lambda state: jnp.mean(nnx.merge(graphdef, state)(x) ** 2)))(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), found, expected)


def test_two_axes_and_one_inside_the_other(x, w):
    """One `shard_map` inside another one has an axis of its own."""
    mesh = jax.make_mesh((2, 1), ("i", "j"), axis_types=(AxisType.Auto,) * 2)

    def inner(x, w):
        return jnp.sin(x) * row(w), lax.psum(jnp.sum(x**2), "j")

    def outer(x, w):
        specs = {"in_specs": (P(None, "j"), P("j")), "out_specs": (P(None, "j"), P())}
        y, total = jax.shard_map(inner, axis_names={"j"}, **specs)(x, w)
        return jnp.tanh(y), lax.psum(total, "i")

    def loss(x, w):
        specs = {"in_specs": (P("i"), P()), "out_specs": (P("i"), P())}
        y, total = jax.shard_map(outer, mesh=mesh, axis_names={"i"}, **specs)(x, w)
        return jnp.sum(y) * total

    def on_one_device(x, w):
        return jnp.sum(jnp.tanh(jnp.sin(x) * row(w))) * jnp.sum(x**2)

    found = jax.jit(chainrule.grad(loss, argnums=(0, 1)))(x, w)
    expected = jax.grad(on_one_device, (0, 1))(x, w)
    for ours, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-13)


def test_a_mesh_whose_axes_are_in_the_types(x, w):
    """Under explicit sharding, cotangents lie where their values lie."""
    mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        spread, copied = jax.NamedSharding(mesh, P("i")), jax.NamedSharding(mesh, P())
        args = jax.device_put(x, spread), jax.device_put(w, copied)
        f = jax.shard_map(lambda x, w: jnp.sin(x) * row(w), in_specs=(P("i"), P()), out_specs=P("i"))

        def loss(x, w):
            return jnp.sum(f(x, w) ** 2)

        x_bar, w_bar = jax.jit(chainrule.grad(loss, argnums=(0, 1)))(*args)
        assert jax.typeof(x_bar).sharding.spec == P("i", None)
    np.testing.assert_allclose(w_bar, np.sum(2 * np.sin(x) ** 2 * row(w), 0), rtol=1e-13)


@CHECKED
def test_second_order(mesh, w, check_vma):
    f = jax.shard_map(jnp.sin, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=check_vma)
    x = jnp.concatenate([w, w])
    bend = chainrule.grad(lambda x: jnp.sum(chainrule.grad(lambda x: jnp.sum(f(x)))(x)))(x)
    np.testing.assert_allclose(bend, -np.sin(x), rtol=1e-13)


@CHECKED
def test_what_a_watch_notes_on_the_devices(mesh, x, check_vma):
    """The worst of all devices, out of a loop as well."""

    def watch(e, bars, answer):
        if e.name == "sin":
            note("sin", jnp.max(jnp.abs(answer[0])), answer[0])
        return answer

    def on_device(x):
        return lax.scan(lambda c, x: (c, jnp.sin(x)), 0.0, x)[1]

    f = jax.shard_map(on_device, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=check_vma)

    def noted(x):
        with chainrule.watching(watch), collecting() as notes:
            chainrule.grad(lambda x: jnp.sum(f(x)))(x)
        return notes["sin"]

    error, x_bar = jax.jit(noted)(x)
    sizes = np.max(np.abs(np.cos(x)), 1)
    np.testing.assert_allclose(error, np.max(sizes), rtol=1e-14)
    np.testing.assert_allclose(x_bar, np.cos(x)[np.argmax(sizes)], rtol=1e-14)
