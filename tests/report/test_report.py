"""Tables that fit a terminal and pictures that show what they are about."""

import io
import re
import struct

import numpy as np
import pytest
from rich.console import Console

from bpresearch import report
from bpresearch.report import pictures
from bpresearch.statistics import Target


def sweeps(*results):
    return report.Sweeps([report.Sweep(f"sweep {n}", found) for n, found in enumerate(results)])


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


def test_pruned_runs_are_counted_and_not_mistaken_for_bad_ones(made_up, tmp_path):
    results = made_up()
    pruned = (results.lr != 0.1) | ((results.optimizer == "sgd") & (results.schedule == "cosine"))
    for name in ("valid_accuracy", "test_accuracy"):
        results[name] = results[name].where(~pruned)
    results["pruned_at"] = ("run", np.where(pruned, 5, -1))
    text = printed(report.table(results))
    assert (
        all(words in text for words in ("pruned", "6 of 9", "9 of 9"))
        and "nan" not in text
        and "*" not in text
    )
    markup = report.write(results, tmp_path, drawings=False).read_text().partition("<script")[0]
    assert "27 of 36 runs were pruned" in markup and "left out: 27 pruned runs" in markup
    assert "None of 36 runs diverged" in markup and 'id="budgets"' not in markup
    assert not re.search(r"\bnan\b", markup)


def test_a_target_that_was_set_has_a_section_and_none_is_made_up(made_up, tmp_path):
    two = [report.Sweep(name, made_up()) for name in ("a", "b")]
    page = report.write(two, tmp_path / "set", target=Target("accuracy", 0.55), drawings=False)
    markup = page.read_text().partition("<script")[0]
    assert "a: Steps to a valid accuracy of 55.0 %, set before" in markup and "3 of 3" in markup
    assert 'id="time_to_target"' in markup and 'id="target_profiles"' in markup
    without = report.write(two, tmp_path / "none", drawings=False).read_text().partition("<script")[0]
    assert "Steps to" not in without and "target" not in without
    assert "We compared sgd and momentum for mlp on toy, 40 steps of batch size 10." in without


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
def test_a_report_is_one_page_that_loads_nothing(made_up, tmp_path, case):
    page = report.write(made_up(**CASES[case]), tmp_path, drawings=case == "usual")
    assert page == tmp_path / "index.html"
    markup, _, scripts = page.read_text().partition('<script type="application/json"')
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", markup + scripts)
    assert not re.search(r"""<(link|img|iframe|script)[^>]*(href|src)=["'](?!data:)""", markup)
    assert 'id="loss_curves"' in markup and "Best settings" in markup
    if case != "usual":
        return
    drawings = sorted(tmp_path.glob("*.png"))
    assert [path.with_suffix(".svg") for path in drawings] == sorted(tmp_path.glob("*.svg"))
    assert {path.stem for path in drawings} == set(re.findall(r'figure id="(\w+)"', markup))
    for path in drawings:
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert 400 < width <= 1800 and height > 250, path.stem
        assert path.with_suffix(".svg").read_text().startswith("<svg")
    for name, word in (("loss_curves", "training loss"), ("learning_rate_sensitivity", "learning rate")):
        drawing = (tmp_path / f"{name}.svg").read_text()
        assert all(text in drawing for text in ("constant", "cosine", "momentum", word))


def test_learning_rates_on_an_axis_have_four_digits(made_up, tmp_path):
    results = made_up()
    results["lr"] = results.lr * 10 ** (1 / 3)
    report.save(pictures.learning_rate_sensitivity(sweeps(results)), str(tmp_path / "a.svg"))
    labels = re.findall(r"<text[^>]*>([-+.e0-9]+)</text>", (tmp_path / "a.svg").read_text())
    expected = {f"{lr:.4g}" for lr in results.lr.values}
    assert expected <= set(labels)
    assert max(map(len, labels)) <= 8


def test_names_cannot_break_out_of_the_page(made_up, tmp_path):
    name = "</script><script>alert(1)</script>"
    report.save(pictures.loss_curves(sweeps(made_up(optimizers=(name,)))), tmp_path / "a.html")
    assert "<script>alert" not in (tmp_path / "a.html").read_text()


def test_an_unknown_format_is_refused(made_up, tmp_path):
    with pytest.raises(ValueError, match=r"a\.gif: a picture's name ends in"):
        report.save(pictures.loss_curves(sweeps(made_up())), tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())
