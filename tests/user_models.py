"""The ten models of `tests/chainrule/user_models`, as users of Flax build them, for every test of them."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "chainrule" / "user_models"
NAMES = sorted(file.stem for file in FOLDER.glob("*.py"))


def some(*always):
    """All names, as parameters of a test: these always, the others with `scripts/test --full`."""
    return [name if name in always else pytest.param(name, marks=pytest.mark.full) for name in NAMES]


def load(name):
    """The module of a model's file: its `make()` gives the model, its loss, x and y."""
    specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
