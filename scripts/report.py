"""Makes the report of a sweep: `bpresearch report`."""

from bpresearch.command.main import run

if __name__ == "__main__":
    run("report")
