"""`grad`, `value_and_grad`, `vjp` and `jvp` of functions and models, as JAX and Flax have them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from bpresearch import chainrule

pytestmark = pytest.mark.usefixtures("float64")


def assert_same(found, expected, rtol=1e-13, atol=0.0):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (jnp.shape(ours), jnp.result_type(ours)) == (jnp.shape(right), jnp.result_type(right))
        if ours.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(ours, right, rtol=rtol, atol=atol, equal_nan=False)


@pytest.fixture
def x(normal):
    return normal(1, 4, 3)


def f(tree, x, power=2):
    """A function of a tree, an array, and an option."""
    return jnp.sum(jnp.sin(tree["a"]) * x**power) + tree["b"][0]


@pytest.fixture
def tree(normal):
    return {"a": normal(2, 4, 3), "b": (jnp.array(2.0), None)}


class TestFunctions:
    """Of arrays in any trees."""

    @pytest.mark.parametrize("argnums", [0, 1, (1,), (1, 0), (0, -1)])
    def test_argnums(self, argnums, tree, x):
        found = chainrule.value_and_grad(f, argnums=argnums)(tree, x)
        assert_same(found, jax.value_and_grad(f, argnums)(tree, x))
        assert_same(chainrule.grad(f, argnums=argnums)(tree, x), found[1])

    def test_options_by_keyword_and_default(self, tree, x):
        assert_same(chainrule.grad(f, argnums=1)(tree, x, power=3), jax.grad(f, 1)(tree, x, power=3))
        assert_same(chainrule.grad(f)(tree, x=x), jax.grad(f)(tree, x=x))

    def test_a_second_result_is_handed_on(self, x):
        def with_more(x):
            return jnp.sum(x**2), {"sign": x > 0, "none": None, "y": jnp.sin(x)}

        found = chainrule.value_and_grad(with_more, has_aux=True)(x)
        assert_same(found, jax.value_and_grad(with_more, has_aux=True)(x))
        assert_same(chainrule.grad(with_more, has_aux=True)(x), (found[1], found[0][1]))

    def test_numbers_of_python_are_arguments(self):
        found = chainrule.grad(lambda a, b: a**2 * b, argnums=(0, 1))(3.0, 2.0)
        assert_same(found, (jnp.array(12.0), jnp.array(9.0)))

    def test_what_is_not_differentiated_is_known(self, x):
        """It may be no array at all, and may decide what is computed: as for `jax.grad`."""

        def f(x, name, flag, scale, *, steps):
            for _ in range(steps):
                x = getattr(jnp, name)(x) if flag and scale > 1 else x
            return jnp.sum(x * scale)

        others = "sin", True, jnp.array(2.0)
        found = chainrule.grad(f)(x, *others, steps=2)
        np.testing.assert_allclose(found, jax.grad(f)(x, *others, steps=2), rtol=1e-14)
        np.testing.assert_array_equal(chainrule.grad(f)(x, "sin", False, 3.0, steps=2), 3.0)

    def test_what_nothing_depends_on_has_gradient_zero(self, x):
        assert_same(chainrule.grad(lambda x, y: jnp.sum(x), argnums=1)(x, x), jnp.zeros((4, 3)))
        assert_same(chainrule.grad(lambda x: 1.0)(x), jnp.zeros((4, 3)))

    def test_each_dtype_has_its_own(self):
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            x = jnp.ones(3, dtype)
            assert chainrule.grad(lambda x: jnp.sum(jnp.exp(x).astype(jnp.float32)))(x).dtype == dtype

    def test_names_and_documentation_stay(self):
        assert chainrule.grad(f).__name__ == "f"
        assert chainrule.value_and_grad(f).__doc__ == f.__doc__


class TestErrors:
    """What has no gradient is refused, and the message says why."""

    def test_more_than_one_number(self, x):
        with pytest.raises(TypeError, match=r"one real number.* not shape \(4, 3\)"):
            chainrule.grad(lambda x: x)(x)

    def test_a_complex_value(self, x):
        with pytest.raises(TypeError, match="complex128"):
            chainrule.grad(lambda x: jnp.sum(x) * 1j)(x)

    def test_an_integer_argument(self):
        with pytest.raises(TypeError, match=r"type int64 is not defined"):
            chainrule.grad(lambda i: i * 2.0)(jnp.array(1))

    def test_an_operation_without_a_rule_is_named_with_its_line(self, x):
        def loss(x):
            y = jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
            return jnp.sum(y)

        with pytest.raises(
            chainrule.NoPrimitiveRuleError, match=r"pure_callback at .*test_transforms\.py:\d+"
        ):
            chainrule.grad(loss)(x)

    def test_cotangents_of_another_shape(self, x):
        _, pullback = chainrule.vjp(jnp.sin, x)
        with pytest.raises(ValueError, match=r"shape \(4, 3\) has shape \(3,\)"):
            pullback(jnp.ones(3))

    @pytest.mark.parametrize("argnums", [2, -3, (0, 2)])
    def test_arguments_numbered_beyond_the_last(self, argnums, x):
        with pytest.raises(ValueError, match=r"argnums.*2 positional arguments"):
            chainrule.grad(lambda a, b: jnp.sum(a * b), argnums=argnums)(x, x)


class TestPullbacksAndTangents:
    """`vjp` and `jvp`."""

    def test_trees_with_integers(self, x):
        def several(tree, index):
            return {"y": tree["a"] * 2, "row": tree["a"][index], "n": index + 1}

        args = {"a": jnp.sin(x)}, jnp.array([0, 2])
        y, pullback = chainrule.vjp(several, *args)
        right, expected = jax.vjp(several, *args)
        assert_same(y, right)
        nothing = np.zeros((2,), jax.dtypes.float0)
        bars = {"y": x, "row": x[:2], "n": nothing}
        assert_same(pullback(bars), expected(bars))
        dots = {"a": x}, nothing
        assert_same(chainrule.jvp(several, args, dots), jax.jvp(several, args, dots))

    def test_the_pullback_may_be_used_often(self, x):
        _, pullback = chainrule.vjp(lambda x: x @ x.T, x)
        bars = jnp.stack([jnp.eye(4), jnp.ones((4, 4))])
        (both,) = jax.vmap(pullback)(bars)
        for bar, found in zip(bars, both, strict=True):
            assert_same(found, pullback(bar)[0])

    def test_a_second_result_is_handed_on(self, x):
        def with_more(x):
            return jnp.sin(x), x > 0

        y, pullback, more = chainrule.vjp(with_more, x, has_aux=True)
        assert_same((y, more), (jnp.sin(x), x > 0))
        assert_same(pullback(x), (jnp.cos(x) * x,))
        assert_same(chainrule.jvp(with_more, (x,), (x,), has_aux=True), (y, jnp.cos(x) * x, more))

    def test_complex_numbers_follow_jax(self, x):
        z = x + 1j * x[::-1]
        y, pullback = chainrule.vjp(lambda z: jnp.exp(z) * jnp.abs(z), z)
        right, expected = jax.vjp(lambda z: jnp.exp(z) * jnp.abs(z), z)
        assert_same((y, pullback(y)), (right, expected(right)), rtol=1e-12)


class Network(nnx.Module):
    """A model with parameters, statistics, a random stream, and its own idea of inputs and outputs."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.scale = nnx.Param(jnp.ones((1, 4)))
        self.unused = nnx.Param(jnp.ones(2))

    def __call__(self, inputs, *, train=True):
        h = self.norm(self.first(inputs["x"]), use_running_average=not train)
        h = self.dropout(jnp.tanh(h), deterministic=not train) * self.scale[...]
        return {"h": h, "sum": jnp.sum(h, -1)}


