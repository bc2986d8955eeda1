"""Joins the slices of a sweep: `bpresearch merge`."""

from bpresearch.command import merge, start

if __name__ == "__main__":
    merge.define_flags()
    start.run(merge.main)
