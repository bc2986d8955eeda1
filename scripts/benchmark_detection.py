"""Which wrong gradients does a checker find, does it name the culprit, and does it leave right ones alone?

Around every rule a small model is built, and faults are planted in the rule one at a time: of the rule as a
whole, in single operations of its backward pass, and made by hand (mutations, operations and faults in
bpresearch.verify.detection). A fault counts if it changes some gradient by 1e-6 of its size or more. Asked,
side by side: bpresearch (verify.model), jax.test_util.check_grads in float32 and float64, and
torch.autograd.gradcheck, slow and fast, where PyTorch is installed. Then random models with right gradients
are verified, chains of layers and models as users write them, in three precisions and at scales from 1e-3 to
1e3. A new seed is drawn and printed each time: of the weights and data of all of them. Exit code 1 if
bpresearch missed a fault, named another layer, or rejected a right gradient.
"""

import json
import random
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import jax
from absl import flags
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bpresearch import command as shared
from bpresearch import files, platform, verify
from bpresearch.verify.detection import cases, random_models
from bpresearch.verify.detection.mutations import changes
from bpresearch.verify.detection.peers import PEERS, Peers

flags.DEFINE_bool("quick", False, "a sample of rules, faults and models: done within 50 s")
flags.DEFINE_bool("peers", True, "ask the other checkers too")
flags.DEFINE_integer("models", 1000, "number of random models with right gradients")
flags.DEFINE_integer(
    "draws", 10, "how many of them share an architecture, with other weights, data and scales"
)
flags.DEFINE_integer(
    "seed", None, "of weights, data, random models and the sample that --quick takes; by default drawn anew"
)
flags.DEFINE_string("json", None, "file for the figures, as one flat object")

EFFECT = 1e-6
"""A fault that changes no gradient by this share of its size is none."""
TOGETHER = 24
"""Faults in one program: with 60 of `ctc_loss` LLVM ran out of what a process may map."""


@dataclass
class Tally:
    """What was planted and what each checker said."""

    planted: int = 0
    rules: set[str] = field(default_factory=set)
    found: Counter = field(default_factory=Counter)
    rejected: Counter = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    culprit_right: int = 0
    right: int = 0
    complaints: list[str] = field(default_factory=list)


def plant_all(case: cases.Case, faults: dict[str, verify.Plant], tally: Tally, peers: list[str]) -> None:
    """Plants each of the faults in turn and asks every checker."""
    others = Peers(case, list(faults.values()))
    effective: list[str] = []
    for first in range(0, len(faults), TOGETHER):
        names = list(faults)[first : first + TOGETHER]
        effective += plant(case, {name: faults[name] for name in names}, tally, is_first=first == 0)
    if effective:
        tally.rules.add(case.name)
    numbers = {name: number for number, name in enumerate(faults)}
    for peer in peers:
        begun = time.perf_counter()
        tally.rejected[peer] += not others.passes(peer, -1)
        tally.found[peer] += sum(not others.passes(peer, numbers[name]) for name in effective)
        tally.seconds[peer] += time.perf_counter() - begun


def plant(case: cases.Case, faults: dict[str, verify.Plant], tally: Tally, is_first: bool) -> list[str]:
    """Plants these faults in one program and asks bpresearch; names those that change a gradient."""
    begun = time.perf_counter()
    question = case.model, case.loss_fn, case.x, case.y
    check = verify.prepare(*question, "float64", ["autodiff", "rule"], list(faults.values()))
    reports = {}
    gradients = {}
    for number, name in enumerate(["", *faults], -1):
        reports[name] = check(case.model, case.x, case.y, fault=number)
        gradients[name] = check.gradient(case.model, case.x, case.y, number)
    tally.seconds["bpresearch"] += time.perf_counter() - begun
    effective = [name for name in faults if changes(gradients[name], gradients[""]) >= EFFECT]
    tally.planted += len(effective)
    if is_first:
        tally.right += 1
        tally.rejected["bpresearch"] += reports[""].passed is False
        if reports[""].passed is False:
            tally.complaints.append(f"rejected: the rule of {case.name} as it is: {reports[''].summary()}")
    for name in effective:
        report = reports[name]
        tally.found["bpresearch"] += report.passed is False
        tally.culprit_right += report.culprits == (case.where,)
        if report.passed is not False or report.culprits != (case.where,):
            named = ", ".join(report.culprits) or "nobody"
            tally.complaints.append(f"missed: {name} in {case.name} at {case.where}; blamed: {named}")
    return effective


