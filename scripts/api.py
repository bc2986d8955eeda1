"""API pages made from the docstrings, with pdoc: EXTRAS=docs scripts/run scripts/api.py.

A page for each room of the package, for each oracle and for each file of rules. Exit code 1 where pdoc warns:
a name that is exported and not there, an annotation that cannot be read.
"""

import re
import sys
import warnings
from importlib import import_module
from pathlib import Path

from absl import flags

import bpresearch
from bpresearch import command as shared
from bpresearch import imports

flags.DEFINE_string("out", "results/api", "folder of the pages; index.html is the first")

PACKAGES = ("bpresearch", "bpresearch.verify.oracles", "bpresearch.chainrule.rules")
NOT_OURS = "ArrayTree"
"""A name in the annotations of Optax's own types, which pdoc does not find there."""


def main() -> int:
    pdoc = imports.extra("pdoc", "scripts/api.py")
    for room in (
        bpresearch,
        *(import_module(f"bpresearch.{name}") for name in bpresearch.__all__ if name != "explain"),
    ):
        for name in getattr(room, "__all__", ()):  # what is loaded when it is first used, is used
            setattr(room, name, getattr(room, name))
    out = Path(flags.FLAGS.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out={out}: cannot write there ({error.strerror})") from error
    pdoc.render.configure(docformat="google", math=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pdoc.pdoc(*PACKAGES, output_directory=out)
    wrong = [str(warning.message) for warning in said if not re.search(NOT_OURS, str(warning.message))]
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"{len(list(out.rglob('*.html')))} pages: {out / 'index.html'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    shared.run(main)
