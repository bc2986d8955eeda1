"""What the tests of oracles share: questions about functions whose derivative is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch.verify.directions import choose_directions
from bpresearch.verify.oracles import ask
from bpresearch.verify.question import Derivative, Question


@pytest.fixture
def question():
    """`question(function, gradient, point, ...)`: of a function of a point and a gradient by hand."""

    def make(function, gradient, point, y_bar=None, missed=1e-6, every=64, twin=True, found=None):
        point = [jnp.asarray(leaf) for leaf in point]
        derivative = Derivative(
            lambda point, others: function(point),
            lambda point, others, y_bar: gradient(point, y_bar),
            (lambda point, others: function(point)) if twin else None,
            lambda point, others: function(point),
        )
        outputs = jax.eval_shape(function, point)
        y_bar = [jnp.ones(y.shape, y.dtype) for y in outputs] if y_bar is None else y_bar
        directions = choose_directions([leaf.size for leaf in point], missed, every)
        names = [f"arg{i}" for i in range(len(point))]
        eps = float(jnp.finfo(point[0].dtype).eps)
        made = Question(derivative, point, (), names, [y_bar, y_bar], directions, 0, eps)
        found = [np.asarray(g) for g in (gradient(point, y_bar) if found is None else found)]
        return made.with_answer(found, float(derivative.scalar(point, (), y_bar)))

    return make


@pytest.fixture
def estimated():
    """`estimated(oracle, question)`: what an oracle says of each leaf, and the notes."""

    def run(oracle, question):
        answers, notes = ask(question, [oracle])
        if oracle.name not in answers:
            return [], notes
        return list(oracle.estimates(question, *answers[oracle.name])), notes

    return run
