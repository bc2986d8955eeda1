"""What the chain rule of functions cannot look into, and why; and what only labels or prints a value.

Here is every primitive of JAX's table of derivatives that has no results, that JAX refuses, or that is no
function of values.
"""

from bpresearch.chainrule.primitives import constant, linear, refused

constant("debug_print", "debug_callback", "inspect_sharding", "check", why="it has no results")

refused(
    "pure_callback",
    "io_callback",
    "buffer_callback",
    "ffi_call",
    why="the code that it calls is none of JAX's, and JAX refuses it as well; give it a jax.custom_vjp",
)
refused(
    "pallas_call",
    "mpmd_map",
    why="a kernel has no derivative of its own, and JAX has no backward pass of it either; give it a "
    "jax.custom_vjp",
)
refused(
    "masked_load",
    "masked_swap",
    "get_global",
    why="it exists inside of a Pallas kernel alone",
)
refused(
    "new_ref",
    "empty_ref",
    "free_ref",
    "freeze",
    "get",
    "swap",
    "addupdate",
    why="a program with mutable references is walked as one of values (see chainrule/references.py), and "
    "this one is inside of a function that is opened later; write it with x.at[...].set(...) or a carry",
)
refused(
    "accum_grad_in_ref",
    "run_state",
    why="JAX makes it itself, in its own backward passes and kernels",
)
refused(
    "box_get",
    "box_set",
    "new_box",
    "new_log",
    "log_extend",
    "log_read",
    "get_variable",
    "set_variable",
    "new_variable",
    why="it reads or writes an object that changes in place (experimental in JAX: hijax), which is no array",
)
refused(
    "host_local_array_to_global_array",
    "global_array_to_host_local_array",
    why="it hands arrays of one process to the mesh of all, or back; differentiate what is between",
)


@linear("xla_metadata_value")
def labelled(e, y_bar):
    """y = x, with a note to the compiler.      x_bar = y_bar"""
    return y_bar


refused(
    "remat_opt",
    why="what is left of a custom_vjp once JAX has optimised it; JAX does not transpose it either",
)
