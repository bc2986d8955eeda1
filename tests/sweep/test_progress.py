"""What a sweep says of its progress, on a terminal, in a file, and when it is to be quiet."""

import os
import pty
import subprocess
import sys

import numpy as np
import optax
import pytest

from bpresearch import optim, sweep
from bpresearch.optim import schedules
from bpresearch.sweep.progress import State, clock, progress
from tests.sweep.toy import axes, dataset, experiment


def test_elsewhere_than_on_a_terminal_every_tenth_is_a_plain_line(capsys):
    with progress(4, 400) as report:
        report(note="compiling 2 programs")
        for done in range(40):
            report(steps=10, runs=int(done % 10 == 9), diverged=int(done == 39), best="97.1 %")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "compiling 2 programs" and len(lines) == 11
    assert [line.split()[0] for line in lines[1:]] == [f"{10 * tenth}%" for tenth in range(1, 11)]
    assert "1 of 4 runs" in lines[3] and "steps/s" in lines[3] and " left" in lines[3]
    assert "4 of 4 runs, 1 diverged" in lines[-1] and lines[-1].endswith("best 97.1 %")
    assert "\x1b" not in "".join(lines) and max(map(len, lines)) <= 80


def test_a_leap_over_several_tenths_is_one_line(capsys):
    with progress(1, 100) as report:
        report(steps=55)
        report(steps=45, runs=1)
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["50%", "100%"]


def test_quiet_says_nothing(capsys):
    with progress(4, 400, quiet=True) as report:
        report(note="compiling")
        report(steps=400, runs=4)
    assert capsys.readouterr() == ("", "")


SCRIPT = """
from bpresearch.sweep.progress import progress
with progress(2, 200) as report:
    report(note="compiling [one] program")
    report(steps=100, runs=1, best="[b]61[/b]")
    report(steps=100, runs=1)
"""


def test_a_terminal_shows_a_bar_and_takes_no_text_for_markup():
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=follower, env=environment) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                shown += os.read(leader, 4096)
            except OSError:  # the program has closed its end
                break
        assert process.wait(timeout=60) == 0
    os.close(leader)
    text = shown.decode()
    assert "2 of 2 runs" in text and "best [b]61[/b]" in text and "100 %" in text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (5.6, "0:06"), (750, "12:30"), (3723, "1:02:03")])
def test_durations(seconds, text):
    assert clock(seconds) == text


def test_time_left_follows_the_steps_that_are_left():
    state = State(10, 1000, begun=100.0)
    assert "left" not in state.text(101.0)
    state.add(steps=250)
    assert "0:30 left" in state.text(110.0)
    state.add(steps=750, runs=10)
    assert "left" not in state.text(140.0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, lambda found: f"{100 * np.nanmax(found.valid_accuracy[:, -1]):.1f} %"),
        (
            {"data": dataset(None), "loss": optax.losses.squared_error, "validation": 0.0},
            lambda found: f"{np.nanmin(found.test_loss[:, -1]):.4g}",
        ),
    ],
)
def test_a_sweep_tells_the_best_of_its_finished_runs(capsys, changes, told):
    runs = axes(optimizer=optim.momentum, schedule=schedules.constant, lr=[0.01, 1e30, 0.001])
    found = sweep.run(experiment(steps=3, **changes), runs)
    last = capsys.readouterr().err.splitlines()[-1]
    assert "2 diverged" in last and last.endswith(f"best {told(found)}")
