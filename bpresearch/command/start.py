"""A script as a command: flags parsed, bad input in one line, exit codes."""

import difflib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from absl import app, flags, logging

from bpresearch import chainrule

FLAGS = flags.FLAGS


def run(main: Callable[[], int | None]) -> NoReturn:
    """Parses the flags and runs `main`; bad input becomes one line on stderr and exit code 2."""

    def parse(argv: Sequence[str]) -> list[str]:
        if any(argument.lstrip("-") in ("help", "h", "helpfull", "helpshort") for argument in argv[1:]):
            print(help_text(inspect.getmodule(main)))
            sys.exit(0)
        try:
            rest = FLAGS(argv)[1:]
        except flags.Error as error:
            fail(str(error))
        if rest:
            fail(f"{rest[0]!r} is not a flag: flags are written --name=value")
        return []

    def guarded(_: Sequence[str]) -> int | None:
        logging.set_verbosity(logging.WARNING)  # JAX tells of every platform it does not find
        try:
            return main()
        except (ValueError, chainrule.NoRuleError) as error:
            fail(str(error))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            reason = f"{where}{error.strerror or error}"
            fail(f"{reason}; what is saved is whole, the same command goes on from there")
        except KeyboardInterrupt as error:
            print(str(error) or "interrupted", file=sys.stderr)
            sys.exit(130)

    app.run(guarded, flags_parser=parse)


def output_file(flag: str) -> Path | None:
    """The file that a flag names, None if it names none; found to be writable before any work is done."""
    name = getattr(FLAGS, flag)
    if name is None:
        return None
    path = Path(name)
    if not name or path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"--{flag}={name}: takes the name of a file in a folder that exists")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"--{flag}={name}: cannot be written")
    return path


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    print(f"{sys.argv[0].rsplit('/', 1)[-1]}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def help_text(script: ModuleType | None) -> str:
    """A script's docstring and its flags with their defaults."""
    lines = [inspect.cleandoc(getattr(script, "__doc__", None) or ""), "", "Flags:"]
    own = FLAGS.flags_by_module_dict()
    shared = [
        flag for module, found in own.items() if module.startswith("bpresearch.command.") for flag in found
    ]
    for flag in [*own.get(sys.argv[0], []), *own.get("__main__", []), *shared]:
        default = "" if flag.default is None else f" (default: {flag.default_as_str})"
        lines.append(f"  --{flag.name}: {flag.help}{default}")
    return "\n".join(lines)


def choose(flag: str, name: str, choices: Iterable[str]) -> str:
    """`name` if it is one of the choices; otherwise a ValueError that names the flag and suggests."""
    choices = list(choices)
    if name in choices:
        return name
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"--{flag}={name} is not one of {', '.join(choices)}{hint}")
