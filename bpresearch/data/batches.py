"""The order in which a training meets its examples."""

import numpy as np
from jaxtyping import Int


def shuffled_batches(
    seed: int, examples: int, batch_size: int, first_step: int, steps: int
) -> Int[np.ndarray, "steps batch"]:
    """Which examples each step takes: every epoch is a new permutation, cut into batches.

    Sampling is without replacement within an epoch; the examples left over at its end, fewer than a
    batch, are dropped. The order depends on the seed and the number of the epoch alone, so a run meets the
    same batches whatever its optimizer and wherever it is resumed.

    Args:
        seed: the run's seed.
        examples: number of training examples.
        batch_size: examples in a batch, at most `examples`.
        first_step: number, from 1, of the first step.
        steps: number of steps.
    """
    per_epoch = examples // batch_size
    first = first_step - 1
    epochs = range(first // per_epoch, (first + steps - 1) // per_epoch + 1)
    order = np.concatenate(
        [
            np.random.default_rng([seed, epoch]).permutation(examples)[: per_epoch * batch_size]
            for epoch in epochs
        ]
    )
    skip = first - epochs[0] * per_epoch
    return order.reshape(-1, batch_size)[skip : skip + steps].astype(np.int32)
