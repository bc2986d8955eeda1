"""What a batch's program may do with its examples and not mix them, and what mixes them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bpresearch import chainrule
from bpresearch.verify.precision import UNOPTIMIZED

pytestmark = pytest.mark.usefixtures("float64")


# Functions of parameters and a batch of five.

KEY = np.array([0, 7], np.uint32)


def key():
    return jax.random.wrap_key_data(KEY)


def dense(w, x):
    return x @ w["kernel"] + jnp.expand_dims(w["bias"], 0)


@jax.custom_vjp
def tripled(x, w):
    """A backward pass of one's own, which is no derivative: it must not be opened."""
    return jnp.sin(x) @ w


tripled.defvjp(
    lambda x, w: (tripled(x, w), (x, w)),
    lambda kept, bar: (jnp.cos(kept[0]) * (bar @ kept[1].T), 3 * (jnp.sin(kept[0]).T @ bar)),
)


@jax.custom_jvp
def doubled(x):
    return jnp.tanh(x)


doubled.defjvp(lambda primals, dots: (doubled(*primals), 2 * dots[0] * (1 - jnp.tanh(primals[0]) ** 2)))


def over_steps(w, x, y):
    """A loop of noisy steps over time; what it carries starts as zeros that all examples share."""

    def step(carry, x):
        h, rng = carry
        rng, drawn = jax.random.split(rng)
        h = jnp.tanh(h + dense(w, x)) * jax.random.normal(drawn, h.shape)
        return (h, rng), jnp.sum(h, -1)

    (h, _), sums = lax.scan(step, (jnp.zeros((5, 4)), key()), jnp.stack([x, x**2, 2 * x]))
    return jnp.sum(h, -1) + sums[1]


def attention(w, x, y):
    h = jnp.stack([x, 2 * x, x + 1], 1) @ w["kernel"]
    return jnp.einsum("bts,bsd->b", jax.nn.softmax(jnp.einsum("btd,bsd->bts", h, h)), h)


def matrices(w, x, y):
    outer = jnp.einsum("bi,bj->bij", dense(w, x), dense(w, x)) + jnp.expand_dims(jnp.eye(4), 0)
    solved = jnp.linalg.solve(outer, jnp.expand_dims(jnp.tanh(dense(w, x)), -1))
    return jnp.sum(jnp.linalg.cholesky(outer), (1, 2)) + jnp.sum(solved, (1, 2))


def drops(w, x, y):
    h = dense(w, x)
    return jnp.sum(jnp.where(jax.random.bernoulli(key(), 0.5, h.shape), h, 0.0) ** 2, -1)


def draws(w, x, y):
    noise = jax.random.normal(key(), (5, 4)) * jnp.expand_dims(jnp.exp(w["bias"]), 0)
    return jnp.sum((dense(w, x) + noise) ** 2, -1)


def merges(w, x, y):
    """Time is merged with the examples, before them and after them, and parted from them again."""
    before, after = jnp.stack([x, x**2], 0).reshape(10, 3), jnp.stack([x, x**2], 1).reshape(10, 3)
    before, after = jnp.sin(before @ w["kernel"]), jnp.sin(after @ w["kernel"])
    return jnp.sum(before.reshape(2, 5, 4), (0, 2)) * jnp.sum(after.reshape(5, 2, 4), (1, 2))


def unused(w, x, y):
    """Examples meet in what the loss does not depend on."""
    _, h = lax.scan(
        lambda mean, h: (0.9 * mean + jnp.mean(h, 0), jnp.tanh(h)), jnp.zeros(4), dense(w, x)[None]
    )
    return jnp.sum(h, (0, 2))


APART = {
    "elements": lambda w, x, y: jnp.tanh(dense(w, x)),
    "by their number": lambda w, x, y: -jax.nn.log_softmax(dense(w, x))[jnp.arange(5), y],
    "by a constant number": lambda w, x, y: jnp.exp(dense(w, x))[np.arange(5), 2],
    "taken along": lambda w, x, y: jnp.take_along_axis(jnp.exp(dense(w, x)), y[:, None], 1),
    "from a table": lambda w, x, y: jnp.sum(jnp.sin(w["kernel"].T[y] * x), -1),
    "written to": lambda w, x, y: dense(w, x).at[jnp.arange(5), y].mul(3.0).at[:, 1].add(x[:, 0]) ** 2,
    "position": lambda w, x, y: jnp.sum(jnp.tanh(dense(w, x)) * jnp.arange(5.0)[:, None], -1),
    "their count": lambda w, x, y: jnp.sum(dense(w, x) ** 2, -1) / len(x),
    "vmap": lambda w, x, y: jax.vmap(lambda x, y: jnp.tanh(x @ w["kernel"])[y], (1, 0))(x.T, y),
    "map": lambda w, x, y: lax.map(lambda both: jnp.tanh(both[0] @ w["kernel"])[both[1]], (x, y)),
    "fori": lambda w, x, y: jnp.sum(lax.fori_loop(0, 3, lambda i, h: jnp.sin(h) * (i + 1), dense(w, x)), -1),
    "cond": lambda w, x, y: lax.cond(
        w["bias"][0] > 0, lambda h: jnp.sum(h, -1), lambda h: jnp.ones(5) + 0 * h[:, 0] * h[:, 1], dense(w, x)
    ),
    "remat": lambda w, x, y: jax.checkpoint(lambda w, x: jnp.sum(jnp.sin(dense(w, x)), -1))(w, x),
    "activations": lambda w, x, y: jax.nn.logsumexp(jax.nn.silu(dense(w, x)), -1, keepdims=True) + doubled(x),
    "custom_vjp": lambda w, x, y: jnp.sum(tripled(dense(w, x), w["kernel"].T) ** 2, -1),
    "sorted": lambda w, x, y: jnp.sort(dense(w, x), -1)[:, 1] + lax.top_k(dense(w, x), 2)[0][:, 1],
    "one hot": lambda w, x, y: -jnp.sum(jax.nn.one_hot(y, 4) * jax.nn.log_softmax(dense(w, x)), -1),
    "derivative inside": lambda w, x, y: jax.vmap(jax.grad(lambda x: jnp.sum(jnp.sin(x @ w["kernel"]))))(x),
    "spectrum": lambda w, x, y: jnp.abs(jnp.fft.rfft(dense(w, x))) ** 2,
    "tiles": lambda w, x, y: jnp.tile(dense(w, x), (1, 2))[:, 1:5:2] * jnp.flip(dense(w, x), 1)[:, :2],
    "no example": lambda w, x, y: jnp.sum(w["bias"]) * jnp.ones(5),
    "over steps": over_steps, "attention": attention, "matrices": matrices, "drops": drops, "draws": draws,
    "merges": merges, "unused": unused,
}  # fmt: skip


