"""Files of the user's own: loaded where a flag names one, and shown where they fail."""

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).parents[1]
PARTS = (
    "data",
    "model",
    "loss",
    "optimizer",
    "optimizers",
    "schedule",
    "schedules",
    "metrics",
    "diagnostics",
)
"""What a task file may hold."""

_loaded: dict[Path, ModuleType] = {}
_folders: set[Path] = set()


class FileError(Exception):
    """A file of the user's own cannot be loaded: it raised the error that this one is from."""


def is_file(text: str) -> bool:
    """Whether a flag's text names something in a file: `net.py:Net`, or a whole file, `task.py`.

    >>> is_file("nets/own.py:Net"), is_file("task.py"), is_file("mlp")
    (True, True, False)
    """
    return text.rpartition(":")[0].endswith(".py") or text.endswith(".py")


def named(flag: str, text: str) -> Any:
    """What `FILE.py:NAME` names.

    Raises:
        ValueError: there is no such file, or no such name in it.
        FileError: the file cannot be loaded.
    """
    file, _, name = text.rpartition(":")
    if not file:
        raise ValueError(f"--{flag}={text}: name what to take of the file, as in {text}:NAME")
    module = load(flag, file)
    if not hasattr(module, name):
        known = [key for key, value in vars(module).items() if _own(module, value)]
        raise ValueError(f"--{flag}={text}: the file has no {name}; it has {', '.join(known) or 'nothing'}")
    return getattr(module, name)


def task_parts(flag: str, text: str) -> dict[str, Any]:
    """The parts of a task file that it has, of `PARTS`.

    Raises:
        ValueError: there is no such file, or a part is not what it should be.
        FileError: the file cannot be loaded.
    """
    module = load(flag, text)
    parts = {name: getattr(module, name) for name in PARTS if hasattr(module, name)}
    for name, part in parts.items():
        if name in ("optimizers", "schedules", "metrics"):
            fits, form = (
                isinstance(part, Mapping) and all(map(callable, part.values())),
                "a dict of functions",
            )
        elif name == "diagnostics":
            fits, form = isinstance(part, list | tuple), "a list of functions"
        else:
            fits, form = callable(part) or (name == "data" and isinstance(part, Mapping)), "a function"
        if not fits:
            raise ValueError(f"--{flag}={text}: its {name} is of type {type(part).__name__}: must be {form}")
    return parts


def load(flag: str, text: str) -> ModuleType:
    """The module of a file, which may import what lies beside it.

    Raises:
        ValueError: there is no such file.
        FileError: the file raises an error.
    """
    path = Path(text).expanduser().resolve()
    if path in _loaded:
        return _loaded[path]
    if not path.is_file():
        raise ValueError(f"--{flag}={text}: there is no file {path}")
    name = f"bpresearch_own_{len(_loaded)}_{path.stem}"  # no module that it may import is called that
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    _loaded[path] = sys.modules[name] = module  # dataclasses look their module up there
    _folders.add(path.parent)
    sys.path.insert(0, str(path.parent))
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del _loaded[path], sys.modules[name]
        raise FileError(f"--{flag}={text} cannot be loaded") from error
    return module


def stem(text: str) -> str:
    """The name of a file without folder and ending."""
    return Path(text).stem


def digest() -> str:
    """Of the text of every file that was loaded; empty if none was."""
    if not _loaded:
        return ""
    texts = [path.read_bytes() for path in sorted(_loaded)]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


def own_traceback(error: BaseException) -> str:
    """An error that a user's own file raised, as Python shows it, from the first line of theirs on and
    without lines of ours; empty if no line is theirs, and it is no error of syntax."""
    shown = traceback.TracebackException.from_exception(error)
    theirs = [frame for frame in shown.stack if _is_theirs(Path(frame.filename))]
    if not theirs and not isinstance(error, SyntaxError):
        return ""
    frames = [frame for frame in shown.stack if PACKAGE not in Path(frame.filename).parents]
    frames = frames[frames.index(theirs[0]) :] if theirs else []
    frames = [
        frame for frame in frames if not (frame.filename.startswith("<") or _is_jaxs(Path(frame.filename)))
    ]
    shown.stack = traceback.StackSummary.from_list(frames)
    shown.__cause__ = shown.__context__ = None
    notes = shown.__notes__ or []  # type: ignore[has-type]
    shown.__notes__ = [note for note in notes if "JAX has removed" not in note and note.strip("-")]
    return "".join(shown.format()).rstrip()


def _is_theirs(file: Path) -> bool:
    ours = PACKAGE in file.parents or "site-packages" in file.parts or file == Path(sys.argv[0]).resolve()
    return not ours and any(folder in file.parents for folder in _folders)


def _is_jaxs(file: Path) -> bool:
    return "site-packages" in file.parts and {"jax", "_src"} <= set(file.parts)


def _own(module: ModuleType, value: object) -> bool:
    return (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__
