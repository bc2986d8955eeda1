"""Gaussian policy and value network with running statistics and PPO's clipped loss, after rl-with-flax-nnx.

Source: horoiwa/rl-with-flax-nnx, 2_ppo_mujoco_unitreego1/ppo.py (RunningStats, SquashedGaussianPolicy,
ValueNN); actor and critic in one module as in google/flax's PPO example. Glue: division by a standard
deviation from nnx.Variables (where, sqrt), a raw Param through softplus, ones_like, squeeze, three outputs;
the loss has log densities, exp of a difference, clip, minimum, and an entropy term, and four arrays as
targets.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Seen(nnx.Module):
    def __init__(self, size):
        self.mean = nnx.Variable(0.2 * jnp.ones(size))
        self.m2 = nnx.Variable(3.0 * jnp.ones(size))
        self.count = nnx.Variable(jnp.array(4.0))

    def deviation(self):
        seen = jnp.sqrt(self.m2[...] / self.count[...]) + 1e-8
        return jnp.where(self.count[...] > 0, seen, jnp.ones_like(self.mean[...]))


class ActorCritic(nnx.Module):
    def __init__(self, size, actions, rngs):
        orthogonal = nnx.initializers.orthogonal()
        self.seen = Seen(size)
        self.act_a = nnx.Linear(size, 8, kernel_init=orthogonal, rngs=rngs)
        self.act_b = nnx.Linear(8, 8, kernel_init=orthogonal, rngs=rngs)
        self.mu = nnx.Linear(8, actions, rngs=rngs)
        self.log_std = nnx.Param(jnp.zeros(actions))
        self.judge_a = nnx.Linear(size, 8, rngs=rngs)
        self.judge_b = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, seen):
        x = (seen - self.seen.mean[...]) / self.seen.deviation()
        mu = self.mu(nnx.silu(self.act_b(nnx.silu(self.act_a(x)))))
        std = (nnx.softplus(self.log_std[...]) + 0.01) * jnp.ones_like(mu)
        return mu, std, self.judge_b(nnx.silu(self.judge_a(x))).squeeze(-1)


def loss_fn(mu, std, value, action, old_log_p, advantage, returns):
    log_p = -0.5 * (jnp.square((action - mu) / std) + jnp.log(2 * jnp.pi * std**2)).sum(axis=-1)
    log_p = log_p - 2.0 * (jnp.log(2.0) - action - jax.nn.softplus(-2.0 * action)).sum(axis=-1)
    ratio = jnp.exp(log_p - old_log_p)
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
    entropy = 0.5 * (1 + jnp.log(2 * jnp.pi * std**2)).sum(axis=-1)
    return -jnp.mean(surrogate) + 0.5 * jnp.mean((value - returns) ** 2) - 0.01 * jnp.mean(entropy)


def make():
    data = np.random.default_rng(0)
    x = data.normal(size=(6, 5)).astype("float32")
    action = data.normal(size=(6, 2)).astype("float32")
    others = [data.normal(size=6).astype("float32") for _ in range(3)]
    others[0] = others[0] - 4
    return ActorCritic(5, 2, nnx.Rngs(0)), loss_fn, x, (action, *others)
