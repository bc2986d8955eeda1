"""Other checkers of gradients, asked about the same rules, to compare with."""

import importlib.util
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bpresearch.functional import split
from bpresearch.verify.casting import cast_model
from bpresearch.verify.detection.cases import Case
from bpresearch.verify.detection.plants import one_of
from bpresearch.verify.engines import by_rules, mean_loss
from bpresearch.verify.equations import Plant
from bpresearch.verify.precision import cast


def _torch() -> bool:
    return importlib.util.find_spec("torch") is not None


PEERS: dict[str, Callable[[], bool]] = {
    "check_grads_float32": lambda: True,
    "check_grads_float64": lambda: True,
    "gradcheck": _torch,
    "gradcheck_fast": _torch,
}
"""The checkers, and whether they are installed."""


class Peers:
    """One model whose gradient is that of the rules, with one of several faults planted in them."""

    def __init__(self, case: Case, plants: list[Plant]):
        self.case, self.plants = case, plants
        self.gradient = cache(self._gradient)

    def passes(self, peer: str, fault: int) -> bool:
        """Whether a checker finds nothing wrong."""
        if peer.startswith("check_grads"):
            return self._check_grads("float32" if peer.endswith("32") else "float64", fault)
        return self._gradcheck(fault, fast=peer.endswith("fast"))

    def _gradient(self, dtype: str) -> tuple[Callable[..., PyTree], Callable[..., PyTree], list[jax.Array]]:
        """The loss, and its gradient `(fault, *point)` by the rules, compiled; and the point."""
        jax.clear_caches()  # a scan's body traced in the other precision would be taken for this one's
        model = cast_model(self.case.model, dtype)
        graphdef, params, state = split(model)
        data = cast((self.case.x, self.case.y), dtype)
        leaves, structure = jax.tree.flatten((params, data[0]))
        at = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

        def whole(point):
            filled = dict(enumerate(leaves)) | dict(zip(at, point, strict=True))
            return structure.unflatten([filled[i] for i in range(len(leaves))])

        @jax.jit
        def loss(*point):
            params, x = whole(point)
            return mean_loss(graphdef, self.case.loss_fn, params, state, x, data[1])

        @jax.jit
        def by_fault(fault, *point):
            params, x = whole(point)
            gradient = by_rules(graphdef, self.case.loss_fn, one_of(self.plants, fault))
            return tuple(gradient(params, state, x, data[1])[0])

        return loss, by_fault, [jnp.asarray(leaves[i]) for i in at]

    def _check_grads(self, dtype: str, fault: int) -> bool:
        from jax.test_util import check_grads

        with jax.enable_x64(dtype == "float64"):
            loss, by_fault, point = self.gradient(dtype)
            f = jax.custom_vjp(loss)
            f.defvjp(
                lambda *point: (loss(*point), point),
                lambda point, y_bar: tuple(y_bar * bar for bar in by_fault(jnp.int32(fault), *point)),
            )
            try:
                check_grads(f, tuple(point), order=1, modes=["rev"])
            except AssertionError:
                return False
            return True

    def _gradcheck(self, fault: int, fast: bool) -> bool:
        import torch

        with jax.enable_x64(True):
            loss, by_fault, numbers = self.gradient("float64")

            class Loss(torch.autograd.Function):
                @staticmethod
                def forward(context, *point):
                    context.save_for_backward(*point)
                    return torch.tensor(
                        float(loss(*(p.detach().numpy() for p in point))), dtype=torch.float64
                    )

                @staticmethod
                def backward(context, y_bar):
                    bars = by_fault(jnp.int32(fault), *(p.detach().numpy() for p in context.saved_tensors))
                    return tuple(y_bar * torch.from_numpy(np.array(bar)) for bar in bars)

            point = [torch.tensor(np.array(leaf), requires_grad=True) for leaf in numbers]
            return torch.autograd.gradcheck(Loss.apply, point, fast_mode=fast, raise_exception=False)
