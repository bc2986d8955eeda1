"""What a sweep's results depend on, in words and numbers: for `config.json`, coordinates and comparisons."""

import functools
import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bpresearch.sweep.axes import Axes
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.options import Settings


def describe(
    experiment: Experiment,
    axes: Axes | Mapping[str, object],
    *,
    layout: str = "auto",
    shard: str = "runs",
    prune: str | None = None,
    slice: str | None = None,
) -> dict[str, object]:
    """What the results depend on, in JSON: two sweeps with the same description have the same results."""
    digest = hashlib.sha256()
    for array in jax.tree.leaves(experiment.parts):
        digest.update(np.ascontiguousarray(array).tobytes())
    return {
        "model": model_label(experiment, experiment.model),
        "model_options": {key: label(value) for key, value in experiment.model_options.items()},
        "dataset": experiment.name,
        "dataset_sha256": digest.hexdigest(),
        "loss": label(experiment.loss),
        "metrics": list(experiment.all_metrics),
        "choose": experiment.choose,
        "source_sha256": experiment.source,
        "gradient": label(experiment.gradient),
        "steps": experiment.steps,
        "eval_every": experiment.eval_every,
        "validation": experiment.validation,
        "dtype": np.dtype(experiment.dtype).name,
        **({"mup": label(list(experiment.mup.items()))} if experiment.mup else {}),
        "diagnostics": [label(diagnostic) for diagnostic in experiment.diagnostics],
        "devices": f"{jax.device_count()} x {jax.default_backend()}",
        "axes": {axis: label(values) for axis, values in axes.items()},
        "layout": layout,
        "shard": shard,
        "prune": prune,
        **({"slice": slice} if slice else {}),
    }


def label(value: object) -> Any:
    """A setting in JSON: numbers and text as they are, functions by name, tuples and lists item by item."""
    if isinstance(value, functools.partial):
        options = ", ".join(f"{key}={label(option)}" for key, option in value.keywords.items())
        return f"{label(value.func)}({options})"
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [label(entry) for entry in value]
    if getattr(value, "__name__", "") == "gradient":
        return value.__module__.removeprefix("bpresearch.").split(".")[0]
    return getattr(value, "__name__", value)


def model_label(experiment: Experiment, model: object) -> str:
    """The model's name: that of the task, if the task's function is called just that, `model`."""
    name = label(model)
    return experiment.name if name == "model" else name


def coordinate(value: object) -> int | float | str:
    """A setting as a coordinate of the results: a number, or text."""
    value = label(value)
    if isinstance(value, list):
        return ",".join(str(part) for part in value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def coordinates(experiment: Experiment, runs: list[Settings]) -> dict[str, np.ndarray]:
    """Each run's settings, by axis: arrays of numbers, or of text where a value is none.

    The text is empty in runs that the axis does not concern.
    """
    columns = {axis: [coordinate(settings[axis]) for settings in runs] for axis in runs[0]}
    columns["model"] = [model_label(experiment, s.get("model", experiment.model)) for s in runs]
    columns["loss"] = [label(experiment.loss)] * len(runs)
    columns["dataset"] = [experiment.name] * len(runs)
    return {axis: column(values) for axis, values in columns.items()}


def column(values: Sequence[int | float | str]) -> np.ndarray:
    """The values of a coordinate: numbers, or text where one of them is; empty where that is NaN."""
    if any(isinstance(value, str) for value in values):
        return np.array(["" if value != value else str(value) for value in values], object)
    return np.array(values, np.int64 if all(isinstance(value, int) for value in values) else np.float64)


def difference(found: object, asked: object, path: str = "") -> str:
    """The first place where two configurations differ, in words; empty if they are equal."""
    if isinstance(found, dict) and isinstance(asked, dict):
        for name in sorted({*found, *asked}):
            inner = f"{path}.{name}" if path else name
            if text := difference(found.get(name), asked.get(name), inner):
                return text
        return ""
    if found == asked:
        return ""
    return f"{path}: {_brief(found)} there, {_brief(asked)} here"


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def provenance() -> dict[str, object]:
    """What a result depends on beside its settings: versions, device, revision, command."""
    packages = ("bpresearch", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind} ({jax.default_backend()})",
        "git_revision": git_revision(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "unknown"


def git_revision() -> str:
    """The revision of the source tree that is running, "+changes" if it differs from it, or "unknown"."""
    folder = str(Path(__file__).parent)
    describe = ["git", "-C", folder, "describe", "--always", "--dirty=+changes", "--abbrev=12"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
