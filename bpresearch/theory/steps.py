"""The mean loss of a model as a list of steps from a weight to the loss.

A step is an equation of the traced loss. Calls (`jit`, `remat`) are opened, so that their equations are steps
themselves; functions of each element stay whole, and so do loops and branches. Values have numbers, in the
order in which they are made.
"""

import itertools
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import PyTree

from bpresearch import chainrule
from bpresearch.chainrule import engine
from bpresearch.chainrule.calls import WholeFunction, layers_whole, named
from bpresearch.chainrule.primitives import LAYER, Equation, Value, table
from bpresearch.chainrule.registry import has_rule
from bpresearch.chainrule.whole import LayerCall
from bpresearch.functional import Loss, TrainingLoss, as_inputs, merge, split
from bpresearch.jaxprs import body

CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "remat"})
CUSTOM = frozenset({"custom_jvp_call", "custom_vjp_call"})
ON_EACH = frozenset({
    "abs", "add", "add_any", "clamp", "complex", "conj", "convert_element_type", "copy", "div", "imag",
    "integer_pow", "mul", "name", "neg", "polynomial", "real", "reduce_precision", "select_n",
    "sharding_constraint", "sign", "stage", "sub",
})  # fmt: skip
"""Primitives that act on each element, besides those that are declared by their partial derivatives."""

OUTPUTS = "outputs of the model"
"""The name under which the model's outputs are found in the program."""


@dataclass(frozen=True, eq=False)
class Step:
    """An equation, the numbers of its operands and results, and the path of the layer around its call."""

    eqn: JaxprEqn
    ins: list[int]
    outs: list[int]
    around: str

    @property
    def layer(self) -> str:
        """Path of the layer that the equation is in, or is."""
        return self.equation([]).layer or self.around

    @property
    def name(self) -> str:
        """What is computed: the primitive, or the function that was called."""
        primitive, params = self.eqn.primitive.name, self.eqn.params
        if primitive in CALLS and "name" in params:
            return params["name"].lstrip("_")
        if primitive in CUSTOM:
            return body(params)[0].debug_info.func_name.lstrip("_")
        return self.equation([]).name

    @property
    def line(self) -> str:
        """The user's own file and line."""
        return self.equation([]).line

    @property
    def call(self) -> LayerCall | None:
        """The call of a layer with a rule; None for any other equation."""
        return self.eqn.params["call"] if self.eqn.primitive.name == LAYER else None

    def equation(self, ins: Sequence[Value], moving: Container[int] = ()) -> Equation:
        """The equation with its operands' values; cotangents go to and come from moving values."""
        return Equation(
            self.eqn.primitive,
            self.eqn.params,
            tuple(ins),
            wanted=tuple(v in moving for v in self.ins),
            live=tuple(out in moving for out in self.outs),
            source=self.eqn.source_info,
        )


@dataclass
class Steps:
    """The steps of a program.

    Attributes:
        steps: in the order of the program.
        inputs: numbers of the program's arguments.
        loss: number of the loss.
        consts: values of constants, by their number.
    """

    steps: list[Step] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    loss: int = 0
    consts: dict[int, Value] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    def of(cls, program: chainrule.Program) -> "Steps":
        """The steps of a traced loss."""
        steps = cls()
        steps.inputs = [next(steps._numbers) for _ in program.jaxpr.invars]
        (steps.loss,) = steps.add(program.jaxpr, program.consts, steps.inputs)
        return steps

    def add(self, jaxpr: Jaxpr, consts: Sequence[Value], ins: Sequence[int], layer: str = "") -> list[int]:
        """Adds the equations of a program, calls opened; the numbers of its results."""
        number = dict(zip(jaxpr.invars, ins, strict=True))
        number |= {v: self._constant(value) for v, value in zip(jaxpr.constvars, consts, strict=True)}

        def number_of(v: Var | Literal) -> int:
            return self._constant(engine.read(v, {})) if isinstance(v, Literal) else number[v]

        for eqn in jaxpr.eqns:
            operands = list(map(number_of, eqn.invars))
            step = Step(eqn, operands, [], layer)
            if eqn.primitive.name in CALLS and not acts_on_each(eqn):
                inner, values = body(eqn.params)
                outs = self.add(inner, values, operands, step.layer)
            else:
                step.outs.extend(next(self._numbers) for _ in eqn.outvars)
                self.steps.append(step)
                outs = step.outs
            number.update(zip(eqn.outvars, outs, strict=True))
        return list(map(number_of, jaxpr.outvars))

    def _constant(self, value: Value) -> int:
        number = next(self._numbers)
        self.consts[number] = value
        return number

    def depending(self, inputs: Iterable[int]) -> set[int]:
        """The values that depend on some inputs in any way."""
        on = {self.inputs[n] for n in inputs}
        for step in self.steps:
            if any(v in on for v in step.ins):
                on.update(step.outs)
        return on

    def moving(self, inputs: Iterable[int]) -> set[int]:
        """The values between some inputs and the loss: they have a derivative, and the loss by them."""
        on = {self.inputs[n] for n in inputs}
        for step in self.steps:
            flags = [v in on for v in step.ins]
            if any(flags):
                flow = engine.flow(step.eqn, flags)
                on.update(out for out, moves in zip(step.outs, flow, strict=True) if moves)
        leads = {self.loss}
        for step in reversed(self.steps):
            if any(out in leads and out in on for out in step.outs):
                leads.update(v for v in step.ins if v in on)
        return on & leads

    def evaluate(self, args: Sequence[Value], moving: set[int]) -> list[Equation]:
        """Each step's equation with its values, and with what its rule keeps where it has a derivative."""
        values, equations = self.consts | dict(zip(self.inputs, args, strict=True)), []
        for step in self.steps:
            e = step.equation([values[v] for v in step.ins], moving)
            outs, residuals = engine.evaluate(e) if any(e.live) else (e.bind(*e.ins), ())
            equations.append(replace(e, outs=tuple(outs), kept=residuals))
            values.update(zip(step.outs, outs, strict=True))
        return equations


