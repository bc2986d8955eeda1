"""Which of JAX's primitives, Flax's layers and activations and Optax's losses have a hand-written rule?

Walks the namespaces of the installed versions and JAX's table of derivatives. With --functions, the
derivatives of JAX's own public functions are compared with JAX's and with finite differences, in minutes.
With --quick, the counts and what is missing alone, and a sample of the functions. Exit code 0: each has a
rule or a stated reason for having none, and no function is wrong, 1: not so.

    bpresearch coverage
    bpresearch coverage --functions --json=coverage.json
"""

import json

from absl import flags

from bpresearch import chainrule
from bpresearch.command.start import output_file
from bpresearch.verify.detection.functions import Functions, functions

SAMPLE = 30
"""With --quick one function of so many is tried."""


def define_flags() -> None:
    """The flags of `bpresearch coverage`."""
    flags.DEFINE_bool("functions", False, "compare the derivatives of JAX's public functions, too")
    flags.DEFINE_bool(
        "quick", False, "print the counts and what is missing, not the table; sample the functions"
    )
    flags.DEFINE_string(
        "json", None,
        "file for the counts: names, with_rule, excused, missing, the same of primitives as primitives, "
        "primitives_with_rule and so on, and with --functions: functions, functions_right",
    )  # fmt: skip


def main() -> int:
    file, quick = output_file("json"), flags.FLAGS.quick
    table = chainrule.coverage()
    print(f"{table.counts}\n{table.primitives.counts}" if quick else table)
    missing = table.missing + table.primitives.missing
    for name in missing:
        print(f"{name} has neither a rule nor a reason for having none")
    counts = {
        "names": len(table.rows),
        "with_rule": len(table.with_rule),
        "excused": len(table.excused),
        "missing": len(table.missing),
        "primitives": len(table.primitives.rows),
        "primitives_with_rule": len(table.primitives.with_rule),
        "primitives_excused": len(table.primitives.excused),
        "primitives_missing": len(table.primitives.missing),
    }
    wrong = []
    if flags.FLAGS.functions:
        tried = functions(every=SAMPLE if quick else 1)
        show(tried, quick)
        wrong = tried.wrong
        counts |= {"functions": len(tried.counted), "functions_right": len(tried.right)}
    if file is not None:
        file.write_text(json.dumps(counts, indent=2) + "\n")
    return 1 if missing or wrong else 0


def show(tried: Functions, quick: bool) -> None:
    if quick:
        print(f"a sample, one function of {SAMPLE}:")
        for row in tried.rows:
            if row.counts and not row.right:
                print(row)
    print(str(tried).splitlines()[-1] if quick else f"\n{tried}")
