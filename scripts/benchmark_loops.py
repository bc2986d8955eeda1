"""The other side of scripts/benchmark.py: the ways to train that one would write otherwise.

Called as `benchmark_loops.py FRAMEWORK TASK BATCH STEPS THREADS RUNS`. FRAMEWORK is `nnx`, `torch` or
`torch_compile`: a loop in Python over the steps of one run, as the frameworks' tutorials write it;
`torch_vmap`: all runs by `torch.func`; or `hundred`: all runs by the hundred lines of `hundred_lines.py`.
Prints "ready" when warm and then, for every line it reads, trains STEPS steps (of each run) and prints steps
a second; to `hundred` the line says in which form. Prints "missing" where the framework is not installed, or
has no way to train the task so. JAX runs with its own defaults here, but that `hundred` with THREADS above 1
has so many devices. All use a GPU if there is one and JAX_PLATFORMS does not say "cpu".
"""

import copy
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


def torch_model(name):
    """The model of a task in PyTorch, and the shape of an example."""
    from torch import nn

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
    if name == "mnist1d.residual_mlp":
        return ResidualMLP(), shape
    if name == "mnist1d.bidirectional_gru":
        return BidirectionalGRU(), shape
    layers = []
    if name in WIDTHS:
        for before, after in itertools.pairwise(WIDTHS[name]):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers[:-1]), shape
    for before, kernel in ((1, 5), (25, 3), (25, 3)):
        layers += [nn.Conv1d(before, 25, kernel, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(125, 10)), shape[::-1]


def torch_data(shape, threads):
    """Examples on the device that is used, after settling how many threads compute."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available() and os.environ.get("JAX_PLATFORMS") != "cpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    return torch.randn(4000, *shape, device=device), torch.arange(4000, device=device) % 10


def torch_loop(name, batch, threads, compiled=False):
    """A loop over steps, eager or with `torch.compile`; returns `order -> None`, which trains on these."""
    import torch

    model, shape = torch_model(name)
    x, y = torch_data(shape, threads)
    model.to(x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    loss_fn = torch.nn.CrossEntropyLoss()
    forward = torch.compile(model) if compiled else model

    def train(order):
        for index in torch.from_numpy(order).to(x.device):
            optimizer.zero_grad()
            loss_fn(forward(x[index]), y[index]).backward()
            optimizer.step()
        if x.is_cuda:
            torch.cuda.synchronize()

    return train


def torch_vmap(name, batch, threads, runs):
    """All runs at once by `torch.func`; returns `orders -> None`, which trains all on those examples."""
    import torch
    from torch.func import functional_call, grad, stack_module_state, vmap

    base, shape = torch_model(name)
    x, y = torch_data(shape, threads)
    base.to(x.device)
    params, buffers = stack_module_state([copy.deepcopy(base) for _ in range(runs)])
    params = {key: value.detach() for key, value in params.items()}
    momentum = {key: torch.zeros_like(value) for key, value in params.items()}

    def loss(params, buffers, x, y):
        return torch.nn.functional.cross_entropy(functional_call(base, (params, buffers), (x,)), y)

    gradients = vmap(grad(loss))

    def train(orders):
        for index in torch.from_numpy(orders).to(x.device).transpose(0, 1):
            for key, value in gradients(params, buffers, x[index], y[index]).items():
                momentum[key].mul_(0.9).add_(value)
                params[key].sub_(momentum[key], alpha=1e-2)
        if x.is_cuda:
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
        elif framework == "torch_vmap":
            every = torch_vmap(name, batch, threads, runs)
            train = lambda form, orders: every(orders)  # noqa: E731
            order = np.random.default_rng(0).integers(0, 4000, (runs, steps, batch))
            every(order[:, :2])
        else:
            is_nnx = framework == "nnx"
            of_torch = functools.partial(torch_loop, compiled=framework == "torch_compile")
            loop = (nnx_loop if is_nnx else of_torch)(name, batch, threads)
            train, runs = lambda form, order: loop(order), 1
            order = np.random.default_rng(0).integers(0, 4000, (steps, batch))
            loop(order[:50])
    except ImportError:
        print("missing", flush=True)
        return
    except (NotImplementedError, RuntimeError) as error:  # no compiler; a layer without vmap
        if framework not in ("torch_compile", "torch_vmap"):
            raise
        print(f"{framework} cannot train {name}: {str(error).splitlines()[0][:200]}", file=sys.stderr)
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
