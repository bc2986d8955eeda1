"""Low-rank adaptation (Hu et al. 2021): the product of two thin matrices, alone and beside a linear layer."""

from flax import nnx

from bpresearch.chainrule.registry import DoesNotApply, rule
from bpresearch.chainrule.rules.layers.linear import LinearRule, sum_over_rows


@rule(nnx.LoRA)
class LoRARule:
    """y = h B,   h = x A.    h_bar = y_bar B^T,   B_bar = h^T y_bar,   A_bar = x^T h_bar,   x_bar = h_bar A^T

    x: (..., in), A: (in, rank), B: (rank, out). A and B are `lora_a` and `lora_b`. With a base module beside
    them, or where `lora_param_type` makes them something other than parameters, the layer is opened.
    """

    def forward(layer, x):
        if layer.base_module is not None:
            raise DoesNotApply("a base module is given")
        if not isinstance(layer.lora_a, nnx.Param):
            raise DoesNotApply("the matrices are no parameters")
        x_cast, a, b = layer.promote_dtype((x, layer.lora_a[...], layer.lora_b[...]), dtype=layer.dtype)
        h = x_cast @ a
        return h @ b, (x, h)

    def backward(layer, residuals, y_bar):
        x, h = residuals
        x_cast, a, b = layer.promote_dtype((x, layer.lora_a[...], layer.lora_b[...]), dtype=layer.dtype)
        y_bar = y_bar.astype(h.dtype)
        h_bar = y_bar @ b.T
        grads = {"lora_a": sum_over_rows(x_cast, h_bar), "lora_b": sum_over_rows(h, y_bar)}
        return grads, (h_bar @ a.T).astype(x.dtype)


@rule(nnx.LoRALinear)
class LoRALinearRule:
    """y = x W + b + lora(x).      x_bar is the sum of both paths: `LinearRule`'s and `LoRARule`'s"""

    def forward(layer, x):
        y_lora, of_lora = LoRARule.forward(layer.lora, x)
        return nnx.Linear.__call__(layer, x) + y_lora, (x, of_lora)

    def backward(layer, residuals, y_bar):
        x, of_lora = residuals
        grads, x_bar = LinearRule.backward(layer, x, y_bar)
        lora_grads, lora_x_bar = LoRARule.backward(layer.lora, of_lora, y_bar)
        return {**grads, "lora": lora_grads}, x_bar + lora_x_bar
