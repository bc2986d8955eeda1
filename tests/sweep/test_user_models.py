"""Models as users of Flax build them, as tasks: trained in a sweep, verified and explained as they are.

The ten models are those of `tests/chainrule/user_models`; one of them here, all with `scripts/test --full`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpresearch as bp
from bpresearch import optim, sweep, verify
from bpresearch.functional import as_inputs
from bpresearch.optim import schedules
from bpresearch.paths import format_path
from tests.user_models import load, some

pytestmark = [
    pytest.mark.usefixtures("users_ranks"),
    pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning"),
]

NAMES = some("pinn")


def task_of(name):
    """The task that the file's user would write: examples are rows, where inputs and targets have as many;
    otherwise, as for a graph or an equation, there is one."""
    module = load(name)
    _, loss_fn, *batch = module.make()
    batch = jax.tree.map(np.asarray, tuple(batch))
    rows = len({leaf.shape[0] for leaf in jax.tree.leaves(batch)}) == 1
    examples = batch if rows else jax.tree.map(lambda leaf: leaf[None], batch)

    def model(*, rngs):
        return module.make()[0]

    def loss(model, batch):
        x, y = batch if rows else jax.tree.map(lambda leaf: leaf[0], batch)
        values = loss_fn(*as_inputs(model(*as_inputs(x))), *as_inputs(y))
        return jnp.mean(values)

    return sweep.Task({"train": examples, "valid": examples, "test": examples}, model, loss, name=name)


@pytest.mark.parametrize("name", NAMES)
def test_a_users_model_is_trained_verified_and_explained(name):
    task = task_of(name)
    axes = sweep.grid(
        optimizer=optim.adam,
        schedule=schedules.cosine,
        lr=[1e-3, 1e-2],
        batch_size=task.count,
        seed=0,
        steps=30,
    )
    found = sweep.run(task, axes, quiet=True)
    assert np.isfinite(found.train_loss).all() and np.isfinite(found.test_loss).all()
    assert found.train_loss[:, -5:].mean() < found.train_loss[:, :5].mean()
    report = verify.loss(task.loss, task.model(rngs=None), task.parts["train"])
    assert report.passed, str(report)
    path, leaf = jax.tree.leaves_with_path(bp.functional.split(task.model(rngs=None))[1])[0]
    weight = f"{format_path(tuple(entry.key for entry in path))}[{','.join('0' * leaf.ndim)}]"
    explained = bp.explain(
        task.model(rngs=None), bp.functional.TrainingLoss(task.loss), (), task.parts["train"], weight
    )
    assert explained.agrees, str(explained)
