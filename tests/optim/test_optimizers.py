"""Optimizers against Optax's own functions, against recursions written out, and what is around them."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from bpresearch import optim

EXCUSED = {
    "optimistic_adam_v2": "is optim.optimistic_adam; Optax's optimistic_adam is deprecated",
    "dpsgd": "takes the gradient of each example",
    "galore": "for matrices of rank 128 and more",
    "schedule_free": "wraps an optimizer: schedule_free_sgd and schedule_free_adamw are here",
    "sophia": "second order: estimates the Hessian",
}


def parameters(function):
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()


def test_every_optimizer_of_optax_is_here():
    found = {
        name
        for module in (optax, contrib)
        for name, value in vars(module).items()
        if callable(value)
        and {"learning_rate", "max_learning_rate"} & parameters(value)
        and not name.startswith(("scale_by_", "_"))
        and not inspect.isclass(value)
    }
    assert found - set(optim.BY_NAME) == set(EXCUSED)
    own = {"momentum", "nesterov", "rmsprop_momentum", "adafactor_momentum", "backtracking", "soap"}
    assert set(optim.BY_NAME) - found == own


def optax_function(name):
    """Optax's own way to say what `optim.NAME(learning_rate, **hyperparameters)` says."""
    plain = getattr(optax, name, getattr(contrib, name, None))
    special = {
        "soap": optim.soap,  # not Optax's: test_soap has its algorithm written out
        "momentum": lambda lr, **h: optax.sgd(lr, **h),
        "nesterov": lambda lr, **h: optax.sgd(lr, nesterov=True, **h),
        "rmsprop_momentum": lambda lr, **h: optax.rmsprop(lr, **h),
        "adafactor_momentum": lambda lr, **h: optax.adafactor(lr, **h),
        "optimistic_adam": lambda lr, **h: optax.optimistic_adam_v2(lr, **h),
        "muon": lambda lr, adam_lr_multiplier, **h: contrib.muon(
            lr, adam_learning_rate=lr * adam_lr_multiplier, **h
        ),
        "polyak_sgd": lambda lr, **h: optax.polyak_sgd(max_learning_rate=lr, **h),
        "noisy_sgd": lambda lr, seed, **h: optax.noisy_sgd(lr, key=seed.astype(int), **h),
        "dadapt_adamw": lambda lr, b1, b2, **h: contrib.dadapt_adamw(lr, betas=(b1, b2), **h),
        "prodigy": lambda lr, b1, b2, **h: contrib.prodigy(lr, betas=(b1, b2), **h),
        # our limits of the step are multiples of the learning rate
        "rprop": lambda lr, min_step_size, max_step_size, **h: optax.rprop(
            lr, min_step_size=lr * min_step_size, max_step_size=lr * max_step_size, **h
        ),
        "backtracking": lambda lr, **h: optax.chain(
            optax.sgd(1.0), optax.scale_by_backtracking_linesearch(30, max_learning_rate=lr, **h)
        ),
    }
    return special.get(name, plain)


WEIGHTS = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.3, -0.7])}
SCALE = {"w": jnp.array([[1.0, 0.2], [3.0, 0.5]]), "b": jnp.array([2.0, 0.1])}


def loss(weights):
    return sum(jnp.sum(SCALE[name] * (weights[name] - 1) ** 2) / 2 for name in weights)


quickly_compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def path(optimizer, steps=3, compiled=lambda step: step):
    """The weights and losses of some steps on a quadratic."""
    optimizer = optax.with_extra_args_support(optimizer)

    def step(weights, state):
        value, grads = jax.value_and_grad(loss)(weights)
        updates, state = optimizer.update(grads, state, weights, value=value, grad=grads, value_fn=loss)
        return optax.apply_updates(weights, updates), state, value

    step, weights, state, found = compiled(step), WEIGHTS, optimizer.init(WEIGHTS), []
    for _ in range(steps):
        weights, state, value = step(weights, state)
        found.append((weights, value))
    return found


SHAPES = {"precondition_every", "largest_side"}
"""Hyper-parameters of SOAP that are whole numbers and not traced."""


def changed(optimizer):
    """A value for each hyper-parameter that is not its default."""
    found = {}
    for name, parameter in inspect.signature(optimizer).parameters.items():
        if name not in {"learning_rate", *SHAPES} and not isinstance(parameter.default, str):
            default = 0.9 if parameter.default is parameter.empty else parameter.default
            found[name] = jnp.float32(
                {"increase_factor": 1.2, "estim_lr0": 0.1}.get(name, 0.7 * default or 0.1)
            )
    return found


@pytest.mark.parametrize("names", np.array_split(sorted(set(optim.BY_NAME) - {"lbfgs"}), 4), ids=range(4))
def test_hyperparameters_are_traced_and_mean_what_optax_means(names):
    hyper = {name: changed(optim.BY_NAME[name]) for name in names}

    @quickly_compiled
    def ours(rate, hyper):
        return {name: path(optim.BY_NAME[name](rate, **hyper[name])) for name in names}

    found = ours(jnp.float32(0.05), hyper)
    for name in names:
        assert not np.array_equal(found[name][-1][0]["w"], WEIGHTS["w"]), name
        expected = path(optax_function(name)(jnp.float32(0.05), **hyper[name]))
        for ours_now, theirs_now in zip(jax.tree.leaves(found[name]), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours_now, theirs_now, rtol=2e-5, atol=1e-6, err_msg=name)