def acts_on_each(eqn: JaxprEqn) -> bool:
    """Whether a result's element depends on the operands' elements in its own place alone.

    Of a call that is so if its operands have the shape of the result, or are numbers, and so on inside.
    """
    name, shape = eqn.primitive.name, shape_of(eqn.outvars[0])
    if name in CALLS or name == "custom_jvp_call":
        jaxpr, _ = body(eqn.params)
        alike = all(shape_of(v) in (shape, ()) for v in jaxpr.invars)
        return alike and len(jaxpr.outvars) == 1 and all(map(_stays_in_place(shape), jaxpr.eqns))
    if name == LAYER:
        call = eqn.params["call"]
        return _declared_elementwise(call.rule) or isinstance(call.layer, nnx.Dropout)
    return name in ON_EACH or _declared_elementwise(table.rules.get(name))


def _stays_in_place(shape: tuple[int, ...]) -> Callable[[JaxprEqn], bool]:
    def stays(eqn):
        if all(isinstance(v, Literal) for v in eqn.invars):
            return True
        if eqn.primitive.name == "broadcast_in_dim":
            return shape_of(eqn.invars[0]) == ()
        alike = all(isinstance(v, Literal) or shape_of(v) in (shape, ()) for v in eqn.invars)
        elementwise = eqn.primitive.name in table.constants or acts_on_each(eqn)
        return alike and elementwise and all(shape_of(v) in (shape, ()) for v in eqn.outvars)

    return stays


def shape_of(v: Var | Literal) -> tuple[int, ...]:
    """The shape of a variable or constant of a program."""
    return v.aval.shape


def _declared_elementwise(rule: Any) -> bool:
    return getattr(rule, "__qualname__", "").startswith("elementwise.")


@dataclass(frozen=True, eq=False)
class LossProgram:
    """The mean loss of a model on a batch, traced.

    Attributes:
        steps: its steps.
        paths: of the parameters, whose arrays are the first arguments; then come other variables, x and y.
        flatten: `(x, y) -> arguments` for a batch like that which was traced.
    """

    steps: Steps
    paths: list[tuple[Hashable, ...]]
    flatten: Callable[[PyTree, PyTree], list[Value]]

    @cached_property
    def data(self) -> set[int]:
        """The values that depend on data or on the model's other variables."""
        return self.steps.depending(range(len(self.paths), len(self.steps.inputs)))

    @cached_property
    def parameters(self) -> set[int]:
        """The values that depend on parameters and on nothing else."""
        return self.steps.depending(range(len(self.paths))) - self.data

    @cached_property
    def of_loss(self) -> set[int]:
        """Which steps are the loss function's: those behind the model's outputs.

        In a training loss these cannot be told; there they are what comes after the last layer or parameter.
        """
        steps = self.steps.steps
        marked = {i for i, step in enumerate(steps) if step.eqn.params.get("name") == OUTPUTS}
        indices, leads = set(), set()
        for i, step in reversed(list(enumerate(steps))):
            of_model = i in marked if marked else step.layer or any(v in self.parameters for v in step.ins)
            if of_model or any(out in leads for out in step.outs):
                leads.update(step.ins)
            else:
                indices.add(i)
        return indices


def trace(
    model: nnx.Module, loss_fn: Loss | TrainingLoss, x: PyTree, y: PyTree, scale: float = 1.0
) -> LossProgram:
    """The mean loss, times `scale`, as steps."""
    graphdef, params, state = split(model)

    def loss(params, state, x, y):
        model = named(merge(graphdef, params, state))
        with layers_whole([model]):
            return scale * jnp.mean(_values(model, loss_fn, x, y))

    structure = jax.tree.structure((params, state, x, y))

    def flatten(x, y):
        return [jnp.asarray(leaf) for leaf in structure.flatten_up_to((params, state, x, y))]

    program = chainrule.trace(lambda *flat: loss(*structure.unflatten(flat)), *flatten(x, y))
    paths = [tuple(key.key for key in path) for path, _ in jax.tree.leaves_with_path(params)]
    return LossProgram(Steps.of(program), paths, flatten)


def _values(model: nnx.Module, loss_fn: Loss | TrainingLoss, x: PyTree, y: PyTree) -> jax.Array:
    """The loss's values. In the short form the outputs are named, and a loss that has a rule stays whole."""
    if isinstance(loss_fn, TrainingLoss):
        return loss_fn(model, y)
    whole = WholeFunction(loss_fn, "loss") if has_rule(loss_fn) else loss_fn
    outputs = jax.tree.map(lambda value: checkpoint_name(value, OUTPUTS), model(*as_inputs(x)))
    return whole(*as_inputs(outputs), *as_inputs(y))
