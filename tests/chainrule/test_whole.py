"""Layers whole: the call of a layer that has a rule is one equation; where the rule does not do, it opens."""

import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bpresearch import chainrule
from bpresearch.chainrule.program import of_arrays, take_apart

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def x(normal):
    return normal(1, 4, 3)


@pytest.fixture
def whole(equations):
    """`whole(f, *args)`: name and path of each layer that is one equation in the program of `f(*args)`."""

    def whole(f, *args):
        parts = take_apart((args, {}))
        flat, structure = jax.tree.flatten(parts.leaves)
        function = of_arrays(f, parts)
        program = chainrule.trace(lambda *flat: function(structure.unflatten(flat)), *flat)
        calls = [e.params["call"] for e in equations(program.jaxpr) if e.primitive.name == "layer"]
        return [(call.name, call.path) for call in calls]

    return whole


def assert_right(loss, model, *args, rtol=1e-11):
    """Gradients and variables as Flax has them; returns the gradients."""
    graphdef, state = nnx.split(model)

    def by(engine):
        model = nnx.merge(graphdef, state, copy=True)
        return engine.grad(loss)(model, *args), nnx.state(model, nnx.Not(nnx.Param))

    compiled = jax.jit(
        lambda: (by(nnx), by(chainrule)), compiler_options={"xla_backend_optimization_level": 0}
    )
    expected, found = compiled()
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if not jax.dtypes.issubdtype(right.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(ours, right, rtol=rtol, atol=1e-14)
    return found[0]


def squares(model, *args):
    return jnp.sum(model(*args) ** 2)


class Network(nnx.Module):
    """Layers by name, in lists and dicts, functions as attributes, and one layer used twice."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 3, rngs=rngs)
        self.activation = partial(nnx.leaky_relu, negative_slope=0.3)
        self.blocks = nnx.List([nnx.Sequential(nnx.Linear(3, 3, rngs=rngs), nnx.tanh) for _ in range(2)])
        self.heads = nnx.Dict(a=nnx.LayerNorm(3, rngs=rngs))

    def __call__(self, x):
        x = self.activation(self.first(x))
        for block in self.blocks:
            x = block(x)
        return self.first(nnx.relu(self.heads["a"](x)))


def test_each_call_is_one_equation_with_its_path(whole, random_model, x):
    """A function that is called by its own name, no attribute, is traced like any other code."""
    model = random_model(lambda: Network(nnx.Rngs(0)))
    assert whole(squares, model, x) == [
        ("Linear", "first"),
        ("leaky_relu", "activation"),
        ("Linear", "blocks.0.layers.0"),
        ("tanh", "blocks.0.layers.1"),
        ("Linear", "blocks.1.layers.0"),
        ("tanh", "blocks.1.layers.1"),
        ("LayerNorm", "heads.a"),
        ("Linear", "first"),
    ]
    assert_right(squares, model, x)


def test_without_us_no_call_is_an_equation_of_its_own(random_model, x):
    """The model itself is as it was: nothing is left of its paths and its wrapped functions."""
    model = random_model(lambda: Network(nnx.Rngs(0)))
    before = str(nnx.graphdef(model))
    chainrule.grad(squares)(model, x)
    assert str(nnx.graphdef(model)) == before
    assert "layer[" not in str(jax.make_jaxpr(lambda x: model(x))(x))


def test_equations_know_the_layer_they_are_in(random_model, x):
    model, seen = random_model(lambda: Network(nnx.Rngs(0))), set()

    class Outer(nnx.Module):
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, x):
            return jnp.sin(self.inner(x))

    class Root(nnx.Module):
        def __init__(self):
            self.outer = Outer(model)

        def __call__(self, x):
            return jnp.cos(self.outer(x))

    def watch(e, bars, answer):
        seen.add((e.name, e.layer))
        assert "test_whole.py" in e.line or "/flax/" in e.line
        return answer

    with chainrule.watching(watch):
        chainrule.grad(squares)(Root(), x)
    assert {
        ("cos", ""),
        ("sin", "outer"),
        ("Linear", "outer.inner.first"),
        ("LayerNorm", "outer.inner.heads.a"),
    } <= seen


class Doubled(nnx.Linear):
    """A linear layer that computes something else."""

    def __call__(self, x):
        return 2 * super().__call__(x)


class Named(nnx.Linear):
    """A linear layer with another name."""


def test_a_subclass_that_overrides_the_call_is_opened(whole, random_model, x):
    for kind, calls in ((Doubled, []), (Named, [("Named", "layers.0")])):
        model = random_model(lambda kind=kind: nnx.Sequential(kind(3, 3, rngs=nnx.Rngs(0)), jnp.sin))
        assert whole(squares, model, x) == calls
        assert_right(squares, model, x)


class Normalised(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.slope = nnx.BatchNorm(3, rngs=rngs), nnx.Param(jnp.array(0.3))

    def __call__(self, x):
        return self.norm(x)


class TestOpened:
    """More depends on the layer than its rule knows of: its own code is walked, and the gradient is right."""

    @pytest.fixture
    def model(self, random_model):
        return random_model(lambda: Normalised(nnx.Rngs(0)))

    def test_an_option_with_a_derivative(self, whole, model, x):
        """A slope that is a parameter, given to a function: one equation, opened to differentiate it."""

        class Leaky(nnx.Module):
            def __init__(self):
                self.slope, self.activation = nnx.Param(jnp.array(0.3)), nnx.leaky_relu

            def __call__(self, x):
                return self.activation(x, negative_slope=self.slope[...])

        assert whole(squares, Leaky(), x) == [("leaky_relu", "activation")]
        grads = assert_right(squares, Leaky(), x)
        assert grads["slope"][...] != 0

    def test_statistics_that_the_loss_reads(self, model, x):
        """A penalty on the new running mean goes back through the layer's own code."""

        def loss(model, x):
            return squares(model, jnp.sin(x)) + jnp.sum(model.norm.mean[...] ** 3 * model.slope[...])

        assert_right(loss, model, x)
        found = jax.jit(lambda x: chainrule.grad(lambda x, model: loss(model, x))(x, nnx.clone(model)))(x)
        expected = jax.jit(jax.grad(lambda x: loss(nnx.clone(model), x)))(x)
        np.testing.assert_allclose(found, expected, rtol=1e-10)

    def test_statistics_that_a_later_call_reads(self, model, x):
        """Two calls in training, then one with the running averages: derivatives go through the variables."""

        def loss(x, model):
            y = jnp.sum(jnp.sin(model(x) + model(x**2)))
            return y + jnp.sum(model.norm(x, use_running_average=True) ** 2)

        model.norm.var[...] = jnp.abs(model.norm.var[...])
        found = jax.jit(lambda x: chainrule.grad(loss)(x, nnx.clone(model)))(x)
        expected = jax.jit(jax.grad(lambda x: loss(x, nnx.clone(model))))(x)
        np.testing.assert_allclose(found, expected, rtol=1e-10)

    def test_options_that_are_modules(self, whole, x):
        """A random stream that is handed in with the call."""

        class Dropping(nnx.Module):
            def __init__(self):
                self.dropout = nnx.Dropout(0.5)

            def __call__(self, x, rngs):
                return self.dropout(x, rngs=rngs)

        def loss(x, model, rngs):
            return squares(model, x, rngs)

        found = chainrule.grad(loss)(x, Dropping(), nnx.Rngs(1))
        expected = jax.grad(lambda x: loss(x, Dropping(), nnx.Rngs(1)))(x)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert whole(loss, x, Dropping(), nnx.Rngs(1)) == []

    def test_a_rule_that_does_not_apply(self, whole, random_model, x):
        """The rule says so; the layer's own code is traced."""

        class Scale(nnx.Module):
            def __init__(self):
                self.scale = nnx.Param(jnp.ones((1, 3)))

            def __call__(self, x):
                return x * self.scale[...]

        @chainrule.rule(Scale)
        class ScaleRule:
            def forward(layer, x):
                if x.ndim == 2:
                    raise chainrule.DoesNotApply("matrices")
                return layer(x), ()

            def backward(layer, kept, y_bar):
                raise AssertionError("the rule was asked after all")

        model = random_model(lambda: nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), Scale()))
        assert whole(squares, model, x) == [("Linear", "layers.0")]
        assert_right(squares, model, x)


