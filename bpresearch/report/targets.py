"""Pictures of how soon a preset target is reached."""

import altair as alt
import numpy as np
import pandas as pd

from bpresearch.report.style import line, panels, tooltips
from bpresearch.report.sweeps import Sweeps
from bpresearch.statistics import reached_by, steps_to_target, time_profile


def time_to_target(sweeps: Sweeps) -> alt.FacetChart | None:
    """The share of runs that have reached the target after so many steps; None without a target."""
    if sweeps.target is None:
        return None
    frames = []
    for sweep in sweeps:
        at = sweep.results.eval_step.values.astype(np.float64)
        for name, to_target in steps_to_target(sweep.results, sweeps.target, sweeps.by).items():
            share = 100 * reached_by(to_target.steps, at)
            columns = {"step": at, "share": share, sweeps.by: name, "sweep": sweep.name}
            frames.append(pd.DataFrame(columns | {"panel": sweeps.panel(sweep)}))
    frame = pd.concat(frames, ignore_index=True)
    x = alt.X("step:Q", title="step", scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=6))
    title = "How soon is the target reached?"
    subtitle = f"Runs at each {sweeps.by}'s best setting that have had {_told(sweeps)} by then"
    return _shares(sweeps, frame, x, "runs at the target (%)", title, subtitle)


def target_profiles(sweeps: Sweeps) -> alt.FacetChart | None:
    """The share of sweeps in which each takes at most so many times the steps of the fastest; None of one."""
    if sweeps.target is None or len(sweeps) < 2:
        return None
    per_sweep = [steps_to_target(sweep.results, sweeps.target, sweeps.by) for sweep in sweeps]
    names = [name for name in per_sweep[0] if all(name in of for of in per_sweep)]
    times = {name: np.array([of[name].median for of in per_sweep]) for name in names}
    ratios = np.geomspace(1, 10, 101)
    frame = pd.concat(
        [
            pd.DataFrame({"ratio": ratios, "share": 100 * share, sweeps.by: name, "panel": ""})
            for name, share in time_profile(times, ratios).items()
        ],
        ignore_index=True,
    )
    x = alt.X("ratio:Q", title="steps over those of the fastest", scale=alt.Scale(type="log", nice=False))
    title = "Which is fastest over all tasks?"
    subtitle = f"Sweeps in which the median run has {_told(sweeps)} in so many times the fewest steps"
    return _shares(sweeps, frame, x, "tasks at the target (%)", title, subtitle)


def _shares(
    sweeps: Sweeps, frame: pd.DataFrame, x: alt.X, of: str, title: str, subtitle: str
) -> alt.FacetChart:
    """Shares that rise in steps along x, a line for each of what is compared."""
    y = alt.Y("share:Q", title=of, scale=alt.Scale(domain=[0, 100]))
    shown = tooltips(frame, [sweeps.by, str(x.shorthand).partition(":")[0], "share"])
    lines = line(sweeps.channels(frame), step=True, x=x, y=y, tooltip=shown)
    return panels([lines], frame, title, subtitle, height=280)


def _told(sweeps: Sweeps) -> str:
    target = sweeps.target
    assert target is not None
    accuracy = target.metric == "accuracy"
    return f"{target.metric} {f'{100 * target.value:g} %' if accuracy else f'{target.value:g}'}"
