"""Two LoRA layers, after flaxdocs' fine-tuning guide.

Source: mlnomadpy/flaxdocs, examples/adaptation/lora_finetuning.py (LoRAMLP); kiansierra/flax-peft does the
same. Glue: none but an own __call__ of one line; adapters are nnx.LoRAParam (a subclass of Param). Squared
error written out.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx


class Adapted(nnx.Module):
    def __init__(self, before, hidden, after, rank, rngs):
        self.one = nnx.LoRALinear(before, hidden, lora_rank=rank, rngs=rngs)
        self.two = nnx.LoRALinear(hidden, after, lora_rank=rank, rngs=rngs)

    def __call__(self, x):
        return self.two(nnx.relu(self.one(x)))


def loss_fn(predicted, y):
    return jnp.mean((predicted - y) ** 2)


def make():
    data = np.random.default_rng(0)
    x, y = data.normal(size=(6, 5)).astype("float32"), data.normal(size=(6, 3)).astype("float32")
    return Adapted(5, 8, 3, 2, nnx.Rngs(0)), loss_fn, x, y
