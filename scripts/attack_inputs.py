"""Flags and data files that nobody means, drawn at random; `attack_sweeps.py` counts the answers."""

import random
import re
import signal
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from absl.testing import flagsaver

from bpresearch import data
from bpresearch.command import compare, running, start
from bpresearch.sweep.checks import check, check_size

FLAGS = flags.FLAGS
SECONDS = 60
"""An answer that takes longer counts as none."""

# fmt: off
NUMBERS = [
    "0", "1", "-1", "-0", "0.0", "-0.0", "1e400", "nan", "inf", "0x10", "1_000", "99999999999999999999",
    "1e-400", "0:1000000000000", "linspace:0:1:100000000000", "logspace:0:1:3", "3:3", "5:0:-1", "0:5:0",
    "uniform:0:1", "loguniform:0:1", "uniform:1:0", "choice:", "1,1", "1,,2", ",", " ", "", "0.5",
    "1000000",
]
WORDS = [
    "", ",", "none", "all", "mlp", "mlp,mlp", "sgd", "~", "~nobody/x", "/dev/null/x", "/proc/x.json",
    "\0", "é", "a" * 5000, "../..", "FILE.py:NAME", "x.py", ":", "[" * 1000, "cosine_similarity", "1/3",
    "4/3", "width:64",
]
MEANT = {
    "model": "mlp,linear", "dataset": "spirals", "optimizer": "sgd,momentum,adam",
    "schedule": "cosine,linear", "lr": "logspace:1e-3:1:3", "momentum": "0.9,0.99",
    "batch_size": "10,32", "seed": "0:3", "steps": "20,30", "widths": "16,16", "activation": "relu,tanh",
    "target": "accuracy:0.65", "clip_norm": "1.0", "mup": "width:64", "average": "ema:0.99",
    "choose": "accuracy", "slice": "1/3", "b1": "0.9", "weight_decay": "1e-4,1e-3", "warmup": "0.1",
    "validation": "0.2", "precision": "float32", "lr_multipliers": "kernel:0.5",
}
"""Values that users mean, from which others are one slip away."""
# fmt: on
BASE = [
    "compare",
    "--model=mlp",
    "--dataset=spirals",
    "--optimizer=momentum",
    "--schedule=cosine",
    "--lr=0.1",
]


def fuzz_flags(count: int, draw: random.Random) -> list[str]:
    """Tries flags of `bpresearch compare` with values of any kind; returns what was no answer."""
    FLAGS(BASE, known_only=True)
    compare.options()
    taken = ("steps", "workdir", "json", "random_seed", "quick")
    names = [flag.name for flag in start.shared_flags() if flag.name not in ("distributed", *taken)]
    names += ["steps", "workdir", "json"]
    faults = []
    for _ in range(count):
        values = {name: value_of(name, draw) for name in draw.sample(names, draw.choice((1, 2, 3)))}
        given = [f"--{name}={value}" for name, value in values.items()]
        with flagsaver.flagsaver():
            said = answer(partial(parse_and_check, [*BASE, *given]))
        if said is not None and not any(word[2:].partition("=")[0] in said for word in given):
            faults.append(f"{' '.join(given)[:200]}: {said[:300]}")
    return faults


def value_of(name: str, draw: random.Random) -> str:
    """A value of a flag: one that is meant, one that is a slip away from it, or anything."""
    meant = MEANT.get(name) or str(FLAGS[name].value)
    at = draw.randrange(len(meant) + 1)
    return {
        "meant": meant,
        "left out": meant[:at] + meant[at + 1 :],
        "put in": meant[:at] + draw.choice(",:.-+e0~/ =") + meant[at:],
        "cut": meant[:at],
        "twice": f"{meant},{meant}",
        "number": re.sub(r"[\d.]+", draw.choice(NUMBERS), meant, count=1),
        "anything": draw.choice(NUMBERS + WORDS),
    }[draw.choice(("meant", "left out", "put in", "cut", "twice", "number", "anything", "anything"))]


def parse_and_check(argv: list[str]) -> None:
    """What `bpresearch compare` does with its flags before it trains."""
    FLAGS(argv)
    start.check_numbers(argv)
    axes = compare.axes_from_flags()
    compare.output_file("json")
    running.running_options()
    experiment = compare.experiment_from_flags()
    check_size(experiment, axes)
    if FLAGS.sampler == "grid":
        check(experiment, axes)


def fuzz_files(count: int, draw: random.Random, folder: Path) -> list[str]:
    """Damages data files and loads them; returns what was no answer."""
    x = np.arange(60.0).reshape(20, 3)
    np.savez(folder / "a.npz", x_train=x, y_train=np.arange(20) % 3, x_test=x, y_test=np.arange(20) % 3)
    whole = (folder / "a.npz").read_bytes()
    faults = []
    for _ in range(count):
        path = folder / "b.npz"
        path.write_bytes(mutated(whole, draw))
        said = answer(partial(data.load, "npz", data_dir=path))
        if said is not None and str(path) not in said and "npz:b" not in said:
            faults.append(f"npz: {said[:300]}")
    return faults


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, left out or put in."""
    mutant = bytearray(content)
    for _ in range(draw.choice((1, 1, 3, 10))):
        at = draw.randrange(len(mutant)) if mutant else 0
        kind = draw.choice(("flip", "digit", "cut", "insert", "zeros"))
        if kind == "flip" and mutant:
            mutant[at] ^= 1 << draw.randrange(8)
        elif kind == "digit" and mutant:
            mutant[at] = ord(draw.choice("0123456789-(){}',:"))
        elif kind == "cut":
            del mutant[at : at + draw.choice((1, 50, len(mutant)))]
        elif kind == "insert":
            mutant[at:at] = draw.randbytes(draw.choice((1, 8, 100)))
        else:
            mutant[at : at + 16] = bytes(len(mutant[at : at + 16]))
    return bytes(mutant)


def answer(call: Callable[[], Any]) -> str | None:
    """None if the call is done, the line that refuses it, or a line "no answer: ...", which names nothing."""

    def late(*_: Any) -> None:
        raise TimeoutError("late")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        call()
        return None
    except (ValueError, flags.Error) as error:
        return (
            str(error) if "\n" not in str(error).strip() else f"no answer: lines {error!r}".replace("--", "")
        )
    except start.Stop:
        return None
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__} {str(error)[:100]}".replace("--", "")
        return f"no answer: {text!r} at line {where.lineno} of {Path(where.filename).name}"
    finally:
        signal.alarm(0)
