"""Compares optimizers and schedules on a model and a data set: `bpresearch compare`."""

from bpresearch.command import compare, start

if __name__ == "__main__":
    compare.define_flags()
    start.run(compare.main, compare.options)
