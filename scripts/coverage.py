"""Counts what has a hand-written rule: `bpresearch coverage`."""

from bpresearch.command.main import run

if __name__ == "__main__":
    run("coverage")
