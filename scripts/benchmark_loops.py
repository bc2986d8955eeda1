"""The other side of scripts/benchmark.py: the ways to train that one would write otherwise.

Called as `benchmark_loops.py FRAMEWORK TASK BATCH STEPS THREADS RUNS`. FRAMEWORK is `nnx` or `torch`: a loop
in Python over the steps of one run, as the frameworks' tutorials write it; or `hundred`: all runs by the
hundred lines of `hundred_lines.py`. Prints "ready" when warm and then, for every line it reads, trains STEPS
steps (of each run) and prints steps a second; to `hundred` the line says in which form. Prints "missing"
where the framework is not installed. JAX runs with its own defaults here, but that `hundred` with THREADS
above 1 has so many devices. All use a GPU if there is one and JAX_PLATFORMS does not say "cpu".
"""

import functools
import itertools
import os
import sys
import time

import numpy as np

WIDTHS = {"default": (40, 100, 100, 10), "mlp": (64, 128, 128, 10)}
SHAPES = {
    "default": (40,),
    "mlp": (64,),
    "mnist1d.residual_mlp": (40,),
    "mnist1d.cnn": (40, 1),
    "mnist1d.bidirectional_gru": (40, 1),
}


def nnx_loop(name, batch, threads):
    """A step compiled with `nnx.jit`; returns `order -> None`, which trains on those examples."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from hundred_lines import MODELS  # type: ignore[import-not-found]

    shape, build = MODELS[name]
    model = build(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(1e-2, momentum=0.9), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(0), (4000, *shape))
    y = jnp.arange(4000) % 10

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss_fn(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        return loss

    def train(order):
        for index in order:
            loss = step(model, optimizer, x[index], y[index])
        loss.block_until_ready()

    return train


def hundred_lines(name, batch, threads, runs):
    """All runs in compiled programs; returns `(form, order) -> None`, which trains all on those examples."""
    import jax
    import jax.numpy as jnp

    if threads > 1:
        jax.config.update("jax_num_cpu_devices", threads)
    from hundred_lines import MODELS, trainer

    trainers = functools.cache(functools.partial(trainer, name))
    x = jax.random.normal(jax.random.key(0), (4000, *MODELS[name][0]))
    y = jnp.arange(4000) % 10
    seeds, rates = jnp.arange(runs) % 5, jnp.geomspace(1e-3, 1e-2, runs)

    def train(form, orders):
        trainers(form)(seeds, rates, orders, x, y).block_until_ready()

    return train


def torch_loop(name, batch, threads):
    """An eager loop; returns `order -> None`, which trains on those examples."""
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    torch.manual_seed(0)

    class ResidualMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = (
                nn.Linear(40, 100),
                nn.Linear(100, 100),
                nn.Linear(100, 10),
            )

        def forward(self, x):
            h = self.first(x).relu()
            h = h + self.second(h).relu()
            return self.last(h)

    class BidirectionalGRU(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(1, 6, batch_first=True, bidirectional=True)
            self.last = nn.Linear(480, 10)

        def forward(self, x):
            return self.last(self.gru(x)[0].flatten(1))

    shape = SHAPES[name]
    if name in WIDTHS:
        sizes = WIDTHS[name]
        layers = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        model = nn.Sequential(*layers[:-1])
    elif name == "mnist1d.residual_mlp":
        model = ResidualMLP()
    elif name == "mnist1d.bidirectional_gru":
        model = BidirectionalGRU()
    else:
        layers = []
        for before, kernel in ((1, 5), (25, 3), (25, 3)):
            layers += [nn.Conv1d(before, 25, kernel, stride=2, padding=1), nn.ReLU()]
        model, shape = nn.Sequential(*layers, nn.Flatten(), nn.Linear(125, 10)), shape[::-1]
    on_gpu = torch.cuda.is_available() and os.environ.get("JAX_PLATFORMS") != "cpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    model.to(device)
    x, y = torch.randn(4000, *shape, device=device), torch.arange(4000, device=device) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss()

    def train(order):
        for index in torch.from_numpy(order).to(device):
            optimizer.zero_grad()
            loss_fn(model(x[index]), y[index]).backward()
            optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()

    return train


def main():
    framework, name = sys.argv[1:3]
    batch, steps, threads, runs = (int(word) for word in sys.argv[3:])
    try:
        if framework == "hundred":
            runs = -(-runs // threads) * threads  # an equal share for each device
            train = hundred_lines(name, batch, threads, runs)
            forms = ("spread_vmap", "spread_scan") if threads > 1 else ("vmap", "scan")
            seeds = np.arange(runs) % 5  # runs of one seed meet the same batches
            order = np.random.default_rng(0).integers(0, 4000, (5, steps, batch))[seeds]
            for form in forms:  # compiles for this many steps
                train(form, order)
        else:
            one = {"nnx": nnx_loop, "torch": torch_loop}[framework](name, batch, threads)
            train, runs = lambda form, order: one(order), 1
            order = np.random.default_rng(0).integers(0, 4000, (steps, batch))
            one(order[:50])
    except ImportError:
        print("missing", flush=True)
        return
    print("ready", flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        train(line.strip(), order)
        print(runs * steps / (time.perf_counter() - begun), flush=True)
    os._exit(0)  # the parent has gone; nothing is left to be tidied up


if __name__ == "__main__":
    main()
