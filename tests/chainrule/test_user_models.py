"""Ten models as users of Flax build them, with losses of their own: the gradient is `jax.grad`'s.

Each file of `user_models` gives `make() -> model, loss_fn, x, y` and says after whose model it was written.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bpresearch import chainrule
from bpresearch.functional import as_inputs, split
from bpresearch.verify.casting import cast_model
from bpresearch.verify.precision import UNOPTIMIZED, cast
from tests.user_models import NAMES, load

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning"),
]


def make(name):
    """A user's model with its loss and batch, in float64."""
    with jax.numpy_rank_promotion("allow"):  # their initialization
        model, loss_fn, x, y = load(name).make()
    return cast_model(model, jnp.float64), loss_fn, *cast((x, y), jnp.float64)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_autodiff(name):
    """Each leaf within 1e-11 of itself, or of a thousandth of the largest: some gradients are zero.

    A bias in front of a BatchNorm has gradient zero, for instance. Users' own code promotes ranks.
    """
    with jax.numpy_rank_promotion("allow"):
        model, loss_fn, x, y = make(name)
        graphdef, params, state = split(model)

        def loss(params, state):
            model = nnx.merge(graphdef, nnx.State(params), nnx.State(state))
            return jnp.mean(loss_fn(*as_inputs(model(*as_inputs(x))), *as_inputs(y)))

        expected = jax.jit(jax.value_and_grad(loss), compiler_options=UNOPTIMIZED)(params, state)
        by_rules = jax.jit(chainrule.gradient(graphdef, loss_fn), compiler_options=UNOPTIMIZED)
        (value, _), grads = by_rules(params, state, (x, y))
    right_value, right = expected
    np.testing.assert_allclose(value, right_value, rtol=1e-13)
    assert jax.tree.structure(grads) == jax.tree.structure(right)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(right))
    assert 0 < largest < np.inf
    for (path, leaf), found in zip(jax.tree.leaves_with_path(right), jax.tree.leaves(grads), strict=True):
        error, size = np.max(np.abs(found - leaf)), max(float(np.max(np.abs(leaf))), 1e-3 * largest)
        assert error <= 1e-11 * size, f"{jax.tree_util.keystr(path)}: off by {error:.3g} of {size:.3g}"
