"""Tables that fit a terminal and pictures that show what they are about."""

import io
import re
import struct

import pytest
from rich.console import Console

from bpresearch import report


def printed(table):
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_the_table_names_the_best_settings_and_their_intervals(made_up):
    text = printed(report.table(made_up()))
    row = next(line for line in text.splitlines() if "momentum" in line and "cosine" in line)
    assert "0.1" in row and "61.0 ± 2.5" in row and "0.9" in row
    assert "valid accuracy" in text and "3 seeds" in text
    assert "*" not in text


def test_a_best_rate_at_the_edge_is_marked(made_up):
    text = printed(report.table(made_up(best=1.0)))
    assert "1*" in text and "edge of the range" in " ".join(text.split())


def test_the_table_fits_eighty_columns(made_up):
    many = ("sgd", "momentum", "nesterov")
    schedules = ("constant", "step", "exponential", "cosine", "warmup_cosine")
    results = made_up(optimizers=many, schedules=schedules, diverged=lambda o, rate, s: rate == 1.0)
    text = printed(report.table(results))
    assert "…" not in text and "3 of 9" in text
    assert all(name in text for name in (*many, *schedules))


CASES = {
    "usual": {},
    "one run": {"optimizers": ("sgd",), "schedules": ("cosine",), "rates": (0.1,), "seeds": 1},
    "regression": {"accuracy": False},
    "all diverged": {"diverged": lambda *run: True},
    "no validation": {"valid": False},
    "a rate of zero": {"rates": (0.0, 0.1), "best": 0.1},
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("case", CASES)
def test_every_picture_is_written_in_every_format(made_up, tmp_path, case):
    results = made_up(**CASES[case])
    for path in report.write(results, tmp_path):
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert 400 < width <= 1800 and height > 300
        drawing = path.with_suffix(".svg").read_text()
        for name in {*results.schedule.values, "training loss" if "curves" in path.name else "learning rate"}:
            assert name in drawing
        page = path.with_suffix(".html").read_text()
        assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)  # nothing is loaded
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".html"] * 2 + [".png"] * 2 + [".svg"] * 2


def test_names_cannot_break_out_of_the_page(made_up, tmp_path):
    name = "</script><script>alert(1)</script>"
    report.save(report.loss_curves(made_up(optimizers=(name,))), tmp_path / "a.html")
    assert "<script>alert" not in (tmp_path / "a.html").read_text()


def test_an_unknown_format_is_refused(made_up, tmp_path):
    with pytest.raises(ValueError, match=r"a\.gif: a picture's name ends in"):
        report.save(report.loss_curves(made_up()), tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())
