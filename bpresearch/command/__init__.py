"""The flags that experiments and tools share, and how a flag's text becomes values.

The only place, with the scripts themselves, where flags are read and names become objects.
"""

from typing import TYPE_CHECKING

from bpresearch.imports import on_demand

if TYPE_CHECKING:
    from bpresearch.command.axes import numbers, positive, sizes, values
    from bpresearch.command.experiment import define_experiment_flags, experiment_workdir, listed
    from bpresearch.command.running import start_from_flags
    from bpresearch.command.start import choose, fail, help_text, output_file, run
    from bpresearch.command.sweep import (
        ENGINES,
        OPTIMIZERS,
        SCHEDULES,
        axes_from_flags,
        define_sweep_flags,
        experiment_from_flags,
        sweep_from_flags,
        workdir_from_flags,
    )
    from bpresearch.command.task import (
        ACTIVATIONS,
        INITIALIZATIONS,
        LOSS_ALIASES,
        LOSSES,
        MODELS,
        dataset_from_flags,
        define_precision_flag,
        define_task_flags,
        loss_from_flags,
        model_from_flags,
        takes_labels,
        targets,
    )

__all__ = [
    "ACTIVATIONS",
    "ENGINES",
    "INITIALIZATIONS",
    "LOSSES",
    "LOSS_ALIASES",
    "MODELS",
    "OPTIMIZERS",
    "SCHEDULES",
    "axes_from_flags",
    "choose",
    "dataset_from_flags",
    "define_experiment_flags",
    "define_precision_flag",
    "define_sweep_flags",
    "define_task_flags",
    "experiment_from_flags",
    "experiment_workdir",
    "fail",
    "help_text",
    "listed",
    "loss_from_flags",
    "model_from_flags",
    "numbers",
    "output_file",
    "positive",
    "run",
    "sizes",
    "start_from_flags",
    "sweep_from_flags",
    "takes_labels",
    "targets",
    "values",
    "workdir_from_flags",
]

# Loaded when first used: a command that verifies needs nothing of what sweeps need.
__getattr__ = on_demand(__name__, __file__)