def recursion(name, gradients, lr, w):
    """The published recursions, one weight at a time, in float64; t counts from 1."""
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        if name in ("adam", "adamw", "amsgrad"):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            w = w - lr * (step + (1e-4 * w if name == "adamw" else 0))
        elif name == "adamax":
            m, v = 0.9 * m + 0.1 * g, np.maximum(0.999 * v, np.abs(g) + 1e-8)
            w = w - lr * m / (1 - 0.9**t) / v
        elif name == "adagrad":
            v = (v if t > 1 else 0.1) + g**2
            w = w - lr * g / np.sqrt(v + 1e-7)
        elif name == "rmsprop":
            v = 0.9 * v + 0.1 * g**2
            w = w - lr * g / np.sqrt(v + 1e-8)
        elif name == "lion":
            w = w - lr * (np.sign(0.9 * m + 0.1 * g) + 1e-3 * w)
            m = 0.99 * m + 0.01 * g
        elif name == "signum":
            m = 0.9 * m + 0.1 * g
            w = w - lr * np.sign(m)
        elif name == "optimistic_gradient_descent":
            w, m = w - lr * (2 * g - m if t > 1 else g), g
    return w


@pytest.mark.parametrize(
    "name",
    ["adam", "adamw", "adamax", "adagrad", "rmsprop", "lion", "signum", "optimistic_gradient_descent"],
)
def test_an_optimizer_follows_its_published_recursion(float64, name):
    w, generator = np.array([1.0, -2.0, 0.5]), np.random.default_rng(0)
    gradients = generator.normal(size=(6, 3))
    optimizer = optim.BY_NAME[name](0.1)
    weights, state = jnp.asarray(w), optimizer.init(jnp.asarray(w))
    for g in gradients:
        updates, state = optimizer.update(jnp.asarray(g), state, weights)
        weights = optax.apply_updates(weights, updates)
    np.testing.assert_allclose(weights, recursion(name, gradients, 0.1, w), rtol=1e-9)


def test_hyperparameters_are_read_off_the_signature():
    assert optim.hyperparameters(optim.sgd) == ()
    assert optim.hyperparameters(optim.nesterov, required=True) == ("momentum",)
    assert optim.hyperparameters(optim.adam) == ("b1", "b2", "eps", "eps_root")
    assert optim.hyperparameters(optim.adam, required=True) == ()


def first_step(optimizer, grads, **hyperparameters):
    chosen = optimizer(0.1, **hyperparameters)
    return chosen.update(grads, chosen.init(WEIGHTS), WEIGHTS)[0]


def test_a_long_gradient_is_shortened_to_the_clip_norm_and_a_short_one_is_not():
    grads = jax.grad(loss)(WEIGHTS)
    norm = optax.tree.norm(grads)
    clipped = optim.clipped(optim.sgd)
    assert clipped.__name__ == "sgd" and clipped is optim.clipped(optim.sgd)
    np.testing.assert_allclose(
        optax.tree.norm(first_step(clipped, grads, clip_norm=norm / 2)), 0.1 * norm / 2, rtol=1e-6
    )
    for limit in (2 * norm, np.inf):
        step = first_step(clipped, grads, clip_norm=limit)
        np.testing.assert_allclose(step["w"], -0.1 * grads["w"], rtol=1e-6)


def test_weight_decay_is_added_to_the_gradient_after_clipping():
    grads = jax.grad(loss)(WEIGHTS)
    both = optim.clipped(optim.decayed(optim.sgd))
    assert optim.hyperparameters(both) == ("weight_decay", "clip_norm")
    step = first_step(both, grads, weight_decay=0.5, clip_norm=1.0)
    expected = grads["w"] / optax.tree.norm(grads) + 0.5 * WEIGHTS["w"]
    np.testing.assert_allclose(step["w"], -0.1 * expected, rtol=1e-6)
    assert optim.decayed(optim.adamw) is optim.adamw


def test_the_noise_is_that_of_the_seed():
    steps = [first_step(optim.noisy_sgd, WEIGHTS, seed=seed)["w"] for seed in (1, 1.0, 2)]
    np.testing.assert_array_equal(steps[0], steps[1])
    assert not np.allclose(steps[0], steps[2])


def test_steps_that_follow_from_the_loss():
    value, grads = jax.value_and_grad(loss)(WEIGHTS)
    square = optax.tree.norm(grads) ** 2
    polyak = optim.polyak_sgd(1.0, f_min=0.25)
    step, _ = polyak.update(grads, polyak.init(WEIGHTS), WEIGHTS, value=value)
    np.testing.assert_allclose(step["w"], -(value - 0.25) / square * grads["w"], rtol=1e-5)
    losses = [
        value for _, value in path(optim.backtracking(10.0), 8, quickly_compiled)
    ]  # 10 alone would diverge
    assert (np.diff(losses) < 0).all()
    *_, (_, last) = path(optim.lbfgs(1.0), 14, quickly_compiled)
    assert last < 1e-6
