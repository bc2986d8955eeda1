"""Recurrences: a cell run along a sequence, and back-propagation through time (Werbos 1990).

Forward, carry_t, y_t = cell(carry_{t-1}, x_t). Each carry goes into the next step only, so its cotangent
is a recursion that runs from the last step to the first, and the parameters' is a sum over all steps:

    W_bar at t, ((carry_{t-1})_bar, (x_t)_bar) = cell's backward of ((carry_t)_bar, (y_t)_bar).

Both directions are one `lax.scan`. For Flax's own cells, whose rules come in parts, the second contains
only what the recursion needs, h_bar = v_bar W_h^T among the products. The cotangents v_bar of all steps are
kept, and W_h_bar = sum_t h_{t-1}^T (v_t)_bar is one large product after the loop; likewise those of x. Any
other cell, and one whose rule was replaced, is run through its rule's `backward` at each step. A cell may
have state of its own (random streams, say), which passes from step to step.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.recurrent import flip_sequences
from jax import lax

from bpresearch.chainrule.engine import backward, forward, inside, location, own_rule, rule_in_force
from bpresearch.chainrule.recurrent import project_backward
from bpresearch.chainrule.registry import rule


@rule(nnx.RNN)
class RNNRule:
    """carry_t, y_t = cell(carry_{t-1}, x_t).      x_bar and W_bar by back-propagation through time

    x: (*batch, time, in), or (time, *batch, in) with `time_major`; y likewise. The call's options are those
    of `nnx.RNN`. `reverse` runs from the last step to the first, and `keep_order` puts the outputs back
    into the order of the inputs: permutations, whose adjoints are their inverses. With `seq_lengths`,
    (batch,), only the first steps of each sequence are reversed, and the carry returned (`return_carry`) is
    the one after the last of them, so its cotangent enters the recursion there.

    The initial carry is a constant, also as an option. A model that has a derivative for it calls the rule
    with it as a second input, and gets (x_bar, initial_carry_bar).

    Raises:
        ValueError: the layer's `state_axes` are not the default, by which all state passes along.
    """

    def forward(layer, x, *initial, **options):
        _refuse_state_axes(layer)
        sequence = _Sequence(layer, x.ndim, **options)
        carry = start = initial[0] if initial else sequence.initial_carry(layer.cell, x.shape)
        with inside("cell"):
            x_first = sequence.time_first(x)
            carry, carries, y, kept = _forward(layer, carry, x_first, sequence.selects)
        y = jax.tree.map(sequence.time_back, y)
        if sequence.selects:
            carry = jax.tree.map(lambda all_: all_[sequence.last(all_)], carries)
        return (carry, y) if sequence.return_carry else y, (x, start, initial, kept)

    def backward(layer, residuals, outputs_bar, **options):
        x, start, initial, kept = residuals
        sequence = _Sequence(layer, x.ndim, **options)
        carry_bar, carries_bar = jax.tree.map(jnp.zeros_like, start), None
        y_bar = outputs_bar
        if sequence.return_carry:
            last_bar, y_bar = outputs_bar
            if sequence.selects:
                steps = x.shape[sequence.time_axis]
                carries_bar = jax.tree.map(lambda bar: sequence.at_last(bar, steps), last_bar)
            else:
                carry_bar = last_bar
        with inside("cell"):
            # A rule in the cell's place, as the verifier puts there, may not come in parts.
            in_parts = hasattr(rule_in_force(layer.cell)[0], "gates")
            run = _backward_by_parts if in_parts else _backward
            y_bar = jax.tree.map(sequence.time_back_adjoint, y_bar)
            grads, carry_bar, x_bar = run(layer, kept, carry_bar, carries_bar, y_bar)
        x_bar = None if x_bar is None else sequence.time_first_adjoint(x_bar)
        return {"cell": grads}, (x_bar, carry_bar) if initial else x_bar


class _Sequence:
    """How one call of an RNN goes through its input: the options of the call over those of the layer."""

    def __init__(
        self, layer, axes, initial_carry=None, seq_lengths=None, return_carry=None,
        time_major=None, reverse=None, keep_order=None, rngs=None,
    ):  # fmt: skip
        def choose(option, default):
            return default if option is None else option

        self.return_carry = choose(return_carry, layer.return_carry)
        self.reverse = choose(reverse, layer.reverse)
        self.keep_order = choose(keep_order, layer.keep_order)
        self.batch_axes = axes - layer.cell.num_feature_axes - 1
        self.time_axis = 0 if choose(time_major, layer.time_major) else self.batch_axes
        self.lengths, self.carry = seq_lengths, initial_carry
        self.rngs = choose(rngs, layer.rngs)
        self.selects = self.return_carry and seq_lengths is not None

    def initial_carry(self, cell, shape):
        if self.carry is not None:
            return self.carry
        rngs = self.rngs.carry.fork() if isinstance(self.rngs, nnx.Rngs) else self.rngs
        return cell.initialize_carry((*shape[: self.time_axis], *shape[self.time_axis + 1 :]), rngs)

    def _flip(self, x):
        """The steps of each sequence in reverse order; its own inverse."""
        return flip_sequences(x, self.lengths, self.batch_axes, time_major=True)

    def time_first(self, x):
        x = jnp.moveaxis(x, self.time_axis, 0)
        return self._flip(x) if self.reverse else x

    def time_first_adjoint(self, x_bar):
        x_bar = self._flip(x_bar) if self.reverse else x_bar
        return jnp.moveaxis(x_bar, 0, self.time_axis)

    def time_back(self, y):
        y = self._flip(y) if self.reverse and self.keep_order else y
        return jnp.moveaxis(y, 0, self.time_axis)

    def time_back_adjoint(self, y_bar):
        y_bar = jnp.moveaxis(y_bar, self.time_axis, 0)
        return self._flip(y_bar) if self.reverse and self.keep_order else y_bar

    def last(self, carries):
        """The index of each sequence's last step in an array of carries, (time, batch, ...)."""
        return self.lengths - 1, jnp.arange(carries.shape[1])

    def at_last(self, bar, steps):
        """Zeros for all steps but the last of each sequence, which has that sequence's `bar`."""
        bars = jnp.zeros((steps, *bar.shape), bar.dtype)
        return bars.at[self.last(bars)].add(bar)


