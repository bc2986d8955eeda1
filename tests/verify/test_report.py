"""What a report says, to people and to programs."""

import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from bpresearch.verify import Report, Row

RIGHT = Row("layers.0.kernel", (3, 4), "autodiff", 1e-16, 1e-10, True, "", ((1, 2), 0.5, 0.5))
WRONG = Row("layers.1.bias", (4,), "autodiff", math.inf, 1e-10, False, "", ((0,), math.nan, 1.0))
UNDECIDED = Row("input", (2, 3), "finite differences", 0.3, 1e-4, None, "8 random directions")


@pytest.mark.parametrize(
    ("rows", "culprits", "passed"),
    [
        ([RIGHT], (), True),
        ([RIGHT, UNDECIDED], (), None),
        ([RIGHT, WRONG], (), False),
        ([RIGHT], ("layers.0",), False),
        ([], (), None),
    ],
)
def test_passed(rows, culprits, passed):
    assert Report(tuple(rows), culprits).passed is passed


def test_json_has_no_number_that_json_does_not_have():
    read = json.loads(Report((RIGHT, WRONG)).to_json(), parse_constant=pytest.fail)
    assert read["rows"][1]["error"] == "inf"
    assert read["rows"][1]["found"] == "nan"
    assert read["rows"][0]["index"] == [1, 2]


def test_text_names_each_leaf_with_its_verdict():
    lines = str(Report((RIGHT, WRONG, UNDECIDED))).splitlines()
    verdicts = {line.split()[0]: line.split()[-1] for line in lines[1:4]}
    assert verdicts == {"layers.0.kernel": "right", "layers.1.bias": "WRONG", "input": "undecided"}
    assert "wrong at layers.1.bias" in lines[-1]


def test_text_fits_eighty_columns():
    deep = ".".join(["encoder", "blocks", "11", "attention", "query", "projection", "kernel"])
    rows = [Row(deep, (12, 64, 64), oracle, 1.0, 0.1, False) for oracle in ("autodiff", "finite differences")]
    rows.append(Row(deep, (12, 64, 64), "rounding", 3e9, 8.0, False))
    table = str(Report(tuple(rows))).splitlines()[:2]
    assert max(len(line) for line in table) <= 80
    assert "projection.kernel" in table[1]


def test_summary_is_one_sentence():
    both = Report((RIGHT, replace(UNDECIDED, path=RIGHT.path)))
    assert both.summary().startswith("The gradient is right: 2 comparisons, 1 of them undecided")
    assert Report((RIGHT, UNDECIDED)).summary() == (
        "Undecided: no oracle could tell at input: finite differences: 8 random directions."
    )
    assert Report((WRONG,), ("layers.1",)).summary().endswith("in the rule of layers.1.")


class Reader(HTMLParser):
    """The text of a page, the elements that are not closed and what it loads."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_holds_the_report_and_needs_nothing_else(tmp_path):
    file = tmp_path / "report.html"
    worst = ((1, 2), 1.5, 0.5)
    wrong = Row("<b>kernel</b>", (3, 4), "autodiff", 0.5, 1e-10, False, "", worst, "a & b")
    report = Report((RIGHT, UNDECIDED, wrong), ("layers.0",), ("a note",), ("a <hint>",))
    report.save_html(file, "x < y")
    reader = Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    assert not reader.open and not reader.links
    text = "".join(reader.text)
    assert str(report) in text
    assert text.count("x < y") == 2  # the title and the heading
