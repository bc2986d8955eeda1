"""The other side of scripts/benchmark.py: training loops in Python, as the frameworks' tutorials write them.

Called as `benchmark_loops.py FRAMEWORK TASK BATCH STEPS THREADS`, FRAMEWORK being `nnx` or `torch`. Prints
"ready" when warm and then, for every line it reads, trains STEPS steps and prints steps a second. Prints
"missing" where the framework is not installed. JAX runs with its own defaults here. Both use a GPU if there
is one and JAX_PLATFORMS does not say "cpu".
"""

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

    if name in WIDTHS:
        sizes = WIDTHS[name]
        layers = []
        for before, after in itertools.pairwise(sizes):
            layers += [nnx.Linear(before, after, rngs=nnx.Rngs(0)), nnx.relu]
        model = nnx.Sequential(*layers[:-1])
    elif name == "mnist1d.residual_mlp":

        class ResidualMLP(nnx.Module):
            def __init__(self, rngs):
                self.first = nnx.Linear(40, 100, rngs=rngs)
                self.second = nnx.Linear(100, 100, rngs=rngs)
                self.last = nnx.Linear(100, 10, rngs=rngs)

            def __call__(self, x):
                h = nnx.relu(self.first(x))
                h = h + nnx.relu(self.second(h))
                return self.last(h)

        model = ResidualMLP(nnx.Rngs(0))
    elif name == "mnist1d.bidirectional_gru":
        forward, backward = (nnx.RNN(nnx.GRUCell(1, 6, rngs=nnx.Rngs(0))) for _ in range(2))
        flatten = lambda x: x.reshape(len(x), -1)  # noqa: E731
        recurrence = nnx.Bidirectional(forward, backward)
        model = nnx.Sequential(recurrence, flatten, nnx.Linear(480, 10, rngs=nnx.Rngs(0)))
    else:
        layers = []
        for before, kernel in ((1, 5), (25, 3), (25, 3)):
            layers += [
                nnx.Conv(before, 25, (kernel,), strides=2, padding=1, rngs=nnx.Rngs(0)),
                nnx.relu,
            ]
        flatten = lambda x: x.reshape(len(x), -1)  # noqa: E731
        model = nnx.Sequential(*layers, flatten, nnx.Linear(125, 10, rngs=nnx.Rngs(0)))
    optimizer = nnx.Optimizer(model, optax.sgd(1e-2, momentum=0.9), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(0), (4000, *SHAPES[name]))
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
    batch, steps, threads = (int(word) for word in sys.argv[3:])
    try:
        train = {"nnx": nnx_loop, "torch": torch_loop}[framework](name, batch, threads)
    except ImportError:
        print("missing", flush=True)
        return
    order = np.random.default_rng(0).integers(0, 4000, (steps, batch))
    train(order[:50])
    print("ready", flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        train(order)
        print(steps / (time.perf_counter() - begun), flush=True)
    os._exit(0)  # the parent has gone; nothing is left to be tidied up


if __name__ == "__main__":
    main()
