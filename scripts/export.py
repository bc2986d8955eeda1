"""Writes a sweep's results in the formats of other tools: `bpresearch export`."""

from bpresearch.command.main import run

if __name__ == "__main__":
    run("export")
