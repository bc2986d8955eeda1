"""Learning-rate schedules: Optax's, as functions of the number of steps, with peak 1.

Each is a multiple of its peak, so that one table serves every learning rate.
"""

import jax
import numpy as np
import optax
from jaxtyping import Float


def constant(steps: int) -> optax.Schedule:
    """1 at every step."""
    return optax.constant_schedule(1.0)


def step(steps: int, *, factor: float = 0.1) -> optax.Schedule:
    """Times `factor` at one half and again at three quarters of the training (He et al. 2016)."""
    return optax.piecewise_constant_schedule(1.0, {steps // 2: factor, steps * 3 // 4: factor})


def exponential(steps: int, *, final: float = 0.01) -> optax.Schedule:
    """final^(t / steps): from 1 to `final` by the same factor at every step."""
    return optax.exponential_decay(1.0, transition_steps=steps, decay_rate=final)


def cosine(steps: int) -> optax.Schedule:
    """(1 + cos(pi t / steps)) / 2: from 1 to 0 (Loshchilov and Hutter 2017)."""
    return optax.cosine_decay_schedule(1.0, decay_steps=steps)


def warmup_cosine(steps: int, *, warmup: float = 0.1) -> optax.Schedule:
    """Linear from 1 / n to 1 over the first `warmup` of the training, n steps, then cosine to 0.

    (Goyal et al. 2017; Loshchilov and Hutter 2017.)
    """
    rising = max(1, round(warmup * steps))
    return optax.warmup_cosine_decay_schedule(
        1 / rising, 1.0, warmup_steps=rising, decay_steps=max(steps, rising + 1)
    )


def table(schedule: optax.Schedule, steps: int) -> Float[np.ndarray, " steps"]:
    """The schedule's value at each step, so that it enters a compiled program as numbers."""
    return np.asarray(jax.vmap(schedule)(np.arange(steps)), np.float32)