def table(tally: Tally, peers: list[str]) -> Table:
    """One line for each checker."""
    shown = Table()
    for heading in ("checker", "faults found", "culprit named", "right rejected", "ms a check"):
        shown.add_column(heading, no_wrap=heading == "checker")
    for name in ["bpresearch", *peers]:
        each = tally.seconds[name] / max(tally.planted + tally.right, 1)
        shown.add_row(
            name,
            f"{tally.found[name]} of {tally.planted}",
            f"{tally.culprit_right} of {tally.planted}" if name == "bpresearch" else "-",
            f"{tally.rejected[name]} of {tally.right}",
            f"{1000 * each:.0f}",
        )
    return shown


def forgetting(numbers: Iterable[int]) -> Iterator[int]:
    """The same numbers; programs compiled before are let go of every hundredth time."""
    for number in numbers:
        if number % 100 == 0:
            jax.clear_caches()
        yield number


def main() -> int:
    json_file = shared.output_file("json")
    quick, count, draws = flags.FLAGS.quick, flags.FLAGS.models, flags.FLAGS.draws
    if count < 0:
        raise ValueError(f"--models={count}: takes an integer of at least 0")
    if draws < 1:
        raise ValueError(f"--draws={draws}: takes an integer of at least 1")
    platform.start("cpu")
    console = Console()
    seed = secrets.randbelow(2**31) if flags.FLAGS.seed is None else flags.FLAGS.seed
    print(f"seed {seed}: --seed={seed} draws the same models again")
    choose = random.Random(seed)
    known, missing = cases.cases(seed)
    if quick:
        known, count, draws = choose.sample(known, min(3, len(known))), min(count, 9), min(draws, 3)
    peers = [name for name, available in PEERS.items() if available()] if flags.FLAGS.peers else []
    tally = Tally()
    for case in track(known, "planting", console=console, transient=True):
        faults = cases.faults_of(case, each=1 if quick else 6)
        plant_all(case, faults, tally, peers)
        jax.clear_caches()  # a process may map memory only so often, and every program does
    console.print(table(tally, peers))
    for line in [*tally.complaints, *(f"no case for the rule of {m}" for m in missing)]:
        print(line)
    begun = time.perf_counter()
    models = random_models.verify_many(
        count, draws, seed, lambda numbers: forgetting(track(numbers, "right gradients", console=console))
    )
    console.print(
        f"{models.verified} random models, {models.architectures} architectures: {models.rejected} rejected, "
        f"{models.undecided_models} undecided ({models.undecided} of {models.leaves} leaves), in "
        f"{time.perf_counter() - begun:.0f} s"
    )
    for line in models.complaints:
        print(line)
    figures = {
        "seed": seed,
        "planted": tally.planted,
        "rules": len(tally.rules),
        "rules_without_case": len(missing),
        "found": tally.found["bpresearch"],
        "culprit_right": tally.culprit_right,
        "correct_models": models.verified + tally.right,
        "correct_rejected": models.rejected + tally.rejected["bpresearch"],
        "undecided_share": models.undecided / max(models.leaves, 1),
        "undecided_models": models.undecided_models,
        **{f"{peer}.found": tally.found[peer] for peer in peers},
        **{f"{peer}.correct_rejected": tally.rejected[peer] for peer in peers},
    }
    if json_file:
        files.write(json_file, json.dumps(figures, indent=2))
    all_found = tally.found["bpresearch"] == tally.culprit_right == tally.planted
    return 0 if all_found and not figures["correct_rejected"] else 1


if __name__ == "__main__":
    shared.run(main)
