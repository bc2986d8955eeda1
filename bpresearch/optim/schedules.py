"""Schedules: Optax's, as functions of the number of steps, with peak 1.

Each is a multiple of its peak, so that one table serves every learning rate; other hyper-parameters, such
as the momentum, are scheduled in the same way. t counts the steps from 0.
"""

import functools
import inspect
import itertools
from collections.abc import Callable

import jax
import numpy as np
import optax
from jaxtyping import Float

Schedule = Callable[..., optax.Schedule]
"""`(steps, **options) -> (step -> multiple of the peak)`."""

__all__ = [
    "constant",
    "cosine",
    "cosine_onecycle",
    "cosine_restarts",
    "exponential",
    "inverse_sqrt",
    "linear",
    "linear_onecycle",
    "momentum_onecycle",
    "piecewise_cosine",
    "piecewise_linear",
    "polynomial",
    "step",
    "warmup_constant",
    "warmup_cosine",
    "warmup_exponential",
    "warmup_stable_decay",
]


def constant(steps: int) -> optax.Schedule:
    """1 at every step."""
    return optax.constant_schedule(1.0)


def step(steps: int, *, factor: float = 0.1) -> optax.Schedule:
    """Times `factor` at one half and again at three quarters of the training (He et al. 2016)."""
    return optax.piecewise_constant_schedule(1.0, {steps // 2: factor, steps * 3 // 4: factor})


def piecewise_linear(steps: int, *, factor: float = 0.1) -> optax.Schedule:
    """Straight lines from 1 to `factor` at one half of the training and to `factor`^2 at its end."""
    return _interpolated("linear", steps, factor)


def piecewise_cosine(steps: int, *, factor: float = 0.1) -> optax.Schedule:
    """Half cosines from 1 to `factor` at one half of the training and to `factor`^2 at its end."""
    return _interpolated("cosine", steps, factor)


def linear(steps: int) -> optax.Schedule:
    """1 - t / steps."""
    return optax.linear_schedule(1.0, 0.0, steps)


def polynomial(steps: int, *, power: float = 2.0) -> optax.Schedule:
    """(1 - t / steps)^power."""
    return optax.polynomial_schedule(1.0, 0.0, power, steps)


def exponential(steps: int, *, final: float = 0.01) -> optax.Schedule:
    """final^(t / steps): from 1 to `final` by the same factor at every step."""
    return optax.exponential_decay(1.0, transition_steps=steps, decay_rate=final)


def cosine(steps: int) -> optax.Schedule:
    """(1 + cos(pi t / steps)) / 2: from 1 to 0 (Loshchilov and Hutter 2017)."""
    return optax.cosine_decay_schedule(1.0, decay_steps=steps)


def cosine_restarts(steps: int, *, cycles: int = 3) -> optax.Schedule:
    """`cosine` again and again, each cycle twice as long as the one before (Loshchilov and Hutter 2017)."""
    ends = [round(steps * (2**i - 1) / (2**cycles - 1)) for i in range(cycles + 1)]
    lengths = [max(1, end - begin) for begin, end in itertools.pairwise(ends)]
    return optax.sgdr_schedule(
        [
            {"init_value": 1.0, "peak_value": 1.0, "warmup_steps": 0, "decay_steps": length}
            for length in lengths
        ]
    )


def cosine_onecycle(steps: int, *, warmup: float = 0.3, start: float = 0.04) -> optax.Schedule:
    """Half cosines from `start` to 1 over the first `warmup` of the training, then to `start` / 10^4.

    (Smith and Topin 2019.)
    """
    return optax.cosine_onecycle_schedule(max(steps, 2), 1.0, _inside(warmup, steps), 1 / start, 1e4)


def linear_onecycle(steps: int, *, warmup: float = 0.3, start: float = 0.04) -> optax.Schedule:
    """Straight lines: from `start` up to 1 and as fast down again, then to `start` / 10^4.

    `warmup` is the part of the training that goes up (Smith and Topin 2019).
    """
    steps = max(steps, 4)
    up = max(1, round(min(warmup, 0.45) * steps))
    return optax.linear_onecycle_schedule(
        steps, 1.0, (up + 0.5) / steps, (2 * up + 0.5) / steps, 1 / start, 1e4
    )


def momentum_onecycle(steps: int, *, warmup: float = 0.3, lowest: float = 0.9) -> optax.Schedule:
    """For the momentum: down to `lowest` while `cosine_onecycle` raises the learning rate, then up again.

    With a momentum of 0.95 it goes down to 0.855 (Smith 2018).
    """
    rise = cosine_onecycle(steps, warmup=warmup)
    return lambda t: 1 - (1 - lowest) * rise(t)


def inverse_sqrt(steps: int, *, warmup: float = 0.1) -> optax.Schedule:
    """Linear from 1 / n to 1 over the first `warmup` of the training, n steps, then sqrt(n / t).

    (Vaswani et al. 2017.)
    """
    rising = max(1, round(warmup * steps))
    falling = lambda t: (rising / (t + rising)) ** 0.5  # noqa: E731
    return _after_rising(rising, falling)


def warmup_constant(steps: int, *, warmup: float = 0.1) -> optax.Schedule:
    """Linear from 1 / n to 1 over the first `warmup` of the training, n steps, then 1 (Goyal et al. 2017)."""
    rising = max(1, round(warmup * steps))
    return optax.warmup_constant_schedule(1 / rising, 1.0, rising)


def warmup_cosine(steps: int, *, warmup: float = 0.1) -> optax.Schedule:
    """Linear from 1 / n to 1 over the first `warmup` of the training, n steps, then cosine to 0.

    (Goyal et al. 2017; Loshchilov and Hutter 2017.)
    """
    rising = max(1, round(warmup * steps))
    return optax.warmup_cosine_decay_schedule(
        1 / rising, 1.0, warmup_steps=rising, decay_steps=max(steps, rising + 1)
    )


def warmup_exponential(steps: int, *, warmup: float = 0.1, final: float = 0.01) -> optax.Schedule:
    """Linear from 1 / n to 1 over the first `warmup` of the training, n steps, then exponential
    to `final`."""
    rising = max(1, round(warmup * steps))
    return optax.warmup_exponential_decay_schedule(
        1 / rising, 1.0, rising, max(1, steps - rising), decay_rate=final
    )


def warmup_stable_decay(steps: int, *, warmup: float = 0.1, decay: float = 0.2) -> optax.Schedule:
    """Linear from 1 / n to 1 over the first `warmup` of the training, n steps; 1; linear to 0 over the last
    `decay` of it (Hu et al. 2024; Hägele et al. 2024)."""
    rising = max(1, round(warmup * steps))
    falling = min(max(1, round(decay * steps)), max(1, steps - rising))
    return _after_rising(rising, optax.linear_schedule(1.0, 0.0, falling, steps - rising - falling))


def warmed(schedule: Schedule, warmup: float | int) -> Schedule:
    """The schedule after a linear rise over the first `warmup` of the training, in [0, 1).

    A schedule with a warm-up of its own takes this one; any other is squeezed into the steps that follow.
    """
    if "warmup" in inspect.signature(schedule).parameters:
        return functools.partial(schedule, warmup=float(warmup))

    def after(steps: int) -> optax.Schedule:
        rising = round(warmup * steps)
        return _after_rising(rising, schedule(steps - rising)) if rising else schedule(steps)

    return after


def table(schedule: optax.Schedule, steps: int) -> Float[np.ndarray, " steps"]:
    """The schedule's value at each step, so that it enters a compiled program as numbers."""
    return np.asarray(jax.vmap(schedule)(np.arange(steps)), np.float32)


def _interpolated(kind: str, steps: int, factor: float) -> optax.Schedule:
    middle = max(1, steps // 2)
    return optax.piecewise_interpolate_schedule(kind, 1.0, {middle: factor, max(steps, middle + 1): factor})


def _after_rising(rising: int, schedule: optax.Schedule) -> optax.Schedule:
    return optax.join_schedules([optax.linear_schedule(1 / rising, 1.0, rising), schedule], [rising])


def _inside(fraction: float, steps: int) -> float:
    """The fraction, moved so that at least one step lies on either side of it."""
    steps = max(steps, 2)
    return (min(max(1, round(fraction * steps)), steps - 1) + 0.5) / steps
