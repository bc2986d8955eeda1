"""An experiment of the theory as a command: its flags are the parameters of a function `page`.

    def page(
        *,
        width: Annotated[int, Flag("width of the hidden layers", low=1)] = 50,
        lr: Annotated[tuple[float, ...], Flag("learning rates", low=0)] = listed("logspace:0.01:1:9"),
        quick: bool = False,
    ) -> report.Finding:

    if __name__ == "__main__":
        command.run_page(page)

A parameter `quick` is whether a reduced size is asked for, `workdir` the folder of the results.
"""

import hashlib
import inspect
import json
import math
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from absl import flags
from rich.console import Console

from bpresearch import files, platform, report
from bpresearch.command.axes import numbers, values
from bpresearch.command.start import output_file, output_folder, run
from bpresearch.distribution import Uniform

FLAGS = flags.FLAGS


class Flag(NamedTuple):
    """What a parameter of a page is, and what its flag takes.

    Attributes:
        text: what `--help` says of it.
        low, high: its numbers are at least `low` and below `high`.
        least: of a list, how many numbers it has at least.
        why: what fewer would not give.
    """

    text: str
    low: float = -math.inf
    high: float = math.inf
    least: int = 1
    why: str = ""


class Listed(tuple):
    """Numbers, and how a flag lists them."""

    text: str


def listed(text: str, kind: type = float) -> Listed:
    """The numbers that a flag's text lists: the default of a parameter that takes many.

    >>> from bpresearch.command import listed
    >>> listed("logspace:0.01:1:3"), listed("0:3", int)
    ((0.01, 0.1, 1.0), (0, 1, 2))
    """
    default = Listed(values("default", text, kind))
    default.text = text
    return default


class Option(NamedTuple):
    """A parameter of a page as a flag."""

    name: str
    kind: type
    many: bool
    flag: Flag
    default: Any

    def define(self) -> None:
        """Defines the flag."""
        text = self.flag.text + (f", at least {self.flag.least}" if self.flag.least > 1 else "")
        if self.many:
            flags.DEFINE_string(self.name, self.default.text, text, module_name=sys.argv[0])
        else:
            makes: dict[type, Callable[..., object]] = {
                int: flags.DEFINE_integer,
                float: flags.DEFINE_float,
                bool: flags.DEFINE_bool,
            }
            makes[self.kind](self.name, self.default, text, module_name=sys.argv[0])

    def value(self) -> object:
        """What the user gave.

        Raises:
            ValueError: it is not what the flag takes.
        """
        given, flag = getattr(FLAGS, self.name), self.flag
        if self.kind is bool:
            return given
        axis = numbers(self.name, str(given), self.kind, low=flag.low, high=flag.high)
        if any(isinstance(value, Uniform) for value in axis):
            raise ValueError(
                f"--{self.name}={given}: takes a list or a range; only a sweep with --sampler draws values"
            )
        if len(axis) < flag.least:
            raise ValueError(f"--{self.name}={given}: takes at least {flag.least} values, {flag.why}")
        return tuple(axis) if self.many else axis[0]


def options(page: Callable[..., report.Finding]) -> list[Option]:
    """The parameters of a page that become flags, in order."""
    parameters, hints = [], typing.get_type_hints(page, include_extras=True)
    for name, parameter in inspect.signature(page).parameters.items():
        if name not in ("quick", "workdir"):
            form, flag = typing.get_args(hints[name])
            many = typing.get_origin(form) is tuple
            kind = typing.get_args(form)[0] if many else form
            parameters.append(Option(name, kind, many, flag, parameter.default))
    return parameters


def run_page(page: Callable[..., report.Finding]) -> NoReturn:
    """Runs an experiment: flags from its signature, and what it found printed, drawn and written.

    The flags beside its own are `--quick`, `--json` (its figures, and what its checks measured, as
    `check.NAME`), `--workdir` and `--platform`. Exit codes: 0 if every check holds, 1 if one does not, 2 for
    bad input.
    """
    name, own = Path(sys.argv[0]).stem, options(page)
    flags.DEFINE_bool("quick", False, "reduced size: done within two minutes")
    flags.DEFINE_string("json", None, "file for the figures, as one flat object")
    flags.DEFINE_string(
        "workdir", None, "folder of the results; by default one in results/ named after the settings"
    )
    flags.DEFINE_string("platform", None, "cpu, gpu, tpu; by default the best there is")
    for option in own:
        option.define()

    def main() -> int:
        given: dict[str, object] = {option.name: option.value() for option in own}
        json_file = output_file("json")
        platform.start(FLAGS.platform)
        workdir, taken = _workdir(name), inspect.signature(page).parameters
        new = not workdir.exists()
        workdir.mkdir(parents=True, exist_ok=True)
        for parameter, value in (("quick", FLAGS.quick), ("workdir", workdir)):
            if parameter in taken:
                given[parameter] = value
        try:
            finding = page(**given)
        except ValueError:  # of settings that do not go together
            if new and not any(workdir.iterdir()):
                workdir.rmdir()
            raise
        compared = {f"check.{check.what}": check.measured for check in finding.checks}
        files.write_figures(json_file, {**finding.figures, **compared})
        return report.conclude(Console(), finding, workdir)

    run(main, about=page)


def _workdir(name: str) -> Path:
    """--workdir, or a folder in results/ named after the experiment and its settings; not made yet."""
    if FLAGS.workdir == "":
        raise ValueError("--workdir= is empty: give the name of a folder")
    own = {flag.name: flag.value for flag in FLAGS.flags_by_module_dict().get(sys.argv[0], [])}
    settings = own | {"quick": FLAGS.quick}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return output_folder("workdir", Path(FLAGS.workdir or f"results/{name}-{digest[:8]}").expanduser())
