"""An experiment as a function: its parameters are the flags."""

import json

import pytest

EXPERIMENT = '''"""How large is a sum?

Of a few numbers.
"""

from pathlib import Path
from typing import Annotated

import pandas as pd

from bpresearch import command, report
from bpresearch.command import Flag, listed


def page(
    *,
    terms: Annotated[tuple[int, ...], Flag("to add", low=1, least=2, why="for a sum")] = listed("1:4", int),
    factor: Annotated[float, Flag("what the sum is multiplied by", low=0, high=10)] = 1.0,
    drawn: Annotated[bool, Flag("draw the terms")] = False,
    quick: bool = False,
    workdir: Path,
) -> report.Finding:
    if factor == 3:
        raise ValueError(f"factor={factor:g}: takes anything but 3")
    total = sum(terms[:1] if quick else terms) * factor
    (workdir / "terms.txt").write_text(repr(terms))
    grid = report.grid("Terms", ("term",))
    for term in terms:
        grid.add_row(str(term))
    checks = [report.Check("total", total, 6, 0)]
    pictures = {"terms": picture(terms)} if drawn else {}
    return report.Finding(f"It is {total:g}.", checks, {"total": total}, [grid], pictures)


def picture(terms):
    frame = pd.DataFrame({"x": terms, "y": terms, "line": "terms"})
    axes = {"x": report.axis("x", "x"), "y": report.axis("y", "y")}
    return report.lines(frame, **axes, line="line", title="Terms", subtitle="each")


if __name__ == "__main__":
    command.run_page(page)
'''


@pytest.fixture
def run(run_commands, tmp_path):
    """`run(*flags)`: the experiment with these flags."""
    (tmp_path / "adding.py").write_text(EXPERIMENT)
    return lambda *flags: run_commands(tmp_path, (str(tmp_path / "adding.py"), *flags))[0]


def test_what_is_found_is_printed_written_and_drawn(run, tmp_path):
    ended = run("--json=figures.json", "--drawn")
    assert (ended.returncode, ended.stderr) == (0, "")
    order = [
        ended.stdout.index(text) for text in ("Terms", "It is 6.", "Picture: ", "Measured against theory")
    ]
    assert order == sorted(order)
    assert json.loads((tmp_path / "figures.json").read_text()) == {"total": 6.0, "check.total": 6.0}
    (workdir,) = (tmp_path / "results").iterdir()
    assert workdir.name.startswith("adding-")
    assert (workdir / "terms.txt").read_text() == "(1, 2, 3)"
    assert (workdir / "terms.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "flags, total",
    [(("--terms=2,4",), 6), (("--terms=5,7", "--factor=0.5"), 6),
     (("--quick",), 1), (("--terms=linspace:2:4:2",), 6)],
)  # fmt: skip
def test_a_flag_is_a_parameter(run, flags, total):
    ended = run(*flags, "--workdir=here")
    assert ended.returncode == (0 if total == 6 else 1), ended.stderr
    assert f"It is {total}." in ended.stdout


def test_settings_of_their_own_have_a_folder_of_their_own(run, tmp_path):
    for flags in (("--factor=2",), ("--quick",), ("--factor=2",)):
        run(*flags)
    assert len(list((tmp_path / "results").iterdir())) == 2


@pytest.mark.parametrize(
    "flag, told",
    [
        ("--terms=1", "--terms=1: takes at least 2 values, for a sum"),
        ("--terms=0,1", "--terms=0: takes values of at least 1"),
        ("--terms=a", "--terms=a: cannot read it"),
        ("--terms=uniform:1:4", "only a sweep with --sampler draws values"),
        ("--factor=10", "--factor=10.0: takes values of at least 0 and below 10"),
        ("--factor=nan", "--factor=nan: takes values of at least 0 and below 10"),
        ("--factor=3", "--factor=3: takes anything but 3"),
        ("--term=1,2", "Did you mean: terms"),
        ("--json=nowhere/figures.json", "--json=nowhere/figures.json: takes the name of a file"),
        ("--workdir=", "--workdir= is empty"),
        ("--platform=abacus", "--platform=abacus"),
    ],
)
def test_a_wrong_flag_is_one_line_and_leaves_nothing(run, tmp_path, flag, told):
    ended = run(flag)
    assert ended.returncode == 2 and told in ended.stderr
    assert ended.stderr.startswith("adding.py: ") and ended.stderr.count("\n") == 1
    assert not (tmp_path / "figures.json").exists()
    assert list(tmp_path.glob("results/*")) == []


def test_the_help_is_the_question_and_the_flags(run):
    ended = run("--help")
    assert ended.returncode == 0 and ended.stdout.startswith("How large is a sum?\n")
    for line in (
        "--terms: to add, at least 2 (default: '1:4')",
        "--factor: what the sum is multiplied by (default: '1.0')",
        "--drawn: draw the terms (default: 'false')",
        "--quick: reduced size",
    ):
        assert f"  {line}" in ended.stdout
