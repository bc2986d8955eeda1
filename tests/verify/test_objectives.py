"""Correct gradients are accepted, wrong ones are not, and nothing of the caller's is changed."""

import gc
import json
import weakref
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule, models, verify
from bpresearch.functional import split

LABELS = optax.losses.softmax_cross_entropy_with_integer_labels
SQUARES = optax.losses.squared_error


def small(name):
    rngs = nnx.Rngs(1)
    match name:
        case "linear":
            return models.linear((6,), 3, rngs=rngs), (6,)
        case "mlp":
            return models.mlp((6,), 3, widths=(5, 4), activation=nnx.gelu, rngs=rngs), (6,)
        case "residual_mlp":
            return models.residual_mlp((6,), 3, width=5, rngs=rngs), (6,)
        case "cnn":
            options = {"channels": (3, 2), "kernel_sizes": (3, 3), "pooling": "max"}
            return models.cnn((9,), 3, **options, rngs=rngs), (9,)
        case "cnn of images":
            options = {"channels": (2,), "kernel_sizes": (3,), "pooling": "avg"}
            return models.cnn((5, 4, 2), 3, **options, rngs=rngs), (5, 4, 2)


def batch(shape, labels=True, examples=5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(examples, *shape)).astype(np.float32)
    y = rng.integers(0, 3, examples) if labels else rng.normal(size=(examples, 3)).astype(np.float32)
    return x, y


@pytest.mark.parametrize(
    "name", ["linear", "mlp", "residual_mlp", "cnn", pytest.param("cnn of images", marks=pytest.mark.full)]
)
def test_correct_models_are_accepted(name):
    model, shape = small(name)
    labels = name != "residual_mlp"
    loss = LABELS if labels else SQUARES
    report = verify.model(model, loss, *batch(shape, labels), dtype="float32")
    assert report.passed, str(report)
    assert not report.undecided
    worst = {oracle: max(r.error for r in report.rows if r.oracle == oracle) for oracle in verify.ORACLES}
    assert worst["behaviour"] <= 1e-13
    assert worst["autodiff"] <= 1e-13
    assert worst["rule"] <= 1e-13
    assert worst["finite differences"] <= 1e-7
    assert worst["rounding"] <= 4
    report = verify.model(model, loss, *batch(shape, labels), dtype="bfloat16", oracles=["rounding"])
    assert report.passed, str(report)


def test_every_leaf_and_layer_has_its_rows():
    model, shape = small("mlp")
    report = verify.model(model, LABELS, *batch(shape), dtype="float32")
    leaves = [f"layers.{i}.{name}" for i in (1, 3, 5) for name in ("bias", "kernel")] + ["input"]
    for oracle in ("autodiff", "finite differences", "rounding"):
        assert [row.path for row in report.rows if row.oracle == oracle] == leaves
    rules = [row.path for row in report.rows if row.oracle == "rule"]
    assert rules == [*(f"layers.{i}" for i in range(1, 6)), "loss", "model"]
    glue = {row.path: row.detail for row in report.rows if row.oracle == "rule" and row.detail}
    assert glue == {"model": "2 equations outside of layers that have a rule"}


def test_json_and_text():
    model, shape = small("linear")
    report = verify.model(model, LABELS, *batch(shape), dtype="float32", plant="bias_forgotten")
    read = json.loads(report.to_json())
    assert read["passed"] is False
    assert read["culprits"] == ["layers.1"]
    for row in read["rows"]:
        assert {"path", "oracle", "error", "tolerance", "passed", "shape"} <= set(row)
    text = str(report)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "culprits: layers.1" in text


def test_without_float64_nothing_is_left_behind():
    before = jax.config.jax_enable_x64
    model, shape = small("mlp")
    values = jax.tree.map(np.array, split(model)[1:])
    dtypes = {module.dtype for _, module in nnx.iter_modules(model) if hasattr(module, "dtype")}
    with jax.enable_x64(False):
        report = verify.model(model, LABELS, *batch(shape), dtype="bfloat16")
        assert not jax.config.jax_enable_x64
        assert jnp.ones(1).dtype == jnp.float32
    assert report.passed
    assert jax.config.jax_enable_x64 == before
    jax.tree.map(np.testing.assert_array_equal, values, split(model)[1:])
    assert jax.tree.leaves(split(model)[1])[0].dtype == jnp.float32
    assert dtypes == {module.dtype for _, module in nnx.iter_modules(model) if hasattr(module, "dtype")}


def test_layers_with_a_dtype_of_their_own_are_computed_in_float64():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(4, 3, dtype=jnp.bfloat16, rngs=rngs), nnx.tanh)
    x, y = batch((4,), labels=False)
    report = verify.model(model, SQUARES, x, y, dtype="float64", plant="scaled")
    assert report.culprits == ("layers.0",)
    assert verify.model(model, SQUARES, x, y, dtype="float64").passed


