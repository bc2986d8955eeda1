"""Recurrences over a sequence: back-propagation through time."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule, verify

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")

CELLS = [nnx.SimpleCell, nnx.GRUCell, nnx.LSTMCell, nnx.OptimizedLSTMCell]
LENGTHS = [5, 1, 3, 4]


class With(nnx.Module):
    """A recurrence called with options; an initial carry is a second input."""

    def __init__(self, layer, lengths=None, **options):
        self.layer, self.lengths, self.options = layer, lengths, options

    def __call__(self, x, *initial):
        given = {"initial_carry": initial[0]} if initial else {}
        return self.layer(x, **given, **self.called_with())

    def called_with(self):
        return self.options | ({"seq_lengths": jnp.asarray(self.lengths)} if self.lengths else {})


def everything(*outputs):
    """All outputs in one vector."""
    outputs = outputs[0] if len(outputs) == 1 else outputs
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(outputs)])


@pytest.fixture
def problem(random_model, normal):
    """`problem(build, x)`: a model that ends in `everything`, and targets for it."""

    def problem(build, *x):
        model = random_model(lambda: nnx.Sequential(build(nnx.Rngs(0)), everything))
        shape = nnx.eval_shape(lambda model: model(*x), model).shape
        return model, optax.squared_error, x if len(x) > 1 else x[0], normal(9, *shape)

    return problem


def stack(rngs, cells=CELLS, **options):
    """One recurrence on another, of the sizes 3-2-3-2-3."""
    sizes = [(3, 2), (2, 3)] * 2
    layers = [cell(*size, **options, rngs=rngs) for cell, size in zip(cells, sizes, strict=False)]
    return nnx.Sequential(*map(nnx.RNN, layers))


def test_every_cell_in_a_stack(problem, normal, assert_engines_agree):
    assert assert_engines_agree(*problem(stack, normal(1, 4, 5, 3))) <= 1e-12


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding(dtype, problem, normal, assert_sound_in):
    assert_sound_in(dtype, *problem(stack, normal(1, 4, 5, 3)))


def test_rounding_of_parameters_wider_than_the_computation(random_model, normal, assert_sound_in):
    gated = nnx.GRUCell, nnx.OptimizedLSTMCell  # a simple cell's carry would change its type
    model = random_model(lambda: stack(nnx.Rngs(0), gated, dtype=jnp.bfloat16), dtype=None)
    x, y = normal(1, 4, 5, 3, dtype=jnp.float32), normal(2, 4, 5, 3, dtype=jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        assert_sound_in(None, model, optax.squared_error, x, y)


OPTIONS = {
    "reverse": {"reverse": True},
    "keep order": {"reverse": True, "keep_order": True},
    "time major": {"time_major": True, "reverse": True},
    "return carry": {"return_carry": True},
    "unroll": {"unroll": 3},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("where", ["constructor", "call"])
def test_options(name, where, problem, normal, assert_engines_agree):
    options = OPTIONS[name]
    if where == "call" and name == "unroll":
        pytest.skip("an option of the constructor only")

    def build(rngs):
        cell = nnx.LSTMCell(3, 2, rngs=rngs) if name == "return carry" else nnx.GRUCell(3, 2, rngs=rngs)
        return nnx.RNN(cell, **options) if where == "constructor" else With(nnx.RNN(cell), **options)

    assert assert_engines_agree(*problem(build, normal(1, 4, 5, 3))) <= 1e-12


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_carry": True},
        {"return_carry": True, "reverse": True},
        {"reverse": True, "keep_order": True},
    ],
)
def test_sequences_of_different_lengths(options, problem, normal, assert_engines_agree):
    def build(rngs):
        return With(nnx.RNN(nnx.OptimizedLSTMCell(3, 2, rngs=rngs)), LENGTHS, **options)

    given = problem(build, normal(1, 4, 5, 3))
    assert assert_engines_agree(*given) <= 1e-12


def test_what_comes_after_the_end_of_a_sequence_has_no_influence_on_the_carry(problem, normal):
    def build(rngs):
        rnn = nnx.RNN(nnx.GRUCell(3, 2, rngs=rngs), return_carry=True, reverse=True)
        return With(rnn, LENGTHS)

    model, _, x, _ = problem(build, normal(1, 4, 5, 3))
    x_bar = chainrule.grad(lambda model, x: jnp.sum(model(x)[0]), argnums=1)(model.layers[0], x)
    inside = np.arange(5) < np.array(LENGTHS)[:, None]
    assert np.all((np.abs(x_bar).max(axis=-1) > 0) == inside)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_the_initial_carry_as_an_input(
    lengths, problem, normal, assert_engines_agree, assert_matches_finite_differences
):
    def build(rngs):
        return With(nnx.RNN(nnx.LSTMCell(3, 2, rngs=rngs)), lengths, return_carry=True)

    carry = normal(2, 4, 2), normal(3, 4, 2)
    given = problem(build, normal(1, 4, 5, 3), carry)
    if lengths:
        assert_matches_finite_differences(*given)
    else:
        assert assert_engines_agree(*given) <= 1e-12


def test_several_batch_axes_or_none(problem, normal, assert_engines_agree):
    for shape in [(5, 3), (2, 1, 5, 3)]:
        given = problem(lambda rngs: nnx.RNN(nnx.SimpleCell(3, 2, rngs=rngs)), normal(1, *shape))
        assert assert_engines_agree(*given) <= 1e-12


def bidirectional(rngs, **options):
    return nnx.Bidirectional(
        nnx.RNN(nnx.GRUCell(3, 2, rngs=rngs)), nnx.RNN(nnx.LSTMCell(3, 4, rngs=rngs)), **options
    )


@pytest.mark.parametrize("options", [{}, {"return_carry": True, "time_major": True}])
def test_both_directions(options, problem, normal, assert_engines_agree, assert_matches_finite_differences):
    given = problem(lambda rngs: bidirectional(rngs, **options), normal(1, 4, 5, 3))
    assert assert_engines_agree(*given) <= 1e-12
    if options:
        assert_matches_finite_differences(*given)


def test_both_directions_with_all_options(problem, normal, assert_engines_agree):
    def build(rngs):
        return With(bidirectional(rngs), LENGTHS, return_carry=True)

    carries = normal(2, 4, 2), (normal(3, 4, 4), normal(4, 4, 4))
    assert assert_engines_agree(*problem(build, normal(1, 4, 5, 3), carries)) <= 1e-12


def test_one_recurrence_for_both_directions(problem, normal, assert_engines_agree):
    """The gradients of the shared parameters add up."""

    def build(rngs):
        rnn = nnx.RNN(nnx.GRUCell(3, 2, rngs=rngs))
        return nnx.Bidirectional(rnn, rnn)

    assert assert_engines_agree(*problem(build, normal(1, 4, 5, 3))) <= 1e-12


def test_a_linear_recurrence_by_hand(gradient_by_rules, random_model, normal):
    """h_t = W h_{t-1} + x_t and L = sum h_T: (x_t)_bar = (W^T)^(T-t) 1."""
    rnn = random_model(
        lambda: nnx.RNN(nnx.SimpleCell(2, 2, activation_fn=nnx.identity, rngs=nnx.Rngs(0)), return_carry=True)
    )
    rnn.cell.dense_i.kernel[...] = jnp.eye(2)
    x = normal(1, 1, 5, 2)
    _, y = rnn(x)
    grads, x_bar = chainrule.grad(lambda rnn, x: jnp.sum(rnn(x)[0]), argnums=(0, 1))(rnn, x)
    kernel = np.asarray(rnn.cell.dense_h.kernel[...])  # h W, with h a row
    bar, expected, kernel_bar = np.ones(2), [], np.zeros((2, 2))
    states = [np.zeros(2), *np.asarray(y)[0]]
    for h in reversed(states[:-1]):
        expected.append(bar)
        kernel_bar += np.outer(h, bar)
        bar = kernel @ bar
    np.testing.assert_allclose(x_bar[0], expected[::-1], rtol=1e-13)
    np.testing.assert_allclose(grads["cell"]["dense_h"]["kernel"], kernel_bar, rtol=1e-13)


class NoisyCell(nnx.RNNCellBase):
    """h' = tanh(x W + n * h) with fresh noise n at each step: a cell with state, and no rule."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 2, rngs=rngs)
        self.rngs = rngs.dropout.fork()

    num_feature_axes = 1

    def initialize_carry(self, shape, rngs=None, carry_init=None):
        return jnp.zeros((*shape[:-1], 2), self.dense.kernel[...].dtype)

    def __call__(self, h, x):
        noise = jax.random.uniform(self.rngs(), h.shape, h.dtype)
        y = jnp.tanh(self.dense(x) + noise * h)
        return y, y


