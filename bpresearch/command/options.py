"""Flags of the options of models, optimizers and schedules, from the signatures of their functions.

`--width` is the option of that name of whatever takes it, `--model.width` that of the model.
"""

import collections.abc
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any, NamedTuple

import jax
from absl import flags
from jaxtyping import ArrayLike

from bpresearch import models
from bpresearch.command.axes import numbers, values
from bpresearch.command.start import choose
from bpresearch.sweep.axes import Axes
from bpresearch.sweep.options import SETTLED, Settings, parameters

FLAGS = flags.FLAGS

BELOW_ONE = {"momentum", "b1", "b2", "b3", "decay", "rho", "adam_b1", "adam_b2", "decrease_factor"}
ANY_NUMBER = {"f_min", "lower_bound", "alpha"}
FROM_ZERO = {"depth"}
MOST_LAYERS = {"depth": 10_000}
"""A model of more could not be built in a day."""
ABOVE_ZERO = {"clip_norm": "nothing would be trained"}
"""Options that 0 is wrong for, and what it would do."""
MOST_NAMED = 12
"""Functions of one default that the help names."""
DEFAULTS = {"momentum": "0.9"}
"""What an option gets that has no default of its own and is not given."""


class Owner(NamedTuple):
    """A function that takes an option."""

    kind: str
    """model, optimizer, schedule, or the schedule of something"""
    name: str
    parameter: Parameter
    hint: object
    """The annotation; `Parameter.empty` if there is none."""
    ours: bool


_owners: dict[str, list[Owner]] = {}


def define_option_flags(kind: str, functions: Mapping[str, Callable[..., object]]) -> None:
    """Defines a flag for each option of these functions that a flag can give."""
    for name, function in functions.items():
        hints = _hints(function)
        for option, parameter in parameters(kind, function).items():
            ours = (getattr(function, "__module__", "") or "").startswith("bpresearch.")
            owner = Owner(kind, name, parameter, hints.get(option, Parameter.empty), ours)
            if (kind == "optimizer" and option in SETTLED) or form_of(owner) is None:
                continue
            for flag in (option, f"{kind}.{option}"):
                short_for_other = flag == option and kind.endswith("_schedule")
                if short_for_other or (flag in FLAGS and flag not in _owners):
                    continue  # an option with the name of another flag has its full one alone
                if flag not in FLAGS:
                    _define(flag, form_of(owner) is bool)
                known = _owners.setdefault(flag, [])
                known[:] = [other for other in known if other[:2] != owner[:2]] + [owner]


def _define(flag: str, boolean: bool) -> None:
    if boolean:
        text: flags.ArgumentParser[str] = flags.ArgumentParser()
        as_text: flags.ArgumentSerializer[str] = flags.ArgumentSerializer()
        flags.DEFINE_flag(flags.Flag(text, as_text, flag, None, "", boolean=True))
    else:
        flags.DEFINE_string(flag, None, "")


def option_names() -> list[str]:
    """The options' flags, with their short and their full names."""
    return list(_owners)


def help_lines() -> list[str]:
    """A line for each option: what takes it, with the defaults."""
    lines = []
    for flag, owners in sorted(_owners.items()):
        if "." in flag:
            continue
        by_default: dict[str, list[str]] = {}
        for owner in owners:
            by_default.setdefault(_shown(owner.parameter.default), []).append(owner.name)
        parts = []
        for default, names in by_default.items():
            listed = ", ".join(names) if len(names) <= MOST_NAMED else f"{len(names)} {owners[0].kind}s"
            parts.append(f"{listed} ({default})" if default else listed)
        lines.append(f"  --{flag}: {'; '.join(parts)}")
    return lines


def option_axes(chosen: Mapping[str, Mapping[str, Callable[..., object]]]) -> Axes:
    """The axes that the option flags describe, for the functions that are chosen: by kind and name.

    Raises:
        ValueError: a flag is of a function that is not chosen, or of two of them, or a value is not right.
    """
    axes: Axes = {}
    for flag, owners in _owners.items():
        if not FLAGS[flag].present:
            continue
        taking = [owner for owner in owners if owner.name in chosen.get(owner.kind, {})]
        kinds = list(dict.fromkeys(owner.kind for owner in taking))
        if not kinds:
            named = list(dict.fromkeys(owner.kind for owner in owners))
            of = " or ".join(f"--{kind}={','.join(chosen[kind])}" for kind in named if kind in chosen)
            raise ValueError(f"--{flag} is not a flag of {of or 'this command'}")
        if len(kinds) > 1:
            full = " or ".join(f"--{kind}.{flag}" for kind in kinds)
            raise ValueError(f"--{flag} is an option of {' and '.join(kinds)}: write {full}")
        axes[flag] = parsed(flag, str(FLAGS[flag].value), taking[0])
    for kind, functions in chosen.items():
        for name, function in functions.items():
            for option, parameter in parameters(kind, function).items():
                settled = kind == "optimizer" and option in SETTLED
                required = parameter.default is Parameter.empty and not settled
                if required and option not in axes and f"{kind}.{option}" not in axes:
                    if option in DEFAULTS and option in _owners:
                        axes[option] = parsed(option, DEFAULTS[option], _owners[option][0])
                    elif option in _owners or f"{kind}.{option}" in _owners:
                        raise ValueError(
                            f"--{option}: {name} takes {option}, which has no default; give it a value"
                        )
    return axes