def test_gradients_that_are_zero():
    """Nothing passes a ReLU that never opens: every gradient before it is zero."""
    model = models.mlp((4,), 3, widths=(5,), rngs=nnx.Rngs(0))
    model.layers[1].bias[...] = jnp.full(5, -100.0)
    report = verify.model(model, LABELS, *batch((4,)), dtype="float32")
    assert report.passed and not report.undecided, str(report)
    assert {row.error for row in report.rows if row.path == "layers.1.kernel"} == {0.0}


def test_rounding_noise_around_a_zero_gradient_is_no_mistake():
    """Softmax does not see a number added to all logits, so the gradient with respect to it is zero."""

    @chainrule.rule(shift)
    class ShiftRule:
        def forward(layer, x):
            return shift(x), ()

        def backward(layer, residuals, y_bar):
            return {}, jnp.concatenate([y_bar, jnp.sum(y_bar, axis=-1, keepdims=True)], axis=-1)

    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), shift)
    report = verify.model(model, LABELS, *batch((4,), examples=50), dtype="float32")
    assert report.passed, str(report)


def shift(x):
    return x[..., :-1] + x[..., -1:]


def test_kinks_are_decided_by_the_derivatives_to_either_side():
    """At x = 0 the derivative of ReLU lies anywhere in [0, 1]; outside of it, it is wrong."""
    model = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.relu)
    model.layers[0].kernel[...] = jnp.eye(3)
    x = np.zeros((1, 3), np.float32)
    y = np.full((1, 3), -1.0, np.float32)

    def constant(slope):
        rule = SimpleNamespace(
            forward=lambda layer, x: (nnx.relu(x), ()),
            backward=lambda layer, kept, y_bar: ({}, slope * y_bar),
        )
        return lambda e, old: rule if e.name == "relu" else old

    def differences(slope):
        return verify.model(
            model, SQUARES, x, y, dtype="float64", oracles=["finite differences"], plant=constant(slope)
        )

    for slope in (0.0, 0.3, 1.0):
        report = differences(slope)
        assert report.passed, str(report)
        assert any(row.oracle == "kinks" and row.path == "layers.0.bias" for row in report.rows)
    assert differences(1.5).passed is False


def test_a_wrong_forward_is_blamed():
    def forward_wrong(e, rule):
        if e.layer != "layers.2":
            return rule
        return SimpleNamespace(
            forward=lambda layer, x: (1.1 * nnx.tanh(x), nnx.tanh(x)), backward=rule.backward
        )

    model = models.mlp((4,), 3, widths=(5,), activation=nnx.tanh, rngs=nnx.Rngs(0))
    report = verify.model(model, LABELS, *batch((4,)), dtype="float64", plant=forward_wrong)
    assert report.culprits == ("layers.2",)
    assert "wrong in the output" in str(report)


def test_several_inputs_and_integers():
    class Both(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x, index):
            return self.dense(x)[jnp.arange(x.shape[0]), index][:, None]

    x, _ = batch((3,))
    inputs, y = (x, np.array([0, 1, 2, 0, 1])), np.ones((5, 1), np.float32)
    model = Both(nnx.Rngs(0))
    report = verify.model(model, SQUARES, inputs, y, dtype="float32")
    assert report.passed, str(report)
    assert [row.path for row in report.rows if row.oracle == "autodiff"][-1] == "input.0"
    report = verify.model(model, SQUARES, inputs, y, dtype="float64", plant="weight_not_transposed")
    assert report.culprits == ("dense",)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "float16"}, "dtype float16"), ({"oracles": ["tarot"]}, "oracle 'tarot' is not one of")],
)
def test_bad_options(options, message):
    model, shape = small("linear")
    with pytest.raises(ValueError, match=message):
        verify.model(model, LABELS, *batch(shape), **options)


def test_a_primitive_without_a_rule():
    model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), lambda x: jax.lax.while_loop(always, twice, x))
    with pytest.raises(chainrule.NoRuleError, match=r"while at .*test_objectives.py"):
        verify.model(model, LABELS, *batch((4,)))


def always(x):
    return jnp.sum(x) < 0


def twice(x):
    return 2 * x


class Repeat(nnx.Module):
    """The same layer three times, in a loop."""

    def __init__(self, rngs):
        self.cell = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        def step(x, _):
            return jnp.sin(self.cell(x)), None

        return jax.lax.scan(step, x, length=3)[0]


def test_layer_called_inside_a_loop():
    """The layer is found wrong in the loop, and it alone; so is a primitive beside it, with its line."""
    model = nnx.Sequential(Repeat(nnx.Rngs(0)), nnx.tanh)
    x, _ = batch((4,))
    y = np.ones((5, 4), np.float32)
    assert verify.model(model, SQUARES, x, y, dtype="float32").passed
    plants = ["scaled@layers.0.cell", "scaled@sin"]
    check = verify.prepare(model, SQUARES, x, y, "float64", ["autodiff", "rule"], plants)
    of_layer, of_primitive = (check(model, x, y, fault=number) for number in range(2))
    assert of_layer.passed is False and of_layer.culprits == ("layers.0.cell",)
    assert of_primitive.passed is False
    (culprit,) = of_primitive.culprits
    assert culprit.startswith("sin at layers.0, ") and "test_objectives.py" in culprit