@pytest.mark.parametrize("same_noise", [None, "dropout"])
def test_a_users_own_cell(same_noise, problem, normal, assert_engines_agree):
    def build(rngs):
        return nnx.RNN(NoisyCell(rngs), broadcast_rngs=same_noise, return_carry=True)

    assert assert_engines_agree(*problem(build, normal(1, 4, 5, 3))) <= 1e-12


def test_a_replaced_rule_of_the_cell_is_used_at_every_step(problem, normal):
    model, loss_fn, x, y = problem(lambda rngs: nnx.RNN(nnx.GRUCell(3, 2, rngs=rngs)), normal(1, 4, 5, 3))

    def halved(equation, rule):
        if rule is not chainrule.registered()[nnx.GRUCell]:
            return rule

        def backward(layer, residuals, outputs_bar):
            grads, bars = rule.backward(layer, residuals, outputs_bar)
            return jax.tree.map(lambda leaf: leaf / 2, grads), bars

        return SimpleNamespace(forward=rule.forward, backward=backward)

    _, whole = chainrule.value_and_grad(model, loss_fn, x, y)
    with chainrule.replacing(halved):
        _, half = chainrule.value_and_grad(model, loss_fn, x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=1e-12), whole, half)


def test_a_fault_inside_the_loop_is_found(random_model, normal):
    """The verifier blames the cell, not the loop around it."""
    model = random_model(lambda: nnx.RNN(nnx.SimpleCell(2, 2, rngs=nnx.Rngs(0)), reverse=True))
    x, y = normal(1, 2, 3, 2), normal(2, 2, 3, 2)
    with jax.numpy_dtype_promotion("standard"):
        report = verify.model(model, optax.squared_error, x, y, plant="sign_wrong@cell")
    assert report.culprits == ("cell",)
