"""A script as a command: flags parsed, bad input in one line, exit codes."""

import atexit
import difflib
import gc
import inspect
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import jax
from absl import app, flags, logging

from bpresearch import chainrule
from bpresearch.command import ending, own

FLAGS = flags.FLAGS

HELP = ("help", "h", "helpfull", "helpshort")


class Stop(Exception):
    """Ends the program with an exit code: what was asked for is done."""

    def __init__(self, code: int = 0):
        super().__init__(code)
        self.code = code


def run(
    main: Callable[[], int | None],
    options: Callable[[], list[str]] | None = None,
    about: Callable[..., object] | None = None,
) -> NoReturn:
    """Parses the flags and runs `main`.

    Exit codes: 0 done, 1 the answer is no, 2 bad input, in one line. An error that a file of the user's own
    raises is shown as Python shows it, with their lines alone: exit code 2 if the file cannot be loaded, 1 if
    what it defines fails when it is used.

    Args:
        main: the command; returns the exit code, by default 0.
        options: defines more flags by the values of those there are; returns the help's lines on them.
        about: the function whose script's docstring is the help; by default `main`.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        asks_for_help = any(argument.lstrip("-") in HELP for argument in argv[1:])
        try:
            FLAGS.set_gnu_getopt(True)  # flags that are not known yet may have their value after a space
            more: list[str] = []
            if options:
                FLAGS([word for word in argv if word.lstrip("-") not in HELP], known_only=True)
                more = options()
            if asks_for_help:
                print(help_text(inspect.getmodule(about or main), more))
                sys.exit(0)
            rest = FLAGS(argv)[1:]
            check_numbers(argv)
        except (flags.Error, ValueError) as error:
            fail(str(error))
        except own.FileError as error:
            sys.exit(told_of(error, 2))
        if rest:
            fail(f"{rest[0]!r} is not a flag: flags are written --name=value")
        return []

    def guarded(_: Sequence[str]) -> int | None:
        gc.freeze()
        gc.enable()
        logging.set_verbosity(logging.WARNING)  # JAX tells of every platform it does not find
        try:
            return main()
        except Stop as stop:
            return stop.code
        except own.FileError as error:
            return told_of(error, 2)
        except KeyboardInterrupt as error:
            print(str(error) or "interrupted", file=sys.stderr)
            return 130
        except Exception as error:
            if not isinstance(error, chainrule.NoRuleError) and own.own_traceback(error):
                return told_of(error, 1)
            if ending.of_a_lost_process(error):
                fail(f"{ending.LOST} ({error})")
            if isinstance(error, OSError):
                where = f"{error.filename}: " if error.filename else ""
                reason = f"{where}{error.strerror or error}"
                fail(f"{reason}; what is saved is whole, the same command goes on from there")
            if isinstance(error, ValueError | chainrule.NoRuleError):
                fail(named(str(error)))
            if isinstance(error, RuntimeError) and "home directory" in str(error):
                paths = [f"--{flag.name}={flag.value}" for flag in shared_flags() if _of_no_user(flag.value)]
                fail(f"{paths[0] if paths else '~'}: {error}")
            raise

    atexit.register(gc.freeze)  # Python's last search for garbage took 0.9 s of a command's end
    try:
        app.run(guarded, flags_parser=parse)
    except SystemExit as end:
        if end.code and jax.distributed.is_initialized():
            ending.leave(end.code if isinstance(end.code, int) else 1)
        raise


def named(message: str) -> str:
    """A message that begins with a setting, with the dashes of its flag.

    What is called from Python says `slice=3`, and `--slice=3` is what was typed.
    """
    setting = re.match(r"([\w.]+)=", message)
    return f"--{message}" if setting and setting[1] in FLAGS else message


def _of_no_user(value: object) -> bool:
    return isinstance(value, str) and value.startswith("~") and os.path.expanduser(value) == value


def check_numbers(argv: Sequence[str]) -> None:
    """Refuses what absl reads as numbers and nobody means: hexadecimal ones, and zeros with a sign."""
    for flag in shared_flags():
        if not isinstance(flag.parser, flags.IntegerParser | flags.FloatParser):
            continue
        for number, word in enumerate(argv):
            name, equals, text = word.lstrip("-").partition("=")
            if not word.startswith("-") or name != flag.name:
                continue
            text = text if equals else argv[number + 1]
            if re.match(r"[+-]?0[xXoO]", text):
                raise ValueError(f"--{name}={text}: takes a decimal number, such as {flag.value}")
            if text.startswith("-") and flag.value == 0:
                raise ValueError(f"--{name}={text}: a zero has no sign: write 0")


def told_of(error: BaseException, code: int) -> int:
    """Shows an error that a user's own file raised; gives the exit code."""
    shown = error.__cause__ if isinstance(error, own.FileError) and error.__cause__ else error
    print(own.own_traceback(shown), file=sys.stderr)
    if isinstance(error, own.FileError):
        print(f"{program()}: {error}", file=sys.stderr)
    return code


def output_file(flag: str) -> Path | None:
    """The file that a flag names, None if it names none; found to be writable before any work is done."""
    name = getattr(FLAGS, flag)
    if name is None:
        return None
    path = Path(name).expanduser()
    try:
        if not name or path.is_dir() or not path.parent.is_dir():
            raise ValueError(f"--{flag}={name}: takes the name of a file in a folder that exists")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"--{flag}={name}: cannot be written ({error.strerror})") from error
    return path


def output_folder(flag: str, folder: Path) -> Path:
    """A folder that a flag names, or that follows from others; found to be writable before any work is done.

    It is not made yet.
    """
    try:
        exists = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=exists):
            pass
    except OSError as error:
        raise ValueError(f"--{flag}={folder}: cannot write there ({error.strerror})") from error
    return folder


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    print(f"{program()}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def program() -> str:
    """What the command was called as."""
    return sys.argv[0].rsplit("/", 1)[-1]


def help_text(script: ModuleType | None, more: Sequence[str] = ()) -> str:
    """A script's docstring and its flags with their defaults; more lines on flags without a text."""
    lines = [inspect.cleandoc(getattr(script, "__doc__", None) or ""), "", "Flags:"]
    defined = FLAGS.flags_by_module_dict()
    for flag in [*defined.get(sys.argv[0], []), *defined.get("__main__", []), *shared_flags()]:
        default = "" if flag.default is None else f" (default: {flag.default_as_str})"
        if flag.help:
            lines.append(f"  --{flag.name}: {flag.help}{default}")
    if more:
        lines += [
            "",
            "Options, one value or many; also as --model.NAME, --optimizer.NAME, --schedule.NAME:",
            *more,
        ]
    return "\n".join(lines)


def shared_flags() -> list[flags.Flag]:
    """The flags that this room has defined."""
    defined = FLAGS.flags_by_module_dict().items()
    return [flag for module, of in defined if module.startswith("bpresearch.command.") for flag in of]


def choose(flag: str, name: str, choices: Iterable[str]) -> str:
    """`name` if it is one of the choices; otherwise a ValueError that names the flag and suggests."""
    choices = list(choices)
    if name in choices:
        return name
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"--{flag}={name} is not one of {', '.join(choices)}{hint}")