def test_a_rule_that_is_right_for_the_models_own_cotangents_only():
    """Cotangents of softmax cross-entropy sum to zero; a rule must be right for others too."""

    def sum_added(e, rule):
        if e.layer != "layers.3":
            return rule

        def backward(layer, kept, y_bar):
            grads, x_bar = rule.backward(layer, kept, y_bar)
            return grads, x_bar + jnp.sum(y_bar, axis=-1, keepdims=True)

        return SimpleNamespace(forward=rule.forward, backward=backward)

    model = models.mlp((4,), 3, widths=(5,), rngs=nnx.Rngs(0))
    report = verify.model(model, LABELS, *batch((4,)), dtype="float64", oracles=["rule"], plant=sum_added)
    assert report.culprits == ("layers.3",)
    (wrong,) = [row for row in report.rows if row.passed is False]
    assert "for another cotangent than this model's own" in wrong.detail


def test_batch_size_known_by_heart():
    def divides_by_five(e, rule):
        def backward(layer, kept, values_bar):
            grads, inputs_bar = rule.backward(layer, kept, values_bar)
            return grads, jax.tree.map(lambda bar: bar * values_bar.size / 5, inputs_bar)

        return SimpleNamespace(forward=rule.forward, backward=backward) if e.layer == "loss" else rule

    model, shape = small("linear")
    report = verify.model(model, LABELS, *batch(shape), dtype="float64", plant=divides_by_five)
    assert {row.path for row in report.rows if row.passed is False} == {"half the batch", "additive"}


@pytest.mark.parametrize("oracles", [["behaviour"], ["behaviour", "rule"]])
def test_a_fault_of_a_small_leaf_that_shows_in_half_a_batch_only(oracles):
    """The first weights hardly matter, and their gradient is off by 1e-5 if there are not five examples."""

    def five_by_heart(e, rule):
        def backward(layer, kept, y_bar):
            grads, x_bar = rule.backward(layer, kept, y_bar)
            wrong = 1.0 if len(y_bar) == 5 else 1 + 1e-5
            return jax.tree.map(lambda bar: bar * wrong, grads), x_bar

        return SimpleNamespace(forward=rule.forward, backward=backward) if e.layer == "layers.0" else rule

    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(3, 3, rngs=rngs), nnx.tanh, nnx.Linear(3, 3, rngs=rngs))
    model.layers[2].kernel[...] *= 1e-12
    options = {"dtype": "float64", "oracles": oracles}
    assert verify.model(model, LABELS, *batch((3,)), **options).passed
    report = verify.model(model, LABELS, *batch((3,)), **options, plant=five_by_heart)
    assert {row.path for row in report.rows if row.passed is False} == {"half the batch", "additive"}


def test_randomness_and_statistics():
    """Both engines draw the same mask, and state that the forward pass advances is no mistake."""

    class Noise(nnx.Module):
        def __init__(self, rngs):
            self.rngs = rngs.fork()
            self.count = nnx.BatchStat(jnp.zeros(()))

        def __call__(self, x):
            self.count[...] += 1
            return x * jax.random.normal(self.rngs(), x.shape, x.dtype)

    @chainrule.rule(Noise)
    class NoiseRule:
        def forward(layer, x):
            y = layer(jnp.ones_like(x))
            return x * y, y

        def backward(layer, factors, y_bar):
            return {}, y_bar * factors

    model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), Noise(nnx.Rngs(1)))
    report = verify.model(model, LABELS, *batch((4,)), dtype="float32")
    assert report.passed, str(report)
    report = verify.model(model, LABELS, *batch((4,)), dtype="float32", oracles=["rule"], plant="scaled")
    assert report.culprits == ("layers.0",)


def test_hints():
    model, shape = small("mlp")
    hints = {
        "activation_derivative_missing": (
            "layers.2: it equals y_bar: the layer's own derivative is missing",
        ),
        "bias_mean_not_sum": (
            "layers.1: every element is the right one divided by 5, the batch size: a sum where a mean "
            "belongs, or the reverse",
        ),
        "loss_not_averaged": (
            "loss: every element is the right one multiplied by 5, the batch size: a sum where a mean "
            "belongs, or the reverse",
        ),
        "scaled": ("layers.1: every element is 1.001 times the right one",),
    }
    x, y = batch(shape)
    check = verify.prepare(model, LABELS, x, y, "float64", ["rule"], list(hints))
    for number, (fault, said) in enumerate(hints.items()):
        assert check(model, x, y, fault=number).hints == said, fault


def test_a_verification_leaves_no_program_behind():
    """Programs take a processor's mappings; those of some ten models were all that a process may have."""
    model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.tanh)
    x, y = np.ones((2, 3)), np.zeros((2, 2))

    def loss(outputs, targets):
        return optax.losses.squared_error(outputs, targets)

    verify.model(model, loss, x, y, oracles=["autodiff", "finite differences"])
    programs = weakref.ref(loss)  # theirs hold it
    del loss
    gc.collect()
    assert programs() is None