def _forward(layer, carry, x, keep_carries):
    """Final carry, all carries if wanted, all y and residuals. The cell's state passes from step to step."""
    every_step = nnx.All(nnx.RngState, layer.broadcast_rngs)  # the same random numbers at each
    passed_on = nnx.Not(nnx.Any(nnx.Param, every_step))

    @nnx.split_rngs(splits=1, only=layer.broadcast_rngs, squeeze=True)
    def run(cell):
        graphdef, params, same, state = nnx.split(cell, nnx.Param, every_step, ...)

        def step(loop, x):
            carry, state = loop
            cell = nnx.merge(graphdef, params, same, state)
            (carry, y), residuals = forward(cell, carry, x)
            state = nnx.state(cell, passed_on)
            return (carry, state), (carry if keep_carries else None, y, residuals)

        (carry_, state), outputs = _scan(step, (carry, state), x, unroll=layer.unroll)
        nnx.update(cell, state)
        return carry_, *outputs

    return run(layer.cell)


def _backward(layer, residuals, carry_bar, carries_bar, y_bar):
    """The cell's gradients, the initial carry's cotangent and that of x."""

    def of_cell(carry_bar, slices):
        residuals, y_bar, here = slices
        return backward(layer.cell, residuals, (_plus(carry_bar, here), y_bar))

    def step(loop, slices):
        carry_bar, grads = loop
        step_grads, (new_bar, x_bar) = of_cell(carry_bar, slices)
        new_bar = jax.tree.map(_zero_if_none, carry_bar, new_bar)
        return (new_bar, jax.tree.map(jnp.add, grads, step_grads)), x_bar

    slices = residuals, y_bar, carries_bar
    first = jax.tree.map(lambda all_: all_[0], slices)
    shapes, _ = jax.eval_shape(of_cell, carry_bar, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (carry_bar, grads), x_bar = _scan(step, (carry_bar, zeros), slices, reverse=True, unroll=layer.unroll)
    return grads, carry_bar, x_bar


def _backward_by_parts(layer, residuals, carry_bar, carries_bar, y_bar):
    """As `_backward`, of a cell whose rule comes in parts: no product for a parameter is in the loop."""
    cell, of_cell = layer.cell, own_rule(layer.cell)[0]
    of_inputs, of_hidden, of_gates = residuals

    def step(carry_bar, slices):
        of_hidden, of_gates, y_bar, here = slices
        outputs_bar = _plus(carry_bar, here), y_bar
        direct, v_bar, rest = of_cell.gates_backward(cell, of_gates, outputs_bar)
        _, h_bar = project_backward(cell, of_cell.hidden, of_hidden, v_bar)
        return of_cell.carry_bar(direct, h_bar), (v_bar, rest)

    slices = of_hidden, of_gates, y_bar, carries_bar
    carry_bar, (v_bar, rest) = _scan(step, carry_bar, slices, reverse=True, unroll=layer.unroll)
    u_bar = of_cell.u_bar(v_bar, rest)
    input_grads, x_bar = project_backward(cell, of_cell.inputs, of_inputs, u_bar)
    hidden_grads, _ = project_backward(cell, of_cell.hidden, of_hidden, v_bar)
    return {**input_grads, **hidden_grads}, carry_bar, x_bar


def _zero_if_none(like, bar):
    return jnp.zeros_like(like) if bar is None else bar


def _plus(carry_bar, here):
    """What comes from the next step and what comes from this step's carry itself, if that was handed out."""
    return carry_bar if here is None else jax.tree.map(jnp.add, carry_bar, here)


def _scan(step, carry, xs, **options):
    """`lax.scan`, but what is in several places of a step's inputs or outputs is stored only once."""
    xs, spread_xs = _distinct(xs)
    spread = None

    def compact_step(carry, slices):
        nonlocal spread
        carry, ys = step(carry, spread_xs(slices))
        ys, spread = _distinct(ys, slices)
        return carry, ys

    carry, ys = lax.scan(compact_step, carry, xs, **options)
    return carry, spread(xs + ys)


def _distinct(tree, known=()):
    """The arrays of a tree, each once and without the known ones; and what puts all in their places."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = {id(leaf): leaf for leaf in (*known, *leaves)}
    place = {key: index for index, key in enumerate(arrays)}
    places = [place[id(leaf)] for leaf in leaves]
    new = list(arrays.values())[len(known) :]
    return new, lambda arrays: structure.unflatten([arrays[p] for p in places])


def _refuse_state_axes(layer):
    axes = layer.state_axes
    if tuple(axes.items()) != ((..., nnx.Carry),):
        raise ValueError(
            f"nnx.RNN at {location()}: state_axes={axes} has no chain-rule derivative; "
            "leave state_axes at its default, by which all state passes from step to step"
        )


DIRECTIONS = {
    "forward_rnn": {"reverse": False},
    "backward_rnn": {"reverse": True, "keep_order": True},
}


@rule(nnx.Bidirectional)
class BidirectionalRule:
    """y = merge(forward_rnn(x), backward_rnn(x)), the second from the last step to the first
    (Schuster and Paliwal 1997).      x_bar is the sum of both; merge answers with its own rule

    x: (*batch, time, in), or (time, *batch, in) with `time_major`; y likewise. The carry, if returned or
    given, is the pair of both recurrences' carries. They may be one object: its uses add up.
    """

    def forward(layer, x, *initial, initial_carry=None, rngs=None, **options):
        rngs = layer.rngs if rngs is None else rngs
        rngs = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
        options, return_carry = _options_of_both(layer, **options)
        carries, outputs, residuals = [], [], []
        for index, (name, direction) in enumerate(DIRECTIONS.items()):
            start = [carry[index] for carry in initial]
            given = initial_carry[index] if initial_carry else None
            options_here = {**options, **direction, "rngs": rngs, "initial_carry": given}
            with inside(name):
                child = getattr(layer, name)
                (carry, y), kept = own_rule(child)[0].forward(child, x, *start, **options_here)
            carries.append(carry)
            outputs.append(y)
            residuals.append(kept)
        y, of_merge = forward(layer.merge_fn, *outputs, name=("merge_fn",))
        carry = tuple(carries)
        return (carry, y) if return_carry else y, (carry, initial, residuals, of_merge)

    def backward(layer, residuals, outputs_bar, initial_carry=None, rngs=None, **options):
        carries, initial, residuals, of_merge = residuals
        options, return_carry = _options_of_both(layer, **options)
        carry_bar = jax.tree.map(jnp.zeros_like, carries)
        carry_bar, y_bar = outputs_bar if return_carry else (carry_bar, outputs_bar)
        _, y_bars = backward(layer.merge_fn, of_merge, y_bar, name=("merge_fn",))
        grads, inputs_bar = {}, []
        for index, (name, direction) in enumerate(DIRECTIONS.items()):
            with inside(name):
                child, bars = getattr(layer, name), (carry_bar[index], y_bars[index])
                grads[name], bar = own_rule(child)[0].backward(
                    child, residuals[index], bars, **options, **direction
                )
            inputs_bar.append(bar)
        if not initial:
            return grads, inputs_bar[0] + inputs_bar[1]
        (x_bar, start_bar), (x_bar_back, start_bar_back) = inputs_bar
        return grads, (x_bar + x_bar_back, (start_bar, start_bar_back))


def _options_of_both(
    layer, seq_lengths=None, return_carry=None, time_major=None, reverse=None, keep_order=None
):
    """What both recurrences are told, and whether the caller wants the carries."""
    time_major = layer.time_major if time_major is None else time_major
    return_carry = layer.return_carry if return_carry is None else return_carry
    both = {"seq_lengths": seq_lengths, "time_major": time_major, "return_carry": True}
    return both, return_carry
