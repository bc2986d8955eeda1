"""Joins the slices of a sweep: `bpresearch merge`."""

from bpresearch.command.main import run

if __name__ == "__main__":
    run("merge")
