"""Complex step: a derivative from one evaluation at a complex point, without cancellation.

For an analytic function that is real on the real line, f(t + i h d) = f(t) + i h f'(t; d) - h^2 ..., so

    f'(t; d) = Im f(t + i h d) / h + O(h^2),

and since nothing is subtracted, h can be 1e-20: the result is exact to rounding (Squire and Trapp 1998).

Functions that are not analytic (|x|, a comparison of complex numbers, a cast to real) give wrong values
without complaint. They betray themselves off the imaginary axis: for an analytic function the quotient
(f(t + h z d) - f(t)) / (h z) is the same in every direction z of the complex plane. Two are tried, one in
each half plane, z = (1 + i) / sqrt(2) and z = (-1 + i) / sqrt(2), since a kink shows on one side only. Where
they differ, this oracle is silent.
"""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from bpresearch.verify.oracles import Answer, Body, Measures
from bpresearch.verify.oracles.forward_mode import along_directions, inner
from bpresearch.verify.plain import NotOfValuesError, holding_constants, without_custom_rules
from bpresearch.verify.question import NotAskedError, Question, product
from bpresearch.verify.verdict import Estimates

name = "complex step"
TINY, SMALL = 1e-20, 1e-7
SLANTS = (1 + 1j) / np.sqrt(2), (-1 + 1j) / np.sqrt(2)


def body(question: Question) -> Body:
    """Both derivatives in a direction, and whether the function looks analytic there."""
    derivative = question.derivative
    if question.eps > np.finfo(np.float64).eps:
        raise NotAskedError("it takes float64")

    def at(point, others, y_bars):
        def scalar(point):
            outputs = without_custom_rules(lambda point: derivative.values(point, others))(point)
            return product(y_bars[0], outputs, outputs)

        try:
            function = holding_constants(scalar, point)
        except NotOfValuesError as error:
            raise NotAskedError(str(error)) from error
        centre, gradient = function(point), derivative.gradient(point, others, y_bars[0])

        def derivatives(d, leaf, number):
            def moved(step):
                return function([x + step * e for x, e in zip(point, d, strict=True)])

            value = jnp.imag(moved(1j * TINY)) / TINY
            quotients = jnp.stack([(moved(SMALL * z) - centre) / (SMALL * z) for z in SLANTS])
            rounding = question.eps * jnp.abs(centre) / SMALL
            off = jnp.maximum(jnp.abs(jnp.imag(quotients)), jnp.abs(jnp.real(quotients) - value))
            analytic = jnp.all(off <= 100 * rounding + 1e-4 * jnp.abs(quotients))
            return {"found": inner(gradient, d), "values": value, "analytic": analytic}

        return derivatives

    return at


def estimates(question: Question, answer: Answer, measures: Measures) -> Iterator[Estimates]:
    """One for each leaf; silent along directions in which the function is not analytic."""
    uncertainty = np.where(answer["analytic"], 0.0, np.inf)
    return along_directions(name, question, answer, measures, uncertainty)
