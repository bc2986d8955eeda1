"""How a flag's text becomes values."""

import inspect
import math
import typing
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from bpresearch import command as shared
from bpresearch import models
from bpresearch.command import options
from bpresearch.distribution import Uniform
from bpresearch.sweep.options import parameters


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("0.1", float, [0.1]),
        ("0.01,0.1", float, [0.01, 0.1]),
        ("linspace:0:1:5", float, [0, 0.25, 0.5, 0.75, 1]),
        ("logspace:1e-3:1:4", float, [0.001, 0.01, 0.1, 1.0]),
        ("0:5", int, [0, 1, 2, 3, 4]),
        ("2:10:4", int, [2, 6]),
        ("3, 1", int, [3, 1]),
        ("sgd, momentum", str, ["sgd", "momentum"]),
    ],
)
def test_one_value_or_many(text, kind, expected):
    assert shared.values("lr", text, kind) == expected


@given(st.floats(1e-6, 1), st.floats(1.5, 1e6), st.integers(2, 9))
def test_ranges_hold_both_ends_and_equal_steps(low, factor, count):
    high = low * factor
    found = shared.values("lr", f"logspace:{low!r}:{high!r}:{count}")
    np.testing.assert_allclose(found[0], low, rtol=1e-10)
    np.testing.assert_allclose(found[-1], high, rtol=1e-10)
    np.testing.assert_allclose(np.diff(np.log(found)), math.log(factor) / (count - 1), rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("uniform:0:1", float, [Uniform(0.0, 1.0)]),
        ("loguniform:1e-4:1", float, [Uniform(1e-4, 1.0, log=True)]),
        ("loguniform:8:128", int, [Uniform(8, 128, log=True)]),
        ("choice:0.1,1", float, [0.1, 1.0]),
        ("choice:logspace:1:100:3", float, [1.0, 10.0, 100.0]),
        ("choice:adam,sgd", str, ["adam", "sgd"]),
    ],
)
def test_a_distribution_to_draw_from(text, kind, expected):
    assert shared.values("lr", text, kind) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uniform:1:0.1", "first end, 1.0, must be below the second, 0.1"),
        ("loguniform:0:1", "first end, 0.0, must be above 0"),
        ("uniform:0:nan", "below"),
        ("uniform:0", "cannot read it"),
        ("choice:", "cannot read it"),
    ],
)
def test_a_distribution_that_is_none_is_named(text, message):
    with pytest.raises(ValueError, match=f"--lr=.*{message}"):
        shared.values("lr", text)


def test_both_ends_of_a_distribution_must_be_in_the_range():
    assert shared.numbers("momentum", "uniform:0:0.99", low=0, high=1) == [Uniform(0.0, 0.99)]
    for text in ("uniform:0:1", "uniform:-1:0.9"):
        with pytest.raises(ValueError, match=r"--momentum=.*at least 0 and below 1"):
            shared.numbers("momentum", text, low=0, high=1)


@pytest.mark.parametrize("text", ["", " ", "a", "1,,2", "logspace:1:2", "linspace:0:1:x", "1:2", "0.1,0.1"])
def test_what_cannot_be_read_names_the_flag(text):
    with pytest.raises(ValueError, match="--lr=") as error:
        shared.values("lr", text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "0.5,1"])
def test_numbers_outside_their_range_are_named(text):
    with pytest.raises(ValueError, match=r"--momentum=.*at least 0 and below 1"):
        shared.numbers("momentum", text, low=0, high=1)


def test_a_name_that_is_nearly_right_is_suggested():
    assert shared.choose("model", "mlp", models.BY_NAME) == "mlp"
    with pytest.raises(ValueError, match=r"--schedule=cosin is not one of .*; did you mean cosine\?"):
        shared.choose("schedule", "cosin", shared.SCHEDULES)


class Net:
    """Options of every form, as a user annotates them."""

    def __init__(self, din: int, *, rngs, depth=2, rate=0.5, bias: bool = True, kind: Literal["a", "b"] = "a",
                 sizes: Sequence[int] = (3, 4), act=nnx.relu, gate=nnx.gelu, share: float | None = None,
                 free=None, helper=print):  # fmt: skip
        pass


@pytest.mark.parametrize(
    ("option", "text", "expected"),
    [
        ("din", "3,5", [3, 5]),
        ("depth", "1:3", [1, 2]),
        ("rate", "-0.5,2", [-0.5, 2.0]),
        ("bias", "true,False", [True, False]),
        ("kind", "b", ["b"]),
        ("sizes", "5,6/7", [(5, 6), (7,)]),
        ("act", "tanh", [nnx.tanh]),
        ("gate", "relu", [nnx.relu]),  # the default, Flax's own, is none of ours
        ("share", "0.1", [0.1]),
        ("free", "3,x,none", [3, "x", None]),
    ],
)
def test_an_option_is_read_as_its_annotation_or_default_says(option, text, expected):
    assert options.parsed(f"model.{option}", text, owner(option)) == expected


@pytest.mark.parametrize(
    ("option", "text"), [("depth", "1.5"), ("bias", "yes"), ("kind", "c"), ("sizes", "a"), ("act", "rely")]
)
def test_a_value_that_is_not_right_names_the_flag(option, text):
    with pytest.raises(ValueError, match=f"--model.{option}={text}"):
        options.parsed(f"model.{option}", text, owner(option))


def test_what_a_flag_cannot_give_has_none():
    assert options.form_of(owner("helper")) is None
    assert "rngs" not in parameters("model", Net)


def owner(option):
    hints = typing.get_type_hints(Net.__init__)
    return options.Owner(
        "model",
        "Net",
        parameters("model", Net)[option],
        hints.get(option, inspect.Parameter.empty),
        ours=False,
    )
