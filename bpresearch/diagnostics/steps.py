"""What the next step does, against what its slope promises."""

import optax

from bpresearch.diagnostics.batch import loss_of
from bpresearch.train import Measured, Moment


def step_fidelity(moment: Moment) -> dict[str, Measured]:
    """How the next step's decrease of its mini-batch loss L compares with what the slope promises.

    `predicted_decrease` is -g.d, `observed_decrease` L(w) - L(w + d), and `step_fidelity` their ratio,
    observed over predicted: 1 where the loss is linear along the step, 1/2 at its minimum along the step if
    it is quadratic, negative where the step goes uphill.
    """
    step = moment.next
    predicted = -optax.tree.vdot(step.gradient, step.update)
    after = loss_of(moment, moment.batch)(optax.apply_updates(moment.run.params, step.update))
    observed = step.loss - after
    return {
        "predicted_decrease": Measured(predicted),
        "observed_decrease": Measured(observed),
        "step_fidelity": Measured(observed / predicted),
    }