def loss_of_network(model, batch, train=True):
    outputs = model(batch, train=train)
    return jnp.mean((outputs["sum"] - 1) ** 2), outputs["h"]


class TestModels:
    """As `nnx.value_and_grad` takes them."""

    @pytest.fixture
    def model(self, random_model):
        model = random_model(lambda: Network(nnx.Rngs(0)))
        model.norm.var[...] = jnp.abs(model.norm.var[...]) + 1
        return model

    def test_value_gradient_and_what_is_written_back(self, model, x):
        """Batch statistics and the dropout's counter are those that Flax leaves."""
        ours, theirs = nnx.clone(model), nnx.clone(model)
        found = chainrule.value_and_grad(loss_of_network, has_aux=True)(ours, {"x": x})
        expected = nnx.value_and_grad(loss_of_network, has_aux=True)(theirs, {"x": x})
        assert_same(found, expected, rtol=1e-11, atol=1e-16)
        for variable in ("mean", "var"):
            after = getattr(ours.norm, variable)[...]
            assert_same(after, getattr(theirs.norm, variable)[...])
            assert np.any(after != getattr(model.norm, variable)[...])
        assert ours.dropout.rngs.count[...] == theirs.dropout.rngs.count[...] == 1

    def test_models_among_other_arguments(self, model, x, random_model):
        """Two models and an array, all differentiated; one model twice is one model."""
        other = random_model(lambda: nnx.Linear(4, 2, rngs=nnx.Rngs(0)), seed=5)

        def loss(x, pair):
            first, (second,) = pair
            return jnp.sum(second(first({"x": x}, train=False)["h"]) ** 2)

        found = chainrule.grad(loss, argnums=(0, 1))(x, (model, [other]))
        x_bar, (first, (second,)) = found
        expected = jax.grad(lambda x: loss(x, (model, [other])))(x)
        assert_same(x_bar, expected, rtol=1e-12)
        right = nnx.grad(lambda m: loss(x, (m, [other])))(model)
        assert_same(first, right, rtol=1e-12)
        assert_same(second, nnx.grad(lambda m: loss(x, (model, [m])))(other), rtol=1e-12)

    def test_a_model_that_is_not_differentiated(self, model, x):
        """Its variables are written back all the same."""

        def loss(x, model):
            return loss_of_network(model, {"x": x})[0]

        x_bar = chainrule.grad(loss)(x, model)
        assert x_bar.shape == x.shape and model.dropout.rngs.count[...] == 1

    def test_the_gradient_goes_into_an_optimizer(self, model, x):
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
        before = model.scale[...]
        (_, _), grads = chainrule.value_and_grad(loss_of_network, has_aux=True)(model, {"x": x})
        optimizer.update(model, grads)
        assert_same(model.scale[...], before - 0.1 * grads["scale"][...], rtol=1e-14)

    def test_under_the_jit_of_flax(self, model, x):
        """Several steps of training in one program, statistics and counters going along."""

        @nnx.jit
        def steps(model, x):
            for _ in range(2):
                grads, _ = chainrule.grad(loss_of_network, has_aux=True)(model, {"x": x})
                params = nnx.state(model, nnx.Param)
                nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
            return loss_of_network(model, {"x": x}, train=False)[0]

        ours = nnx.clone(model)
        value = steps(ours, x)
        assert ours.dropout.rngs.count[...] == 2
        assert np.isfinite(value)


