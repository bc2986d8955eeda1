"""Low-rank adaptation (Hu et al. 2021): a trained map, and the product of two thin matrices beside it."""

from flax import nnx

from bpresearch.chainrule.engine import backward, forward
from bpresearch.chainrule.linear import LinearRule, sum_over_rows
from bpresearch.chainrule.registry import rule


@rule(nnx.LoRA)
class LoRARule:
    """y = h B + base(x),   h = x A.      The base by its own rule, if there is one

    h_bar = y_bar B^T,   A_bar = x^T h_bar,   B_bar = h^T y_bar,   x_bar = h_bar A^T + base's x_bar

    x: (..., in), A: (in, rank), B: (rank, out). A and B are `lora_a` and `lora_b`; where `lora_param_type`
    makes them something other than parameters, they have no gradient.
    """

    def forward(layer, x):
        x_cast, a, b = layer.promote_dtype((x, layer.lora_a[...], layer.lora_b[...]), dtype=layer.dtype)
        h = x_cast @ a
        y, kept = h @ b, None
        if layer.base_module is not None:
            of_base, kept = forward(layer.base_module, x_cast, name=("base_module",))
            y = y + of_base
        return y, (x, h, kept)

    def backward(layer, residuals, y_bar):
        x, h, kept = residuals
        x_cast, a, b = layer.promote_dtype((x, layer.lora_a[...], layer.lora_b[...]), dtype=layer.dtype)
        rows = y_bar.astype(h.dtype)
        h_bar = rows @ b.T
        x_bar = h_bar @ a.T
        grads = {}
        if isinstance(layer.lora_a, nnx.Param):
            grads = {"lora_a": sum_over_rows(x_cast, h_bar), "lora_b": sum_over_rows(h, rows)}
        if layer.base_module is not None:
            of_base, base_x_bar = backward(layer.base_module, kept, y_bar, name=("base_module",))
            grads |= {"base_module": of_base} if of_base else {}
            x_bar = x_bar + base_x_bar
        return grads, x_bar.astype(x.dtype)


@rule(nnx.LoRALinear)
class LoRALinearRule:
    """y = x W + b + lora(x).      x_bar is the sum of both paths: `LinearRule`'s and `LoRARule`'s"""

    def forward(layer, x):
        y = nnx.Linear.__call__(layer, x)
        of_lora, residuals = forward(layer.lora, x, name=("lora",))
        return y + of_lora, (x, residuals)

    def backward(layer, residuals, y_bar):
        x, residuals = residuals
        grads, x_bar = LinearRule.backward(layer, x, y_bar)
        of_lora, lora_x_bar = backward(layer.lora, residuals, y_bar, name=("lora",))
        return {**grads, "lora": of_lora}, x_bar + lora_x_bar
