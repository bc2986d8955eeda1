"""What a skilled JAX user writes to train many runs of one model: the other side of scripts/benchmark.py.

A run is one `lax.scan` over its steps, as a pure function of its seed, learning rate and batches. Runs are
trained at once, by `jit(vmap(scan))`, or in turn, by `jit(scan)`; either on the first device, or spread over
all of them. It imports jax, flax and optax alone, and knows nothing of bpresearch.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec


def flat(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)


def mlp(*sizes: int) -> Callable[[nnx.Rngs], nnx.Module]:
    def build(rngs: nnx.Rngs) -> nnx.Module:
        layers = []
        for before, after in itertools.pairwise(sizes):
            layers += [nnx.Linear(before, after, rngs=rngs), nnx.relu]
        return nnx.Sequential(*layers[:-1])

    return build


class ResidualMLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(40, 100, rngs=rngs)
        self.second = nnx.Linear(100, 100, rngs=rngs)
        self.last = nnx.Linear(100, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = nnx.relu(self.first(x))
        return self.last(h + nnx.relu(self.second(h)))


def cnn(rngs: nnx.Rngs) -> nnx.Module:
    layers = []
    for before, size in ((1, 5), (25, 3), (25, 3)):
        layers += [nnx.Conv(before, 25, (size,), strides=2, padding=1, rngs=rngs), nnx.relu]
    return nnx.Sequential(*layers, flat, nnx.Linear(125, 10, rngs=rngs))


def bidirectional_gru(rngs: nnx.Rngs) -> nnx.Module:
    forward, backward = (nnx.RNN(nnx.GRUCell(1, 6, rngs=rngs)) for _ in range(2))
    return nnx.Sequential(nnx.Bidirectional(forward, backward), flat, nnx.Linear(480, 10, rngs=rngs))


MODELS = {
    "default": ((40,), mlp(40, 100, 100, 10)),
    "mlp": ((64,), mlp(64, 128, 128, 10)),
    "mnist1d.residual_mlp": ((40,), ResidualMLP),
    "mnist1d.cnn": ((40, 1), cnn),
    "mnist1d.bidirectional_gru": ((40, 1), bidirectional_gru),
}
"""The shape of an example, and `rngs -> model`, of each task."""


def training(build: Callable[[nnx.Rngs], nnx.Module]) -> Callable[..., jax.Array]:
    """One run: `(seed, rate, order, x, y) -> losses`, `order` holding the examples of each step's batch."""

    def train(seed, rate, order, x, y):
        graphdef, params, rest = nnx.split(build(nnx.Rngs(jax.random.key(seed))), nnx.Param, ...)
        rest = nnx.to_pure_dict(rest)  # arrays: a step makes variables of its own of them
        optimizer = optax.sgd(rate, momentum=0.9)

        def loss_fn(params, index):
            logits = nnx.merge(graphdef, params, nnx.State(rest))(x[index])
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y[index]).mean()

        def step(carry, index):
            params, state = carry
            loss, grads = jax.value_and_grad(loss_fn)(params, index)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, optimizer.init(params)), order)[1]

    return train


def trainer(name: str, form: str) -> Callable[..., jax.Array]:
    """`(seeds, rates, orders, x, y) -> losses` of all runs.

    Args:
        name: the task, one of `MODELS`.
        form: "vmap", all runs at once, or "scan", one after another: on the first device; "spread_vmap",
            "spread_scan": the same on all devices, each with an equal share of the runs.
    """
    train = training(MODELS[name][1])
    if form == "vmap":
        return jax.jit(jax.vmap(train, (0, 0, 0, None, None)))
    if form == "scan":
        alone = jax.jit(train)
        return lambda seeds, rates, orders, x, y: jnp.stack(
            [alone(*run, x, y) for run in zip(seeds, rates, orders, strict=True)]
        )

    def share(seeds, rates, orders, x, y):
        if form == "spread_vmap":
            return jax.vmap(train, (0, 0, 0, None, None))(seeds, rates, orders, x, y)
        return jax.lax.map(lambda run: train(*run, x, y), (seeds, rates, orders))

    mesh = Mesh(jax.devices(), ("devices",))
    runs, everywhere = PartitionSpec("devices"), PartitionSpec()
    specs = (runs, runs, runs, everywhere, everywhere)
    return jax.jit(jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=runs, check_vma=False))
