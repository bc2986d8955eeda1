"""What is imported when it is first used, and what may not be installed.

The base install holds what verification needs; everything else comes with extras of pyproject.toml.
"""

import ast
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

EXTRA_OF = {
    "altair": "report",
    "jinja2": "report",
    "markupsafe": "report",
    "mnist1d": "data",
    "optuna": "optuna",
    "orbax": "sweep",
    "pandas": "sweep",
    "pdoc": "docs",
    "pyarrow": "export",
    "sklearn": "data",
    "tensorboardX": "export",
    "torch": "torch",
    "vl_convert": "report",
    "xarray": "sweep",
    "zarr": "sweep",
}
"""The extra that installs each module which the base install lacks."""


class MissingExtraError(ImportError, ValueError):
    """Something is not installed; the message is one line that says what to install.

    A `ValueError` too, as is all that a user can put right.
    """


def missing(error: ModuleNotFoundError, needed_by: str) -> ImportError:
    """The error that says what to install, or the same error if its module is in no extra.

    >>> print(missing(ModuleNotFoundError(name="zarr.storage"), "bpresearch.sweep"))
    bpresearch.sweep needs zarr, which is not installed: pip install 'bpresearch[sweep]'; in the source tree
    EXTRAS=sweep scripts/run ...
    """
    module = (error.name or "").partition(".")[0]
    if module not in EXTRA_OF:
        return error
    name = EXTRA_OF[module]
    return MissingExtraError(
        f"{needed_by} needs {module}, which is not installed: pip install 'bpresearch[{name}]'; in the "
        f"source tree EXTRAS={name} scripts/run ..."
    )


def extra(module: str, needed_by: str) -> ModuleType:
    """A module of an extra.

    Args:
        module: its name.
        needed_by: what cannot do without it, for the message.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise missing(error, needed_by) from error


def demand(*modules: str) -> None:
    """Raises a ModuleNotFoundError if one of these modules is not installed; imports none of them."""
    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def on_demand(package: str, file: str) -> Callable[[str], Any]:
    """A package's `__getattr__`: what the package imports for type checkers is imported when it is used.

    Args:
        package: its `__name__`.
        file: its `__file__`; imports in `if TYPE_CHECKING:` there, all of them `from ... import ...`, say
            which name is where.
    """
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    for_types = [node for node in tree.body if isinstance(node, ast.If)]
    places = {
        alias.name: str(node.module)
        for block in for_types
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def attribute(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = import_module(places[name])
            return getattr(module, name) if name in vars(module) else import_module(f"{places[name]}.{name}")
        except ModuleNotFoundError as error:
            raise missing(error, f"{package}.{name}") from error

    return attribute