@pytest.fixture
def batch_of_five(normal):
    w = {"kernel": normal(1, 3, 4), "bias": normal(2, 4)}
    return w, normal(3, 5, 3), jnp.array([0, 2, 1, 3, 3])


def test_what_keeps_the_examples_apart(batch_of_five):
    """Rows of the Jacobian of the batch's losses; random draws and positions are those of the batch."""

    def all_of_them(w, x, y):
        return {name: chainrule.per_example_gradients(loss)(w, x, y) for name, loss in APART.items()}

    def by_autodiff(w, x, y):
        def losses(loss, w):
            return jnp.mean(loss(w, x, y).reshape(5, -1), 1)

        return {name: (losses(loss, w), jax.jacrev(partial(losses, loss))(w)) for name, loss in APART.items()}

    found = jax.jit(all_of_them, compiler_options=UNOPTIMIZED)(*batch_of_five)
    expected = jax.jit(by_autodiff, compiler_options=UNOPTIMIZED)(*batch_of_five)
    for name, right in expected.items():
        for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(right), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11, err_msg=name)


@jax.custom_vjp
def clipped(x):
    return x


clipped.defvjp(lambda x: (x, None), lambda kept, bar: (bar / jnp.linalg.norm(bar),))

MIXED = {
    "reduce_sum": lambda w, x, y: dense(w, x) - jnp.mean(dense(w, x), 0, keepdims=True),
    "dot_general": lambda w, x, y: dense(w, x) @ dense(w, x).T,
    "slice": lambda w, x, y: dense(w, jnp.roll(x, 1, 0)),
    "rev": lambda w, x, y: dense(w, x)[::-1],
    "sort": lambda w, x, y: jnp.sort(dense(w, x), 0),
    "cumsum": lambda w, x, y: jnp.cumsum(dense(w, x), 0),
    "scan": lambda w, x, y: lax.scan(lambda h, x: (h + x, h), jnp.zeros(4), dense(w, x))[1],
    "gather": lambda w, x, y: dense(w, x)[y],
    "gather ": lambda w, x, y: dense(w, x)[jnp.arange(5)[::-1], y],
    "reshape": lambda w, x, y: dense(w, x).T.reshape(5, 4),
    "cond": lambda w, x, y: lax.cond(jnp.sum(x) > 0, jnp.sin, jnp.cos, dense(w, x)),
    "reduce_max": lambda w, x, y: dense(w, x) / jnp.max(jnp.abs(dense(w, x))),
    "fft": lambda w, x, y: jnp.abs(jnp.fft.fft(dense(w, x), axis=0)),
    "conv_general_dilated": lambda w, x, y: lax.conv(x.T[None], jnp.ones((1, 3, 3)), (1,), "SAME")[0, 0],
    "sqrt": lambda w, x, y: clipped(dense(w, x)),
}  # fmt: skip


def test_rows_of_the_losses_are_the_examples(batch_of_five):
    with pytest.raises(ValueError, match="<lambda> gives no value for each example"):
        chainrule.per_example_gradients(lambda w, x, y: jnp.stack([dense(w, x)[:, 0]] * 5))(*batch_of_five)


@pytest.mark.parametrize("primitive", MIXED)
def test_what_mixes_them_is_named(primitive, batch_of_five):
    """The operation and the line where two examples meet; in backward passes that someone wrote, as well."""
    message = rf"{primitive.strip()} at .*test_one_example\.py.* mixes the examples of the batch"
    with pytest.raises(ValueError, match=message):
        chainrule.per_example_gradients(MIXED[primitive])(*batch_of_five)


def test_what_nothing_is_known_of_is_refused(batch_of_five):
    def loss(w, x, y):
        h = lax.while_loop(lambda h: False, jnp.sin, dense(w, x))
        return jnp.sum(lax.stop_gradient(h) * dense(w, x), -1)

    with pytest.raises(ValueError, match=r"no rule tells whether while at .*loss\) keeps the examples"):
        chainrule.per_example_gradients(loss)(*batch_of_five)
