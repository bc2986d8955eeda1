"""Models in another floating-point precision."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bpresearch.verify.precision import cast, is_floating


def cast_model(model: nnx.Module, dtype: jax.typing.DTypeLike) -> nnx.Module:
    """A copy of the model whose parameters and computations are in `dtype`; the model itself stays as it is.

    Layers that were told a dtype for computation, parameters or products are told the new one. Variables that
    are no parameters, such as running averages, have float32 at least; `nnx.SpectralNorm` makes weights of
    its own ones, which are in the dtype of these.

    >>> bp.verify.cast_model(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), "bfloat16").kernel.dtype
    dtype(bfloat16)
    """
    graphdef, params, state = nnx.split(model, nnx.Param, ...)
    wide = dtype if jnp.finfo(dtype).bits > 32 else jnp.float32
    copy = nnx.merge(graphdef, cast(params, dtype), cast(state, wide))
    for _, module in nnx.iter_modules(copy):
        if isinstance(module, nnx.SpectralNorm):
            for variable in module.batch_stats.values():
                variable.set_value(cast(variable[...], dtype))
        for name in ("dtype", "param_dtype", "preferred_element_type"):
            declared = getattr(module, name, None)
            if declared is not None and jnp.issubdtype(declared, jnp.floating):
                setattr(module, name, jnp.dtype(dtype))
    return copy


def parameter_dtype(model: nnx.Module) -> np.dtype:
    """The floating-point dtype that most of the model's parameters have; float32 if there is none."""
    dtypes = [v.dtype for v in jax.tree.leaves(nnx.state(model, nnx.Param)) if is_floating(v)]
    return max(set(dtypes), key=dtypes.count) if dtypes else jnp.dtype("float32")