class TestCompositions:
    """With the transformations of JAX, and with themselves."""

    def loss(self, w, x):
        return jnp.mean(jnp.tanh(x @ w) ** 2)

    @pytest.fixture
    def w(self, normal):
        return normal(3, 3)

    def test_with_jit_and_vmap(self, w, x):
        """A gradient for each row, in one program."""
        found = jax.jit(jax.vmap(chainrule.value_and_grad(self.loss), (None, 0)))(w, x)
        assert_same(found, jax.vmap(jax.value_and_grad(self.loss), (None, 0))(w, x), rtol=1e-12)
        inside = chainrule.grad(lambda w: jnp.sum(jax.vmap(lambda x: self.loss(w, x))(x)))(w)
        assert_same(inside, jnp.sum(found[1], 0))

    def test_with_scan(self, w, x):
        """Gradient descent in a loop; and the gradient of where it leads."""

        def trained(engine, w):
            def step(w, _):
                loss, w_bar = engine.value_and_grad(self.loss)(w, x)
                return w - 0.5 * w_bar, loss

            w, losses = lax.scan(step, w, length=3)
            return jnp.sum(w**2) + losses[-1]

        found = jax.jit(chainrule.value_and_grad(lambda w: trained(chainrule, w)))(w)
        expected = jax.jit(jax.value_and_grad(lambda w: trained(jax, w)))(w)
        assert_same(found, expected, rtol=1e-12)

    def test_with_shard_map(self, w, x):
        mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))

        def on_device(w, x):
            loss, w_bar = chainrule.value_and_grad(self.loss)(w, x)
            return lax.pmean(loss, "i"), lax.pmean(w_bar, "i")

        specs = {"in_specs": (P(), P("i")), "out_specs": P()}
        found = jax.shard_map(on_device, mesh=mesh, check_vma=False, **specs)(w, x)
        assert_same(found, jax.value_and_grad(self.loss)(w, x))

    def test_second_and_third_derivatives(self):
        """Of themselves; and each by JAX of ours, or ours of JAX's."""

        def wave(x):
            return jnp.sin(x) * x

        x = jnp.array(0.7)
        third = chainrule.grad(chainrule.grad(chainrule.grad(wave)))(x)
        assert_same(third, jax.grad(jax.grad(jax.grad(wave)))(x))
        second = jax.grad(jax.grad(wave))(x)
        assert_same(jax.grad(chainrule.grad(wave))(x), second)
        assert_same(chainrule.grad(jax.grad(wave))(x), second)
        assert_same(chainrule.jvp(chainrule.grad(wave), (x,), (jnp.array(1.0),))[1], second)
        assert_same(chainrule.grad(lambda x: chainrule.jvp(wave, (x,), (1.0,))[1])(x), second)

    def test_a_gradient_inside_a_model(self, random_model, normal):
        """A network's own derivative with respect to its input is in the loss, by JAX or by rules."""
        model = random_model(lambda: nnx.Sequential(nnx.Linear(1, 4, rngs=nnx.Rngs(0)), nnx.tanh, jnp.sum))
        x = normal(1, 5, 1)

        def loss(engine):
            def of_model(model, x):
                slopes = jax.vmap(engine.grad(lambda x: model(x)))(x)
                return jnp.mean((slopes + jnp.sin(x)) ** 2)

            return of_model

        graphdef, state = nnx.split(model)

        @jax.jit
        def all_ways(state):
            expected = nnx.grad(loss(jax))(nnx.merge(graphdef, state), x)
            ours = [
                chainrule.grad(loss(engine))(nnx.merge(graphdef, state), x) for engine in (jax, chainrule)
            ]
            return expected, ours

        expected, ours = all_ways(state)
        for found in ours:
            assert_same(found, expected, rtol=1e-12, atol=1e-15)
