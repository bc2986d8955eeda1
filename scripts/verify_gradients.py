"""Verifies the hand-written gradient of a model: `bpresearch verify`."""

from bpresearch.command.main import run

if __name__ == "__main__":
    run("verify")
