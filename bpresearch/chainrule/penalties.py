"""Weight decay as a term of the loss: rules whose input is the dict of a model's parameters."""

import jax
import jax.numpy as jnp

from bpresearch.chainrule.registry import rule
from bpresearch.models.penalties import decaying, l1_penalty, l2_penalty


def of_parameters(function, derivative):
    """Declares the rule of a sum over the parameters w that decay:   w_bar = weight f'(w) l_bar."""

    @rule(function)
    class OfParametersRule:
        def forward(penalty, params, **options):
            return function(params, **options), params

        def backward(penalty, params, value_bar, weight=1.0, only=None):
            chosen = {path for path, _ in decaying(params, only)}

            def bar(path, w):
                return (weight * derivative(w) * value_bar).astype(w.dtype) if path in chosen else 0 * w

            return {}, jax.tree.map_with_path(bar, params)


of_parameters(l2_penalty, lambda w: w)
of_parameters(l1_penalty, jnp.sign)  # 0 at the kink
