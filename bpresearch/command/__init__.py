"""The flags that experiments and tools share, and how a flag's text becomes values.

The only place, with the scripts themselves, where flags are read and names become objects.
"""

from typing import TYPE_CHECKING

from bpresearch.imports import on_demand

if TYPE_CHECKING:
    from bpresearch.command.axes import numbers, positive, values
    from bpresearch.command.page import Flag, listed, run_page
    from bpresearch.command.running import start_from_flags
    from bpresearch.command.start import choose, output_file, run
    from bpresearch.command.sweep import (
        axes_from_flags,
        define_sweep_flags,
        experiment_from_flags,
        sweep_from_flags,
        sweep_options,
        workdir_from_flags,
    )
    from bpresearch.command.task import SCHEDULES, define_task_flags

__all__ = [
    "SCHEDULES",
    "Flag",
    "axes_from_flags",
    "choose",
    "define_sweep_flags",
    "define_task_flags",
    "experiment_from_flags",
    "listed",
    "numbers",
    "output_file",
    "positive",
    "run",
    "run_page",
    "start_from_flags",
    "sweep_from_flags",
    "sweep_options",
    "values",
    "workdir_from_flags",
]

# Loaded when first used: a command that verifies needs nothing of what sweeps need.
__getattr__ = on_demand(__name__, __file__)
