"""Rules over rules: composites have no derivative of their own beyond the chain rule itself."""

import itertools

import jax.numpy as jnp
from flax import nnx
from jax import lax

from bpresearch.chainrule.engine import backward, forward, inside, own_rule
from bpresearch.chainrule.registry import rule
from bpresearch.functional import as_inputs
from bpresearch.models.combinators import LayerStack, Masked, Parallel, Residual, add, concatenate


@rule(nnx.Sequential)
class SequentialRule:
    """y = f_n(... f_2(f_1(x))).      Each layer's x_bar is the y_bar of the layer before it."""

    def forward(layer, *inputs):
        outputs = inputs if len(inputs) > 1 else inputs[0]
        residuals = []
        for index, child in enumerate(layer.layers):
            outputs, kept = forward(child, *as_inputs(outputs), name=("layers", index))
            residuals.append(kept)
        return outputs, residuals

    def backward(layer, residuals, y_bar):
        grads = {}
        for index, child in reversed(list(enumerate(layer.layers))):
            grads[index], y_bar = backward(child, residuals[index], y_bar, name=("layers", index))
        return {"layers": grads}, y_bar


@rule(Residual)
class ResidualRule:
    """y = x + f(x).      x_bar = y_bar + f's x_bar: the sum of both paths"""

    def forward(layer, x):
        outputs, residuals = forward(layer.branch, x, name=("branch",))
        return x + outputs, residuals

    def backward(layer, residuals, y_bar):
        grads, x_bar = backward(layer.branch, residuals, y_bar, name=("branch",))
        return {"branch": grads}, y_bar + x_bar


@rule(Masked)
class MaskedRule:
    """y = norm(x, mask).      The norm's own rule, given the mask, which has no cotangent"""

    def forward(layer, x, mask):
        with inside("norm"):
            return own_rule(layer.norm)[0].forward(layer.norm, x, mask=mask)

    def backward(layer, residuals, y_bar):
        with inside("norm"):
            grads, x_bar = own_rule(layer.norm)[0].backward(layer.norm, residuals, y_bar)
        return {"norm": grads}, (x_bar, None)


@rule(Parallel)
class ParallelRule:
    """y = merge(f_1(x), f_2(x), ...).      x_bar is the sum of the branches' x_bar"""

    def forward(layer, x):
        branches = list(enumerate(layer.branches))
        pairs = [forward(branch, x, name=("branches", index)) for index, branch in branches]
        outputs, residuals = zip(*pairs, strict=True)
        y, of_merge = forward(layer.merge, *outputs, name=("merge",))
        return y, (residuals, of_merge)

    def backward(layer, residuals, y_bar):
        residuals, of_merge = residuals
        _, outputs_bar = backward(layer.merge, of_merge, y_bar, name=("merge",))
        outputs_bar = outputs_bar if len(residuals) > 1 else (outputs_bar,)
        grads, x_bar = {}, None
        for index, branch in enumerate(layer.branches):
            name = ("branches", index)
            grads[index], part = backward(branch, residuals[index], outputs_bar[index], name=name)
            x_bar = part if x_bar is None else x_bar + part
        return {"branches": grads}, x_bar


@rule(concatenate, nnx.Bidirectional.merge_fn)
class ConcatenateRule:
    """y is the parts side by side on the last axis.      y_bar is cut where they meet"""

    def forward(function, *parts):
        return function(*parts), parts

    def backward(function, parts, y_bar):
        ends = list(itertools.accumulate(part.shape[-1] for part in parts))
        bars = jnp.split(y_bar, ends[:-1], axis=-1)
        bars = tuple(bar.astype(part.dtype) for bar, part in zip(bars, parts, strict=True))
        return {}, bars if len(bars) > 1 else bars[0]


@rule(add)
class AddRule:
    """y = a + b + ...      a_bar = b_bar = ... = y_bar"""

    def forward(function, *parts):
        return function(*parts), parts

    def backward(function, parts, y_bar):
        bars = tuple(y_bar.astype(part.dtype) for part in parts)
        return {}, bars if len(bars) > 1 else bars[0]


@rule(LayerStack)
class LayerStackRule:
    """y = f_n(... f_2(f_1(x))), each f the layer with its own slice of the stacked parameters.

    As `SequentialRule`, by two scans: forward stacks the residuals of all layers, and backward meets them in
    reverse and stacks the gradients.
    """

    def forward(layer, x):
        graphdef, params, state = nnx.split(layer.layer, nnx.Param, ...)

        def step(x, variables):
            one = nnx.merge(graphdef, *variables)
            y, residuals = forward(one, x, name=("layer",))
            return y, (residuals, nnx.state(one, nnx.Not(nnx.Param)))

        y, (residuals, state) = lax.scan(step, x, (params, state))
        nnx.update(layer.layer, state)
        return y, residuals

    def backward(layer, residuals, y_bar):
        graphdef, params, state = nnx.split(layer.layer, nnx.Param, ...)

        def step(y_bar, slices):
            variables, kept = slices
            grads, x_bar = backward(nnx.merge(graphdef, *variables), kept, y_bar, name=("layer",))
            return x_bar, grads

        x_bar, grads = lax.scan(step, y_bar, ((params, state), residuals), reverse=True)
        return {"layer": grads}, x_bar
