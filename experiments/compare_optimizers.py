"""Compares optimizers and schedules on a model and a data set: `bpresearch compare`."""

from bpresearch.command.main import run

if __name__ == "__main__":
    run("compare")
