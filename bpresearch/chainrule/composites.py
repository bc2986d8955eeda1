"""Rules over rules: composites have no derivative of their own beyond the chain rule itself."""

from flax import nnx

from bpresearch.chainrule.engine import backward, forward
from bpresearch.chainrule.registry import rule, rule_for
from bpresearch.functional import as_inputs
from bpresearch.models.combinators import Masked, Residual, add_channel, flatten


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
        norm, options = rule_for(layer.norm, ("norm",))
        y, residuals = norm.forward(layer.norm, x, mask=mask, **options)
        return y, residuals

    def backward(layer, residuals, y_bar):
        norm, options = rule_for(layer.norm, ("norm",))
        grads, x_bar = norm.backward(layer.norm, residuals, y_bar, **options)
        return {"norm": grads}, (x_bar, None)


@rule(flatten)
class FlattenRule:
    """y is x with its feature axes in one.      x_bar is y_bar in the shape of x"""

    def forward(layer, x):
        return flatten(x), x

    def backward(layer, x, y_bar):
        return {}, y_bar.reshape(x.shape)


@rule(add_channel)
class AddChannelRule:
    """y is x with one more axis, of length one.      x_bar is y_bar without it"""

    def forward(layer, x):
        return add_channel(x), x

    def backward(layer, x, y_bar):
        return {}, y_bar[..., 0]
