"""What the tests of every rule share: the engines against each other and against other oracles.

Each fixture is a function. They want float64, so a test that uses one uses the fixture `float64`
too; only `assert_sound_in` looks after the precision itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bpresearch import autodiff, chainrule, verify
from bpresearch.chainrule import registry
from bpresearch.functional import as_inputs, merge, split
from bpresearch.verify.casting import cast_model
from bpresearch.verify.precision import UNOPTIMIZED, cast


@pytest.fixture(scope="session")
def ask_rule():
    """`ask_rule(layer, *inputs) -> y, back`: the rule of one layer, `back(y_bar) -> grads, x_bar`."""
    return _ask_rule


def _ask_rule(layer, *inputs):
    rule, options = registry.rule_for(layer)
    y, residuals = rule.forward(layer, *inputs, **options)
    return y, lambda y_bar: rule.backward(layer, residuals, y_bar, **options)


@pytest.fixture(scope="session")
def normal():
    """`normal(seed, *shape, dtype=float64)`: Gaussian numbers, made without compiling anything."""
    return _normal


@pytest.fixture(scope="session")
def random_model():
    """`random_model(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)), seed=0, dtype=float64)`.

    The model with Gaussian parameters, biases too, made without compiling its initialisation.
    `dtype=None` leaves the parameters the dtypes they were declared with. Keys and counters of random
    streams are those of seed 0.
    """

    def random_model(build, seed=0, dtype=jnp.float64):
        graphdef, state = nnx.split(nnx.eval_shape(build))

        def draw(index, leaf):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.split(jax.random.key(0), leaf.shape) if leaf.shape else jax.random.key(0)
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                return jnp.zeros(leaf.shape, leaf.dtype)
            scale = 1 / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
            return _normal((seed, index), *leaf.shape, dtype=leaf.dtype, scale=scale)

        leaves, structure = jax.tree.flatten(state)
        drawn = [draw(index, leaf) for index, leaf in enumerate(leaves)]
        model = nnx.merge(graphdef, structure.unflatten(drawn))
        return model if dtype is None else cast_model(model, dtype)

    return random_model


def _normal(seed, *shape, dtype=jnp.float64, scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(scale=scale, size=shape).astype(dtype))


@pytest.fixture(scope="session")
def float64_model():
    """`float64_model(model)`: a copy whose variables and computations are in double precision."""
    return lambda model: cast_model(model, jnp.float64)


@pytest.fixture(scope="session")
def gradient_by_rules():
    """`gradient_by_rules(model, loss_fn, x, y) -> loss, grads, x_bar`, compiled quickly."""

    def gradient_by_rules(model, loss_fn, x, y):
        loss, _, grads, x_bar = _gradients(chainrule, model, loss_fn, x, y, UNOPTIMIZED)
        return loss, grads, x_bar

    return gradient_by_rules


@pytest.fixture(scope="session")
def assert_engines_agree():
    """`assert_engines_agree(model, loss_fn, x, y, tolerance=1e-11)`.

    Both engines, as pure functions under `jit`, must give the same loss, the same gradient of every
    parameter and input, in the same dicts and dtypes, and leave the same state. The error of a leaf
    is max |chain rule - autodiff| / max |autodiff|; the worst one is returned. A leaf whose
    derivative is zero but for rounding is held to the size of the whole gradient, and one that differs
    by more than the tolerance to how far rounding moves it, as the verifier measures that.
    """
    return _assert_engines_agree


@pytest.fixture(scope="session")
def assert_sound_in():
    """`assert_sound_in(dtype, model, loss_fn, x, y)`: rounding comparable with autodiff's own.

    The model, rounded to `dtype`, is differentiated there by both engines, and in float64 by
    autodiff. Leaf by leaf, the norm of the chain rule's error must be within 8 times that of
    autodiff's (or a quarter of eps times the leaf's norm, where that is more). The largest ratio is
    returned. With `dtype=None` the model is taken as it is, mixed precisions and all.
    """
    return _assert_sound_in


@pytest.fixture(scope="session")
def assert_matches_finite_differences():
    """`assert_matches_finite_differences(model, loss_fn, x, y, tolerance=1e-7)`.

    Central differences with Richardson extrapolation, for each parameter and floating-point input
    in random directions that move all its elements alike, and in every coordinate if they are few.
    The error is relative to the norm of the leaf's gradient.
    """
    return _assert_matches_finite_differences


@pytest.fixture(scope="session")
def assert_rules_right():
    """`assert_rules_right({name: (function, inputs, wrt)}, tolerance=1e-11)`, all in one compilation.

    The value of each function by its rule is the function's own, and for a random cotangent of it those of
    the inputs number `wrt` are autodiff's, where it gives a number, and those that central differences
    measure. The largest error against autodiff is returned. Inputs of integers have no cotangent.
    """
    return _assert_rules_right


@pytest.fixture(scope="session")
def assert_rules_sound_in():
    """`assert_rules_sound_in(dtype, {name: (function, inputs, wrt)})`: as `assert_sound_in`, for rules."""
    return _assert_rules_sound_in


# In double precision nothing hangs on the compiler's optimisations, which take most of its time.


def _gradients(engine, model, loss_fn, x, y, compiler_options=None):
    graphdef, params, state = split(model)
    gradient = engine.gradient(graphdef, loss_fn, inputs=True)
    compiled = jax.jit(gradient, compiler_options=compiler_options)
    (loss, new_state), (grads, x_bar) = compiled(params, state, (x, y))
    return loss, new_state, grads, x_bar


def _leaves(grads, x_bar, x):
    """Gradients by name; an integer input has none, whether that is said by None or by float0."""
    named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(grads)}
    x_bars = jax.tree.leaves(as_inputs(x_bar), is_leaf=lambda leaf: leaf is None)
    xs = jax.tree.leaves(as_inputs(x))
    assert len(xs) == len(x_bars), f"{len(x_bars)} cotangents of {len(xs)} inputs"
    for index, (value, bar) in enumerate(zip(xs, x_bars, strict=True)):
        if jnp.issubdtype(jnp.result_type(value), jnp.inexact):
            assert bar is not None, f"input {index} has no cotangent"
            assert (bar.shape, bar.dtype) == (value.shape, value.dtype), f"cotangent of input {index}"
            named[f"input {index}"] = bar
        else:
            assert bar is None or bar.dtype == jax.dtypes.float0, f"cotangent of integer input {index}"
    return named


def _numbers(array):
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    wide = jnp.issubdtype(array.dtype, jnp.floating)
    return np.asarray(array).astype(np.float64) if wide else np.asarray(array)


def _largest(array):
    return np.max(np.abs(array), initial=0)


def _assert_engines_agree(model, loss_fn, x, y, tolerance=1e-11):
    loss, new_state, grads, x_bar = _gradients(autodiff, model, loss_fn, x, y, UNOPTIMIZED)
    our_loss, our_state, our_grads, our_x_bar = _gradients(chainrule, model, loss_fn, x, y, UNOPTIMIZED)
    assert jax.tree.structure(our_grads) == jax.tree.structure(grads)
    assert jax.tree.structure(our_state) == jax.tree.structure(new_state)
    assert our_loss.dtype == loss.dtype
    np.testing.assert_allclose(our_loss, loss, rtol=tolerance)

    right, ours = _leaves(grads, x_bar, x), _leaves(our_grads, our_x_bar, x)
    floor = 32 * np.finfo(float).eps * max(map(_largest, map(_numbers, right.values())), default=0)
    worst = 0.0
    for name, leaf in right.items():
        assert (ours[name].shape, ours[name].dtype) == (leaf.shape, leaf.dtype), name
        expected, found = _numbers(leaf), _numbers(ours[name])
        assert np.isfinite(expected).all(), f"autodiff's gradient of {name} is not finite"
        error, size = _largest(found - expected), _largest(expected)
        if error > max(tolerance * size, floor):  # what rounding does is measured, not guessed
            report = verify.model(model, loss_fn, x, y, dtype="float64", oracles=["autodiff"])
            assert report.passed is True, f"{name}: error {error:.3g} of {size:.3g}\n{report}"
        worst = max(worst, error / size if size > floor else 0.0)

    for path, leaf in jax.tree.leaves_with_path(new_state):
        found = our_state
        for key in path:
            found = found[key.key]
        name = f"state {jax.tree_util.keystr(path)}"
        assert found.dtype == leaf.dtype, name
        np.testing.assert_allclose(
            _numbers(found), _numbers(leaf), rtol=tolerance, atol=1e-3 * tolerance, err_msg=name
        )
    return worst


def _assert_sound_in(dtype, model, loss_fn, x, y):
    with jax.enable_x64(True):
        rounded, (x, y) = (cast_model(model, dtype), cast((x, y), dtype)) if dtype else (model, (x, y))
        wide, (wide_x, wide_y) = cast_model(rounded, jnp.float64), cast((x, y), jnp.float64)
        _, _, *exact = _gradients(autodiff, wide, loss_fn, wide_x, wide_y, UNOPTIMIZED)
        _, _, *right = _gradients(autodiff, rounded, loss_fn, x, y)
        _, _, *ours = _gradients(chainrule, rounded, loss_fn, x, y)
        exact, right, ours = _leaves(*exact, wide_x), _leaves(*right, x), _leaves(*ours, x)
    assert ours.keys() == right.keys() == exact.keys()
    largest = 0.0
    for name, leaf in exact.items():
        assert ours[name].dtype == right[name].dtype, name
        leaf, autodiffs, found = _numbers(leaf), _numbers(right[name]), _numbers(ours[name])
        assert np.isfinite(found).all(), f"{name} is not finite"
        own, error = np.linalg.norm(autodiffs - leaf), np.linalg.norm(found - leaf)
        yardstick = max(own, 0.25 * float(jnp.finfo(right[name].dtype).eps) * np.linalg.norm(leaf))
        ratio = error / max(yardstick, np.finfo(float).tiny)
        assert ratio <= 8, f"{name}: error {error:.3g}, autodiff's own {own:.3g}, ratio {ratio:.3g}"
        largest = max(largest, ratio)
    return largest


def _assert_matches_finite_differences(model, loss_fn, x, y, tolerance=1e-7):
    graphdef, params, state = split(model)
    loss, _, grads, x_bar = _gradients(chainrule, model, loss_fn, x, y, UNOPTIMIZED)
    leaves, structure = jax.tree.flatten((params, as_inputs(x)))
    bars = jax.tree.leaves(grads) + jax.tree.leaves(as_inputs(x_bar), is_leaf=lambda bar: bar is None)
    rng = np.random.default_rng(0)
    steps = np.array([1e-3, 1e-4, 1e-5])  # more than one: a kink may lie within the larger ones

    directions = []  # (leaf's index, direction in it)
    for index, leaf in enumerate(leaves):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size:
            assert leaf.dtype == jnp.float64, "finite differences want float64"
            signs = rng.choice([-1.0, 1.0], (3, *leaf.shape)) / np.sqrt(leaf.size)
            few = np.eye(leaf.size).reshape(-1, *leaf.shape) if leaf.size <= 16 else []
            directions += [(index, direction) for direction in (*signs, *few)]

    def difference(step, indexed):
        index, direction = indexed

        def value(distance):
            moved = [
                leaf + distance * jnp.where(index == i, direction[: leaf.size], 0).reshape(leaf.shape)
                if jnp.issubdtype(leaf.dtype, jnp.floating)
                else leaf
                for i, leaf in enumerate(leaves)
            ]
            params, xs = structure.unflatten(moved)
            return jnp.mean(loss_fn(*as_inputs(merge(graphdef, params, state)(*xs)), *as_inputs(y)))

        def central(h):
            return (value(h) - value(-h)) / (2 * h)

        return (4 * central(step / 2) - central(step)) / 3

    longest = max(direction.size for _, direction in directions)
    padded = [np.pad(d.ravel(), (0, longest - d.size)) for _, d in directions]
    indexed = (np.array([index for index, _ in directions]), np.stack(padded))
    over_steps = jax.vmap(difference, (0, None))
    all_of_them = jax.jit(
        lambda all_: jax.lax.map(lambda one: over_steps(steps, one), all_),
        compiler_options=UNOPTIMIZED,
    )
    measured = np.asarray(all_of_them(indexed))

    for (index, direction), found in zip(directions, measured, strict=True):
        bar = np.asarray(bars[index])
        error, size = np.min(np.abs(found - np.vdot(direction, bar))), np.linalg.norm(bar)
        # Below 1e-10 of the loss a difference is rounding.
        assert error <= tolerance * size + 1e-10 * max(abs(float(loss)), 1), (
            f"leaf {index} of shape {bar.shape}: off by {error:.3g}, norm {size:.3g}"
        )


def _of_some(function, inputs, wrt):
    """The function of its inputs number `wrt` alone, and these."""

    def of_some(*some):
        filled = dict(enumerate(inputs)) | dict(zip(wrt, some, strict=True))
        return function(*filled.values())

    return of_some, [inputs[i] for i in wrt]


def _random_cotangent(function, inputs):
    shapes = jax.eval_shape(function, *inputs)
    return jax.tree.map(lambda y: _normal(7, *y.shape).astype(y.dtype), shapes)


def _by_autodiff(function, inputs, wrt, y_bar):
    of_some, some = _of_some(function, inputs, wrt)
    y, pullback = jax.vjp(of_some, *some)
    return y, pullback(y_bar)


def _by_rule(function, inputs, wrt, y_bar):
    y, back = _ask_rule(function, *inputs)
    grads, bars = back(y_bar)
    assert grads == {}
    bars = as_inputs(bars)
    for x, bar in zip(inputs, bars, strict=True):
        if x is None or not jnp.issubdtype(x.dtype, jnp.inexact):
            assert bar is None
        else:
            assert (bar.shape, bar.dtype) == (x.shape, x.dtype)
    return y, tuple(bars[i] for i in wrt)


def _by_differences(function, inputs, wrt, y_bar, step=1e-3):
    """For each input, three directions and the derivatives along them, to the fourth order of the step."""
    of_some, some = _of_some(function, inputs, wrt)
    found = []
    for place, x in enumerate(some):
        directions = _normal(11, 3, *x.shape)

        def value(distance, direction, place=place):
            moved = [x + distance * direction if i == place else x for i, x in enumerate(some)]
            products = jax.tree.map(lambda y, bar: jnp.sum(y * bar), of_some(*moved), y_bar)
            return sum(jax.tree.leaves(products))

        distances = step * jnp.array([-1, -0.5, 0.5, 1])
        values = jax.vmap(jax.vmap(value, (0, None)), (None, 0))(distances, directions)
        found.append((directions, values @ jnp.array([1.0, -8.0, 8.0, -1.0]) / (6 * step)))
    return found


def _assert_rules_right(problems, tolerance=1e-11):
    def all_of_them(arrays):
        answers = {}
        for name, (function, _, wrt) in problems.items():
            inputs, y_bar = arrays[name]
            ways = (_by_autodiff, _by_rule, _by_differences)
            answers[name] = [way(function, inputs, wrt, y_bar) for way in ways]
        return answers

    arrays = {n: (inputs, _random_cotangent(f, inputs)) for n, (f, inputs, _) in problems.items()}
    answers = jax.device_get(jax.jit(all_of_them, compiler_options=UNOPTIMIZED)(arrays))
    worst = 0.0
    for name, ((right_y, right), (y, bars), differences) in answers.items():
        for own, found in zip(jax.tree.leaves(right_y), jax.tree.leaves(y), strict=True):
            np.testing.assert_allclose(found, own, rtol=1e-13, atol=1e-15, err_msg=name)
        for place, (bar, expected, (directions, measured)) in enumerate(
            zip(bars, right, differences, strict=True)
        ):
            finite = np.isfinite(expected)
            assert finite.any(), f"{name}: autodiff's own cotangent is not finite"
            error, size = _largest((bar - expected)[finite]), _largest(expected[finite])
            assert error <= tolerance * size, f"{name}, input {place}: error {error:.3g} of {size:.3g}"
            worst = max(worst, error / size if size else 0.0)
            along = np.sum(directions * bar, axis=tuple(range(1, directions.ndim)))
            close = 1e-7 * np.linalg.norm(bar) + 1e-10
            assert _largest(along - measured) <= close, f"{name}, input {place}: {along} and {measured}"
    return worst


def _narrow(tree):
    """Integers in 32 bits, as they are without double precision."""
    return jax.tree.map(lambda x: x.astype(jnp.int32) if x.dtype == jnp.int64 else x, tree)


def _assert_rules_sound_in(dtype, problems):
    def all_of_them(arrays, ways):
        return {
            name: [way(function, inputs, wrt, y_bar)[1] for way in ways]
            for name, (function, _, wrt) in problems.items()
            for inputs, y_bar in [arrays[name]]
        }

    compiled = jax.jit(all_of_them, static_argnums=1)
    quickly = jax.jit(all_of_them, static_argnums=1, compiler_options=UNOPTIMIZED)
    with jax.enable_x64(False):
        low = {n: _narrow(cast(inputs, dtype)) for n, (_, inputs, _) in problems.items()}
        low = {n: (inputs, _random_cotangent(problems[n][0], inputs)) for n, inputs in low.items()}
        answers = compiled(low, (_by_autodiff, _by_rule))
    with jax.enable_x64(True):
        exact = quickly(cast(low, jnp.float64), (_by_autodiff,))
    for name, (right, ours) in answers.items():
        for place, (autodiffs, found, leaf) in enumerate(zip(right, ours, exact[name][0], strict=True)):
            eps = float(jnp.finfo(found.dtype).eps)
            autodiffs, found, leaf = _numbers(autodiffs), _numbers(found), _numbers(leaf)
            assert np.isfinite(found).all(), f"{name}, input {place} is not finite"
            known = np.isfinite(autodiffs) & np.isfinite(leaf)
            autodiffs, found, leaf = autodiffs[known], found[known], leaf[known]
            own, error = np.linalg.norm(autodiffs - leaf), np.linalg.norm(found - leaf)
            bar = 8 * max(own, 0.25 * eps * np.linalg.norm(leaf))
            assert error <= bar, f"{name}, input {place}: error {error:.3g}, autodiff's own {own:.3g}"
