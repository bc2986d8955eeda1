"""A sweep's results in the formats of other tools: tables, and TensorBoard's event files."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from bpresearch.imports import extra

MARKS = ("diverged_at", "pruned_at", "finished", "fresh")


def write_tables(results: xr.Dataset, folder: Path, kind: str) -> list[Path]:
    """Writes runs, steps and evaluations as `kind`, "csv" or "parquet"; the paths of the files."""
    paths = []
    for name, table in (
        ("runs", runs(results)),
        ("steps", steps(results)),
        ("evaluations", evaluations(results)),
    ):
        paths.append(folder / f"{name}.{kind}")
        partial = paths[-1].with_suffix(".partial")
        table.to_csv(partial, index=False) if kind == "csv" else table.to_parquet(partial, index=False)
        partial.replace(paths[-1])
    return paths


def hyperparameters(results: xr.Dataset) -> pd.DataFrame:
    """Each run's settings: a column for each axis."""
    names = sorted(str(name) for name in results.coords if results[name].dims == ("run",) and name != "run")
    return pd.DataFrame({name: results[name].values for name in names})


def runs(results: xr.Dataset) -> pd.DataFrame:
    """A row for each run: settings, where it diverged or was pruned, and its last values."""
    last = {name: values[:, -1] for name, values in curves(results)}
    marks = {name: results[name].values for name in MARKS if name in results}
    number = pd.DataFrame({"run": results.run.values})
    return pd.concat([number, hyperparameters(results), pd.DataFrame(marks | last)], axis=1)


def steps(results: xr.Dataset) -> pd.DataFrame:
    """A row for each step of each run: its training loss."""
    return _long(results, results.step.values, {"train_loss": results.train_loss.values})


def evaluations(results: xr.Dataset) -> pd.DataFrame:
    """A row for each evaluation of each run: everything that was measured."""
    return _long(results, results.eval_step.values, dict(curves(results)))


def _long(results: xr.Dataset, step: np.ndarray, columns: dict[str, np.ndarray]) -> pd.DataFrame:
    number = np.repeat(results.run.values, len(step))
    flat = {name: values.reshape(-1) for name, values in columns.items()}
    return pd.DataFrame({"run": number, "step": np.tile(step, results.sizes["run"]), **flat})


def curves(results: xr.Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """Everything measured at evaluations, (runs, evaluations) each; `name/layer` where there are several."""
    for name in sorted(map(str, results.data_vars)):
        values = results[name]
        if values.dims[:2] != ("run", "eval_step"):
            continue
        others = values.dims[2:]
        if not others:
            yield name, values.values
            continue
        stacked = values.values.reshape(*values.shape[:2], -1)
        labels = np.stack(
            np.meshgrid(*(results[dim].values.astype(str) for dim in others), indexing="ij"), -1
        )
        for place, label in enumerate(labels.reshape(-1, len(others))):
            yield f"{name}/{'/'.join(label)}", stacked[:, :, place]


def write_events(results: xr.Dataset, folder: Path, points: int) -> Path:
    """Writes an event file for each run into `folder`/run_NUMBER, in place of any from before."""
    tensorboardX = extra("tensorboardX", "a folder for TensorBoard")
    settings, measured = hyperparameters(results), dict(curves(results))
    for place, run in enumerate(results.run.values.tolist()):
        path = folder / f"run_{run:05}"
        shutil.rmtree(path, ignore_errors=True)
        with tensorboardX.SummaryWriter(str(path)) as writer:
            for step, loss in thinned(results.train_loss.values[place], points):
                writer.add_scalar("train_loss", loss, step)
            for name, values in measured.items():
                for step, value in zip(
                    results.eval_step.values.tolist(), values[place].tolist(), strict=True
                ):
                    if math.isfinite(value):
                        writer.add_scalar(name, value, step)
            row = {
                name: value.item() if isinstance(value, np.generic) else value
                for name, value in settings.iloc[place].items()
            }
            row = {name: value for name, value in row.items() if value == value and value != ""}
            last = {name: float(values[place, -1]) for name, values in measured.items() if "/" not in name}
            reached = {f"final/{name}": value for name, value in last.items() if math.isfinite(value)}
            for summary in tensorboardX.summary.hparams(row, reached):
                writer.file_writer.add_summary(summary)
            for name, value in reached.items():
                writer.add_scalar(name, value, int(results.eval_step[-1]))
    return folder


def thinned(losses: np.ndarray, points: int) -> list[tuple[int, float]]:
    """At most `points` pairs (step, mean loss of the steps since the last pair), where that is finite."""
    width = -(-len(losses) // points)
    pairs = [
        (min(begin + width, len(losses)), float(np.mean(losses[begin : begin + width])))
        for begin in range(0, len(losses), width)
    ]
    return [(step, loss) for step, loss in pairs if math.isfinite(loss)]
