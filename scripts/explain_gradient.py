"""Explains the gradient of one weight, path by path: `bpresearch explain`."""

from bpresearch.command.main import run

if __name__ == "__main__":
    run("explain")