def test_layers_under_vmap_and_in_loops(whole, random_model, x):
    """Each is one equation in the body; under `vmap` it is mapped as one."""

    @nnx.split_rngs(splits=2)
    @nnx.vmap
    def build(rngs):
        return nnx.Linear(3, 3, rngs=rngs)

    class Stacked(nnx.Module):
        def __init__(self, rngs):
            self.stack, self.one = build(rngs), nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x):
            x = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None), out_axes=1)(self.stack, x)
            x = jax.vmap(self.one)(jnp.tanh(x))
            loop = nnx.scan(lambda layer, x: jnp.sin(layer(x)), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            return loop(self.stack, nnx.remat(lambda one, x: one(x))(self.one, x))

    model = random_model(lambda: Stacked(nnx.Rngs(0)))
    assert whole(squares, model, x) == [
        ("Linear", "stack"), ("Linear", "one"), ("Linear", "one"), ("Linear", "stack"),
    ]  # fmt: skip
    assert_right(squares, model, x)


class TestWrongRules:
    """A rule by a user that returns nonsense: the message names the layer."""

    @pytest.mark.parametrize("fault", ["input", "parameter", "name"])
    def test_of_a_layer(self, fault, random_model, x):
        class Scale(nnx.Module):
            def __init__(self):
                self.scale = nnx.Param(jnp.ones((1, 3)))

            def __call__(self, x):
                return x * self.scale[...]

        @chainrule.rule(Scale)
        class ScaleRule:
            def forward(layer, x):
                return layer(x), x

            def backward(layer, x, y_bar):
                scale_bar = jnp.sum(x * y_bar, 0, keepdims=fault != "parameter")
                name = "scales" if fault == "name" else "scale"
                x_bar = y_bar * layer.scale[...]
                return {name: scale_bar}, jnp.sum(x_bar) if fault == "input" else x_bar

        class Root(nnx.Module):
            def __init__(self):
                self.inner = Scale()

            def __call__(self, x):
                return self.inner(jnp.sin(x) * self.inner.scale[...])

        with pytest.raises(ValueError) as raised:
            chainrule.grad(squares)(Root(), x)
        assert "inner" in str(raised.value) and "test_whole.py" in str(raised.value)

    def test_of_a_primitive(self, x):
        def wrong(e, rule):
            if e.name != "sin":
                return rule

            class Wrong:
                def backward(e, y_bar):
                    return jnp.sum(y_bar)

            return Wrong

        with (
            chainrule.replacing(wrong),
            pytest.raises(ValueError, match=r"rule of sin at .*test_whole\.py:\d+.*\(4, 3\)"),
        ):
            chainrule.grad(lambda x: jnp.sum(jnp.sin(x)))(x)


class TestPatchedClasses:
    """While a model is traced, the types of its layers catch their calls; nobody else sees that."""

    def test_they_are_restored(self, random_model, x):
        model = random_model(lambda: Network(nnx.Rngs(0)))
        types = {type(module) for _, module in nnx.iter_modules(model)} | {nnx.Linear, nnx.Conv}
        before = {type_: type_.__call__ for type_ in types}
        chainrule.grad(squares)(model, x)
        with pytest.raises(ZeroDivisionError):
            chainrule.grad(lambda model, x: squares(model, x) / (1 // 0))(model, x)
        with pytest.raises(TypeError):
            chainrule.grad(lambda model, x: model(x))(model, x)
        assert {type_: type_.__call__ for type_ in types} == before

    def test_another_thread_calls_layers_as_they_are(self, random_model, x):
        """Here a thread calls the same layer while this one traces it."""
        layer, inside, jaxprs = random_model(lambda: nnx.Linear(3, 3, rngs=nnx.Rngs(0))), [], []

        def elsewhere():
            with jax.enable_x64(True):
                jaxprs.append(str(jax.make_jaxpr(lambda x: layer(x))(x)))

        def loss(model, x):
            thread = threading.Thread(target=elsewhere)
            thread.start(), thread.join()
            inside.append(hasattr(nnx.Linear.__call__, "plain_call"))
            return squares(model, x)

        chainrule.grad(loss)(layer, x)
        assert inside == [True] and "layer[" not in jaxprs[0] and "dot_general" in jaxprs[0]

    def test_two_threads_trace_at_once(self, whole, random_model, x):
        """Each waits in the middle of its trace for the other; both find their layers."""
        models = [random_model(lambda: Network(nnx.Rngs(0)), seed=seed) for seed in (0, 1)]
        alone = [whole(squares, model, x) for model in models]
        meeting, found = threading.Barrier(2, timeout=60), {}

        def meet(model, x):
            y = model.first(x)
            meeting.wait()
            value = squares(model, y)
            meeting.wait()
            return value

        def run(number):
            with jax.enable_x64(True):
                found[number] = whole(meet, models[number], x)

        threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {number: [("Linear", "first"), *alone[number]] for number in (0, 1)}
        assert not hasattr(nnx.Linear.__call__, "plain_call") and not hasattr(Network.__call__, "plain_call")
