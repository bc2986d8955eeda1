"""The first equation of a function, or of its gradient, that makes NaN or Inf of finite numbers."""

import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxprs_in_params
from jax.extend.linear_util import WrappedFun, transformation2
from jaxtyping import PyTree

from bpresearch.chainrule.primitives import Equation, is_floating
from bpresearch.chainrule.program import Parts, Program, of_arrays, take_apart, trace
from bpresearch.paths import format_path
from bpresearch.verify import nan_search
from bpresearch.verify.nan_hints import Derivatives, hint
from bpresearch.verify.nan_search import INF, NAN, Origin

FORWARD, BACKWARD = "forward", "backward"


@dataclass(frozen=True)
class NanReport:
    """Where NaN or Inf begins. It is true if some was found and false if everything is finite.

    Attributes:
        value: "NaN" or "Inf", what was made; "" if nothing was found.
        primitive: the operation that made it; "" for a value that came in with an argument.
        derivative_of: the operation of the forward pass whose derivative that is; "" if it is of none.
        direction: "forward" or "backward", the pass in which it was made.
        layer: path of the layer; "" in the model itself, or outside of it.
        line: the user's own `file.py:line (function)`.
        operands: what the operation worked on, each in a few words.
        index: of the first such element of the result.
        step: of the innermost loop around it, counted from 0 along the loop's axis; None outside of loops.
        steps: of all loops around it, the outermost first.
        becomes: where Inf becomes NaN, if that is another operation; "" otherwise.
        hint: what to do about it.
        note: what could not be looked at, and why; or which argument holds Inf.
        of_finite: whether the operands are finite; if not, they hold an Inf that was given, by a mask say.
    """

    value: str = ""
    primitive: str = ""
    derivative_of: str = ""
    direction: str = ""
    layer: str = ""
    line: str = ""
    operands: tuple[str, ...] = ()
    index: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    becomes: str = ""
    hint: str = ""
    note: str = ""
    of_finite: bool = True

    def __bool__(self) -> bool:
        return bool(self.value)

    @property
    def step(self) -> int | None:
        """The step of the innermost loop; None outside of loops."""
        return self.steps[-1] if self.steps else None

    @property
    def place(self) -> str:
        """Layer path and line."""
        return ", ".join(filter(None, (self.layer, self.line)))

    def to_json(self) -> dict[str, object]:
        """The report as plain JSON types."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()} | {
            "found": bool(self)
        }

    def __str__(self) -> str:
        if not self:
            return " ".join(filter(None, ("No equation makes NaN or Inf that reaches a result.", self.note)))
        derivative = f", in the derivative of {self.derivative_of}" if self.derivative_of else ""
        of = "finite numbers" if self.of_finite else "infinite ones"
        made = f"{self.primitive} makes {self.value} of {of}" if self.primitive else self.value
        lines = [f"{made}, in the {self.direction} pass{derivative}."]
        if self.line:
            lines.append(f"Line: {self.line}")
        if self.layer:
            lines.append(f"Layer: {self.layer}")
        if self.steps:
            lines.append(f"Step of the loop, counted from 0: {', '.join(map(str, self.steps))}")
        if self.operands:
            lines.append(f"Operands: {'; '.join(self.operands)}")
        if self.index:
            lines.append(f"First such element of the result: [{', '.join(map(str, self.index))}]")
        lines += [self.becomes] * bool(self.becomes)
        what = textwrap.fill(f"What to do: {self.hint}.", 100, subsequent_indent="  ", break_on_hyphens=False)
        lines += [what] * bool(self.hint) + [self.note] * bool(self.note)
        return "\n".join(lines)


def find_nan(
    f: Callable[..., PyTree], *args: PyTree, argnums: int | Sequence[int] | None = None, backward: bool = True
) -> NanReport:
    """Names the first operation that makes NaN or Inf of finite numbers: in `f(*args)`, else in its gradient.

    The program of `f` is evaluated operation by operation, with `jit`, `vmap`, `scan` and `while` (step by
    step), `cond`, `remat` and custom rules opened. If its results are finite, JAX's derivative of it is
    evaluated in the same way, an author's own backward pass as it was written. Of the operations that make
    NaN or Inf, the first whose result reaches a result of `f`, or a gradient, is reported: an Inf that
    is meant and goes away, as in a mask before a softmax, is not.

    Args:
        f: any function of pytrees; an `nnx.Module` among them is differentiated with respect to its
            `nnx.Param`s and is not changed. Where it returns a pair whose first part is a real scalar, only
            that, a loss, is differentiated; otherwise all results are, with cotangents of 1.
        args: what it is given.
        argnums: the arguments to differentiate. Default: the models among them, or if there is none, all that
            are floating point.
        backward: whether to look at the derivative as well.

    Raises:
        ValueError: `argnums` names no argument.

    >>> def root(x):
    ...     return jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0))
    >>> report = bp.verify.find_nan(root, jnp.array([4.0, 0.0]))
    >>> print(report.direction, report.primitive, report.derivative_of, report.index)
    backward div sqrt (1,)
    >>> print(report)  # doctest: +ELLIPSIS
    div makes Inf of finite numbers, in the backward pass, in the derivative of sqrt.
    Line: ...(root)
    Operands: 0.5; float32[2] with 0.0 at [1], between 0.0 and 2.0
    First such element of the result: [1]
    It becomes NaN in mul at ...: ...
    What to do: the derivative of sqrt is infinite at 0. ...
    >>> bool(bp.verify.find_nan(root, jnp.array([4.0, 1.0])))
    False
    """
    parts = take_apart((args, {}))
    flat, structure = jax.tree.flatten(parts.leaves)
    flat = [x if hasattr(x, "dtype") else jnp.asarray(x) for x in flat]
    function = of_arrays(f, parts, opened=True)
    with jax.debug_nans(False), jax.debug_infs(False):
        program = trace(lambda *flat: function(structure.unflatten(flat)), *flat, everything=True)
        names = _names(f, args, parts)
        if report := _report(program, flat, FORWARD, names, Derivatives()):
            return report
        if not backward:
            return NanReport()
        wanted = _wanted(args, parts, flat, argnums)
        try:
            derivative = trace(_gradient(program, wanted), *flat, everything=True)
        except Exception as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            return NanReport(note=f"The backward pass was not looked at; JAX says: {why}")
        return _report(derivative, flat, BACKWARD, names, Derivatives(program.jaxpr)) or NanReport()


def _gradient(program: Program, numbers: Sequence[int]) -> Callable[..., tuple[PyTree, ...]]:
    """The cotangents of the numbered arguments of a program, by JAX, with those of its results one."""
    jaxpr = with_own_lines(program.jaxpr)

    def gradient(*flat):
        def differentiated(*chosen):
            whole = list(flat)
            for number, x in zip(numbers, chosen, strict=True):
                whole[number] = x
            result, _ = program.structure.unflatten(jax.core.eval_jaxpr(jaxpr, program.consts, *whole))
            leaves = jax.tree.leaves(result[0] if _is_pair(result) else result)
            return [y for y in leaves if is_floating(y)]

        y, pull_back = jax.vjp(differentiated, *(flat[number] for number in numbers))
        return pull_back([jnp.ones_like(part) for part in y])

    return gradient


def _is_pair(result: PyTree) -> bool:
    """Whether it is a loss, a real scalar, and something else."""
    if not isinstance(result, tuple) or len(result) != 2 or not hasattr(result[0], "dtype"):
        return False
    return result[0].shape == () and bool(jnp.issubdtype(result[0].dtype, jnp.floating))


class _NoLine:
    """In the place of a traceback: JAX looks for the line itself."""

    def __bool__(self):
        return False


@transformation2
def _own_line(f, *args):
    with source_info_util.user_context(_NoLine()):
        return f(*args)


def with_own_lines(jaxpr: Jaxpr) -> Jaxpr:
    """A program in which the equations of an author's own rules keep their lines when JAX differentiates it.

    Otherwise all of them have the line of the call.
    """

    def replaced(value):
        if isinstance(value, WrappedFun):
            return _own_line(value)
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return tuple(map(replaced, value))
        if not hasattr(value, "eqns"):
            return value
        if hasattr(value, "consts"):
            return ClosedJaxpr(with_own_lines(value.jaxpr), value.consts)
        return with_own_lines(value)

    if not _has_own_rule(jaxpr):
        return jaxpr
    eqns = [eqn.replace(params={name: replaced(v) for name, v in eqn.params.items()}) for eqn in jaxpr.eqns]
    return jaxpr.replace(eqns=eqns)


def _has_own_rule(jaxpr: Jaxpr) -> bool:
    return any(
        eqn.primitive.name.startswith(("custom_vjp_call", "custom_jvp_call"))
        or any(_has_own_rule(inner) for inner in jaxprs_in_params(eqn.params))
        for eqn in jaxpr.eqns
    )


def _wanted(
    args: tuple[PyTree, ...], parts: Parts, flat: Sequence[PyTree], argnums: int | Sequence[int] | None
) -> list[int]:
    """The numbers of the arrays to differentiate."""
    owner = [number for number, arg in enumerate(args) for _ in jax.tree.leaves(arg, is_leaf=_is_module)]
    chosen = range(len(args)) if argnums is None else [argnums] if isinstance(argnums, int) else argnums
    if not all(-len(args) <= n < len(args) for n in chosen):
        raise ValueError(f"argnums={argnums} of a function that is given {len(args)} arguments")
    only_models = argnums is None and bool(parts.models)
    numbers: list[int] = []
    start = 0
    for place, leaf in enumerate(parts.leaves):
        count = len(jax.tree.leaves(leaf))
        of_params = len(jax.tree.leaves(leaf[0])) if place in parts.models else 0 if only_models else count
        if owner[place] in {n % len(args) for n in chosen}:
            numbers += range(start, start + of_params)
        start += count
    return [number for number in numbers if is_floating(flat[number])]


def _is_module(value: Any) -> bool:
    return isinstance(value, nnx.Module)


def _names(f: Callable[..., PyTree], args: tuple[PyTree, ...], parts: Parts) -> list[str]:
    """What the arrays are called: by the parameters of `f` and the paths in them."""
    try:
        parameters = [p.name for p in inspect.signature(f).parameters.values() if p.kind < p.VAR_POSITIONAL]
    except (TypeError, ValueError):
        parameters = []
    names = []
    paths = jax.tree.leaves_with_path(args, is_leaf=_is_module)
    for place, ((first, *rest), _) in enumerate(paths):
        name = parameters[first.idx] if first.idx < len(parameters) else f"arg{first.idx}"
        for path, _ in jax.tree.leaves_with_path(parts.leaves[place]):
            path = path[1:] if place in parts.models else path
            keys = [getattr(k, "key", getattr(k, "idx", getattr(k, "name", k))) for k in (*rest, *path)]
            names.append(format_path((name, *keys)))
    return names


def _report(
    program: Program, flat: Sequence[PyTree], direction: str, names: Sequence[str], derivatives: Derivatives
) -> NanReport | None:
    """The report on a program whose results are not all finite; None where nothing in it is to blame."""
    equations, outs = nan_search.evaluated(program.jaxpr, program.consts, flat)
    bad = nan_search.not_finite(outs)
    if not bad:
        return None
    path, given = nan_search.reached(program.jaxpr, equations, bad)
    nan = nan_search.first_of(path, nan_search.makes_nan) if any(NAN in v for v in bad.values()) else None
    origin = nan_search.first_of(path, nan_search.makes_of_finite)
    note = ""
    if origin is None:
        if came := [names[i] for i, kinds in given.items() if NAN in kinds]:
            return NanReport(NAN, direction=direction, operands=tuple(f"{n} holds NaN" for n in came))
        if nan is None:
            return None  # an Inf that was given and is meant, of a mask say
        origin = nan
        note = f"Inf came in with {', '.join(names[i] for i in given)}." if given else ""
    e = origin.equation
    derivative_of, producers = derivatives.of(e)
    held = frozenset().union(*map(nan_search.kinds, e.ins))
    number, kinds = next(iter(origin.matters.items()))
    made = NAN if NAN in kinds else INF
    if any(nan_search.of_gradient(part.equation) for part in (origin, nan) if part is not None):
        direction = BACKWARD  # of a gradient that the function itself takes
    index = _first_index(e.outs[number], made)
    later = nan if nan and nan.equation.layer == e.layer else None
    if later is not None and (later.equation.source, later.steps) == (e.source, origin.steps):
        later = None
    return NanReport(
        made,
        e.name,
        derivative_of,
        direction,
        e.layer,
        line_of(e),
        tuple(_operand(x, jnp.shape(e.outs[number]), index) for x in e.ins),
        index,
        origin.steps,
        "" if later is None else _becomes(later),
        hint(e, made, derivative_of, producers, held, direction == BACKWARD),
        note,
        of_finite=origin is not nan or INF not in held,
    )


def _becomes(nan: Origin) -> str:
    e = nan.equation
    number = next(i for i, kinds in nan.matters.items() if NAN in kinds)
    index, shape = _first_index(e.outs[number], NAN), jnp.shape(e.outs[number])
    place = ", ".join(filter(None, (e.layer, line_of(e))))
    return (
        f"It becomes NaN in {e.name}{f' at {place}' * bool(place)}: "
        f"{'; '.join(_operand(x, shape, index) for x in e.ins)}"
    )


def line_of(e: Equation) -> str:
    """The user's line of an equation, or of the nearest equation around it that has one."""
    return e.line or (line_of(e.enclosing) if e.enclosing else "")


def _first_index(x: PyTree, kind: str) -> tuple[int, ...]:
    values = np.asarray(x)
    return tuple(int(i) for i in np.argwhere(nan_search.TESTS[kind](values))[0])


def _operand(x: PyTree, shape: tuple[int, ...], index: tuple[int, ...]) -> str:
    """A value in a few words: the number, or the one at the index and the range."""
    if not hasattr(x, "dtype") or jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return "a random key"
    values = np.asarray(x)
    if values.ndim == 0:
        return _number(values)
    words = f"{values.dtype}[{','.join(map(str, values.shape))}]"
    if values.shape == shape:
        words += f" with {_number(values[index])} at [{', '.join(map(str, index))}]"
    if np.iscomplexobj(values) or not values.size or values.dtype == bool:
        return words
    finite = values[np.isfinite(values)]
    return words + (f", between {_number(finite.min())} and {_number(finite.max())}" if finite.size else "")


def _number(value: np.ndarray | np.generic) -> str:
    plain = value.item()
    return f"{plain:.4}" if isinstance(plain, float) and np.isfinite(plain) else str(plain)
