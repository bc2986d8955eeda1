"""Every primitive, layer, activation and loss has a rule, or a reason for having none."""

from types import ModuleType

import jax.numpy as jnp
import optax
from flax import nnx
from jax.extend.core import Primitive
from jax.interpreters import ad

from bpresearch import chainrule
from bpresearch.chainrule.coverage import COMPOSITE
from bpresearch.chainrule.primitives import table as primitives

# The issue's own lists: none of these may be excused.
LAYERS = """Linear LinearGeneral Einsum Conv ConvTranspose Embed BatchNorm LayerNorm RMSNorm GroupNorm
    InstanceNorm Dropout LoRA LoRALinear PReLU SimpleCell GRUCell LSTMCell OptimizedLSTMCell
    avg_pool max_pool min_pool"""
COMPOSITES = "Sequential RNN Bidirectional MultiHeadAttention WeightNorm SpectralNorm"
ACTIVATIONS = """celu elu gelu glu hard_sigmoid hard_silu hard_tanh leaky_relu log_sigmoid log_softmax relu
    relu6 selu sigmoid silu soft_sign softmax softplus standardize tanh identity"""
LOSSES = """squared_error l2_loss huber_loss log_cosh softmax_cross_entropy
    softmax_cross_entropy_with_integer_labels sigmoid_binary_cross_entropy sigmoid_focal_loss hinge_loss
    multiclass_hinge_loss perceptron_loss poly_loss_cross_entropy kl_divergence convex_kl_divergence
    cosine_similarity cosine_distance dice_loss ctc_loss ranking_softmax_loss triplet_margin_loss"""


def test_no_name_is_missing():
    assert chainrule.coverage().missing == []


def test_layers_activations_and_losses_have_rules():
    found = set(chainrule.coverage().with_rule)
    wanted = {f"flax.nnx.{name}" for name in f"{LAYERS} {ACTIVATIONS}".split()}
    wanted |= {f"optax.losses.{name}" for name in LOSSES.split()}
    assert wanted - found == set()


def test_every_module_of_flax_with_a_call_has_a_rule():
    """Whatever the reasons say: a layer is a module that is called."""
    modules = {n: v for n, v in vars(nnx).items() if isinstance(v, type) and issubclass(v, nnx.Module)}
    called = {f"flax.nnx.{name}" for name, module in modules.items() if hasattr(module, "__call__")}  # noqa: B004
    base = {"flax.nnx.RNNCellBase", "flax.nnx.Module", "flax.nnx.List", "flax.nnx.Dict"}
    composites = {f"flax.nnx.{name}" for name in COMPOSITES.split()}
    assert called - set(chainrule.coverage().with_rule) <= base | composites


def test_composites_are_traced():
    reasons = {row.name: row.reason for row in chainrule.coverage().rows}
    assert {reasons[name] for name in COMPOSITES.split()} == {COMPOSITE}


def test_every_loss_of_optax_with_one_number_per_example_has_a_rule():
    assert {n for n in chainrule.coverage().excused if n.startswith("optax.")} == {
        "optax.losses.make_fenchel_young_loss"
    }


def test_a_new_name_is_missing_until_it_has_a_rule():
    class NewLayer(nnx.Module):
        def __call__(self, x):
            return x

    def new_activation(x):
        return x

    module = ModuleType("somewhere")
    module.NewLayer, module.new_activation, module.Linear = NewLayer, new_activation, nnx.Linear
    module.constant, module.submodule, module._private = 3, jnp, nnx.relu
    table = chainrule.coverage({"somewhere": module})
    assert table.missing == ["somewhere.NewLayer", "somewhere.new_activation"]
    assert table.with_rule == ["somewhere.Linear"] and table.excused == ["somewhere.constant"]
    assert "somewhere.NewLayer        MISSING" in str(table)
    assert (
        str(table).endswith(table.counts) and table.counts == "4 names: 1 with a rule, 1 excused, 2 missing"
    )

    @chainrule.rule(NewLayer, new_activation)
    class SameRule:
        """y = x.      x_bar = y_bar"""

        def forward(layer, x):
            return x, None

        def backward(layer, residuals, y_bar):
            return {}, y_bar

    assert chainrule.coverage({"somewhere": module}).missing == []


def test_a_rule_is_that_of_the_name_itself():
    """`nnx.swish` is `nnx.silu`; a deprecated loss has its own entry."""
    assert {"flax.nnx.swish", "optax.losses.convex_kl_divergence"} <= set(chainrule.coverage().with_rule)
    assert chainrule.registered()[optax.losses.ctc_loss].__name__ == "CTCLossRule"


def test_a_rule_is_shown_by_its_file():
    """Under `rules/`, where a newcomer looks for it."""
    rules = {row.full_name: row.rule for row in chainrule.coverage().rows}
    assert rules["flax.nnx.LayerNorm"].startswith("rules/layers/normalization.py  ")
    assert rules["optax.losses.ctc_loss"].startswith("rules/losses/ctc.py  ")
    rules = {row.name: row.rule for row in chainrule.coverage().primitives.rows}
    assert rules["sin"] == 'rules/lax/elementwise.py  elementwise("sin", lambda x, y: lax.cos(x))'
    assert rules["psum"].startswith("rules/lax/collectives.py  y = sum_k x_k")
    assert rules["svd"].startswith("rules/lax/eigenvalues.py  A = U S V^H")


def test_no_primitive_is_missing():
    """Of JAX's own table of derivatives, in the installed version."""
    found = chainrule.coverage().primitives
    assert found.missing == []
    assert len(found.with_rule) >= 110
    assert len(found.rows) == len(found.with_rule) + len(found.excused)


def test_no_primitive_has_both_a_rule_and_a_reason():
    rules, constants, refused = map(set, (primitives.rules, primitives.constants, primitives.refused))
    assert not rules & constants and not rules & refused and not constants & refused


def test_a_new_primitive_is_missing_until_it_has_a_rule(monkeypatch):
    monkeypatch.setitem(ad.primitive_jvps, Primitive("brand_new"), None)
    assert "primitive.brand_new" in chainrule.coverage().primitives.missing
    monkeypatch.setitem(primitives.rules, "brand_new", None)  # undone with the test
    chainrule.elementwise("brand_new", lambda x, y: 2 * x)
    found = chainrule.coverage().primitives
    assert "primitive.brand_new" in found.with_rule