def base_width(flag: str, text: str, chosen: Mapping[str, Callable[..., object]]) -> Settings:
    """The option of the models that are chosen, and its value in that of base width: `width:64`.

    Raises:
        ValueError: it is none of a model's, or takes another value.
    """
    name, _, value = text.partition(":")
    taking = [o for o in _owners.get(f"model.{name}", []) if o.kind == "model" and o.name in chosen]
    if len(taking) < len(chosen) or not value:
        raise ValueError(
            f"--{flag}={text}: takes an option of --model={','.join(chosen)} and its value in the model of "
            "base width, such as width:64"
        )
    widths = parsed(flag, value, taking[0])
    if len(widths) != 1:
        raise ValueError(f"--{flag}={text}: takes one value")
    return {name: widths[0]}


def parsed(flag: str, text: str, owner: Owner) -> list[Any]:
    """The values of an option, from what the user wrote: one or many."""
    form, option = form_of(owner), owner.parameter.name
    if isinstance(form, tuple):
        return [_choice(flag, name, owner, form) for name in values(flag, text, str)]
    if form is bool:
        words = {"true": True, "false": False}
        return [words[choose(flag, name.lower(), words)] for name in values(flag, text, str)]
    if form is list:
        return [_sizes(flag, part, owner) for part in text.split("/")]
    if form is str:
        return values(flag, text, str)
    if form is object:
        return [_guessed(value) for value in values(flag, text, str)]
    low: float | int = -math.inf
    if owner.ours:
        low = 0
        if owner.kind == "model" and option not in FROM_ZERO:
            low = 1
        if option in ANY_NUMBER:
            low = -math.inf
    high = 1 if owner.ours and owner.kind == "optimizer" and option in BELOW_ONE else math.inf
    if owner.ours and owner.kind == "model" and option in MOST_LAYERS:
        high = MOST_LAYERS[option] + 1
    axis = numbers(flag, text, form, low=low, high=high)
    if owner.ours and option in ABOVE_ZERO and any(value == 0 for value in axis):
        raise ValueError(f"--{flag}={text}: takes values above 0; with 0, {ABOVE_ZERO[option]}")
    return axis


def form_of(owner: Owner) -> Any:
    """How an option is written: float, int, str, bool; list for sizes; a tuple of the words that it takes;
    object for whatever it looks like; None if a flag cannot give it."""
    hint, default = _plain(owner.hint), owner.parameter.default
    if owner.ours and owner.kind == "model" and owner.parameter.name in models.CHOICES:
        return tuple(models.CHOICES[owner.parameter.name])
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    if callable(default) and default is not Parameter.empty:
        return tuple(models.ACTIVATIONS) if _is_activation(default) else None
    for form in (bool, int, float, str):
        if hint is form or (hint is Parameter.empty and type(default) is form):
            return form
    if hint == ArrayLike or hint in (jax.Array, float | int, int | float):
        return float
    origin = typing.get_origin(hint) or hint
    if origin in (tuple, list, Sequence, collections.abc.Sequence) or isinstance(default, tuple | list):
        return list
    if hint is Parameter.empty and (default is None or default is Parameter.empty):
        return object if owner.kind != "optimizer" else float
    return None


def _is_activation(function: Callable[..., object]) -> bool:
    """Whether it is one of ours, or of `jax.nn`, such as `nnx.gelu`, which ours give options to."""
    name = getattr(function, "__name__", "")
    return function in models.ACTIVATIONS.values() or getattr(jax.nn, name, None) is function


def _plain(hint: object) -> object:
    """An annotation without `Annotated` and without None."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        left = [part for part in typing.get_args(hint) if part is not type(None)]
        return left[0] if len(left) == 1 else hint
    return hint


def _hints(function: Callable[..., object]) -> dict[str, object]:
    """The annotations of a function, or of what makes an object of a class."""
    target = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    try:
        return typing.get_type_hints(target)
    except Exception:  # of names that are not there when it runs, say: then there are none
        return {}


def _choice(flag: str, text: str, owner: Owner, words: tuple[Any, ...]) -> object:
    """The value of a word: an activation's is a function; of padding, a number is one too."""
    if owner.parameter.name == "padding" and owner.ours:
        if text.isdigit():
            return int(text)
        if text.upper() not in words:
            raise ValueError(f"--{flag}={text}: takes SAME, VALID or a number of zeros, such as 1")
        return text.upper()
    by_text = {str(word): word for word in words}
    word = by_text[choose(flag, text, by_text)]
    return models.ACTIVATIONS[word] if callable(owner.parameter.default) else word


def _sizes(flag: str, text: str, owner: Owner) -> tuple[int | float, ...]:
    """One value that is several numbers: `100,100`."""
    default = owner.parameter.default
    kind = float if isinstance(default, tuple | list) and any(isinstance(n, float) for n in default) else int
    if not text.strip():
        return ()
    try:
        sizes = tuple(kind(part) for part in text.split(","))
    except ValueError:
        sizes = (0,)
    if kind is int and min(sizes) < 1:
        raise ValueError(f"--{flag}={text}: takes positive integers, such as 100,100; several with / between")
    return sizes


def _guessed(text: str) -> bool | int | float | str | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"none": None, "true": True, "false": False}.get(text.lower(), text)


def _shown(default: object) -> str:
    if default is Parameter.empty or default is None:
        return ""
    for name, function in models.ACTIVATIONS.items():
        if default is function:
            return name
    if callable(default):
        return getattr(default, "__name__", "")
    return ",".join(map(str, default)) if isinstance(default, tuple | list) else str(default)
