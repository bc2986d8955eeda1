"""Which of Flax's layers and activations and of Optax's losses have a hand-written rule?

Walks the namespaces of the installed versions. Exit code 0: each name has a rule or a stated reason for
having none, 1: some have neither. With --quick, the counts and the missing names alone.

    scripts/run scripts/coverage.py
    scripts/run scripts/coverage.py --quick --json=coverage.json
"""

import json

from absl import flags

from bpresearch import chainrule
from bpresearch import flags as shared
from bpresearch.flags.command import output_file

flags.DEFINE_bool("quick", False, "print the counts and what is missing, not the table")
flags.DEFINE_string("json", None, "file for the counts: names, with_rule, excused, missing")


def main() -> int:
    file = output_file("json")
    table = chainrule.coverage()
    print(str(table).splitlines()[-1] if flags.FLAGS.quick else table)
    for name in table.missing:
        print(f"{name} has neither a rule nor a reason for having none")
    if file is not None:
        counts = {
            "names": len(table.rows),
            "with_rule": len(table.with_rule),
            "excused": len(table.excused),
            "missing": len(table.missing),
        }
        file.write_text(json.dumps(counts, indent=2) + "\n")
    return 1 if table.missing else 0


if __name__ == "__main__":
    shared.run(main)
