"""The rules of activations along an axis."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import special

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")

MASK = np.arange(24).reshape(4, 6) % 5 > 0
CONSTANT = np.linspace(-1, 1, 4)[:, None]

CASES = {
    "softmax": nnx.softmax,
    "softmax_axis": partial(nnx.softmax, axis=0),
    "softmax_axes": partial(nnx.softmax, axis=(0, 1)),
    "softmax_all": partial(nnx.softmax, axis=None),
    "softmax_where": partial(nnx.softmax, where=MASK),
    "log_softmax": nnx.log_softmax,
    "log_softmax_axis": partial(nnx.log_softmax, axis=0),
    "log_softmax_all": partial(nnx.log_softmax, axis=None),
    "glu": nnx.glu,
    "glu_axis": partial(nnx.glu, axis=0),
    "standardize": nnx.standardize,
    "standardize_axes": partial(nnx.standardize, axis=(0, 1), epsilon=0.1, algorithm="stable"),
    "standardize_all": partial(nnx.standardize, axis=None),
    "standardize_where": partial(nnx.standardize, axis=0, where=MASK),
    "standardize_mean": partial(nnx.standardize, mean=CONSTANT),
    "standardize_mean_stable": partial(nnx.standardize, mean=CONSTANT, algorithm="stable"),
    "standardize_variance": partial(nnx.standardize, variance=CONSTANT**2),
    "standardize_both": partial(nnx.standardize, mean=0.5, variance=2.0),
}


def output(name):
    return {"glu": (4, 3), "glu_axis": (2, 6)}.get(name, (4, 6))


def test_as_autodiff(side_by_side, random_model, normal, assert_engines_agree):
    """Each behind a linear layer of its own, so that none's cotangent hides behind another's."""

    def build():
        rngs = nnx.Rngs(0)
        return side_by_side(
            *(nnx.Sequential(nnx.Linear(3, 6, rngs=rngs), activation) for activation in CASES.values())
        )

    y = normal(2, sum(int(np.prod(output(name))) for name in CASES))
    assert assert_engines_agree(random_model(build), optax.squared_error, normal(1, 4, 3), y) <= 1e-11


def inside(outputs, targets):
    """Squares of the elements inside the mask; those outside are -inf."""
    return jnp.where(MASK, optax.squared_error(jnp.where(MASK, outputs, 0), targets), 0)


def test_log_softmax_with_a_mask(normal, assert_engines_agree, assert_matches_finite_differences):
    model = nnx.Sequential(partial(nnx.log_softmax, where=MASK))
    x, y = normal(1, 4, 6), normal(2, 4, 6)
    assert assert_engines_agree(model, inside, x, y) <= 1e-12
    assert_matches_finite_differences(model, inside, x, y)


def test_finite_differences(side_by_side, normal, assert_matches_finite_differences):
    names = ["softmax_where", "log_softmax", "glu", "standardize_where"]
    model, x, y = (
        side_by_side(*(nnx.Sequential(CASES[name]) for name in names)),
        normal(1, 4, 6),
        normal(2, 84),
    )
    assert_matches_finite_differences(model, optax.squared_error, x, y)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "glu", "standardize"])
def test_rounding(name, dtype, normal, assert_sound_in):
    model, x, y = nnx.Sequential(CASES[name]), normal(1, 4, 6), normal(2, *output(name))
    assert_sound_in(dtype, model, optax.squared_error, x, y)


def test_softmax_has_the_jacobian_of_the_textbook(normal, gradient_by_rules):
    """diag(p) - p p^T, row by row."""
    x, y = np.asarray(normal(1, 4, 6)), np.asarray(normal(2, 4, 6))
    _, _, x_bar = gradient_by_rules(nnx.Sequential(nnx.softmax), optax.squared_error, x, y)
    for row, target, found in zip(x, y, x_bar, strict=True):
        p = special.softmax(row)
        jacobian = np.diag(p) - np.outer(p, p)
        np.testing.assert_allclose(found, jacobian @ (2 * (p - target) / 24), rtol=1e-12)


def test_torch(normal, gradient_by_rules):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    twins = {
        "softmax": partial(torch.softmax, dim=-1),
        "log_softmax_axis": partial(torch.log_softmax, dim=0),
        "glu": functional.glu,
        "standardize": partial(functional.layer_norm, normalized_shape=(6,), eps=1e-5),
    }
    for name, twin in twins.items():
        x, y = normal(1, 4, 6), normal(2, *output(name))
        inputs = torch.tensor(np.asarray(x), requires_grad=True)
        functional.mse_loss(twin(inputs), torch.tensor(np.asarray(y))).backward()
        _, _, x_bar = gradient_by_rules(nnx.Sequential(CASES[name]), optax.squared_error, x, y)
        np.testing.assert_allclose(x_bar, inputs.grad.numpy(), rtol=1e-10, atol=1e-14, err_msg=name)
