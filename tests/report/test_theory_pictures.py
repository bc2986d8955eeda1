"""The pictures, checks and figures of the theory's experiments."""

import pandas as pd
import pytest
from rich.console import Console

from bpresearch import report
from bpresearch.theory import Anatomy
from bpresearch.theory.anatomy import Link, Path


@pytest.fixture
def concluded(tmp_path):
    """`concluded(*checks)`: the exit code and what is printed where an experiment found these."""

    def conclude(*checks):
        console = Console(record=True, width=100)
        code = report.conclude(console, report.Finding("So it is.", checks, {}), tmp_path)
        return code, console.export_text()

    return conclude


def test_a_check_that_fails_or_is_nan_makes_the_exit_code_one(concluded):
    right = report.Check("right", 1.009, 1, 0.01)
    code, text = concluded(right)
    assert code == 0 and "So it is." in text and "NO" not in text
    for wrong in (report.Check("off", 1.011, 1, 0.01), report.Check("lost", float("nan"), 1, 0.01)):
        code, text = concluded(right, wrong)
        assert code == 1 and text.count("NO") == 1


def test_a_limit_is_strict(concluded):
    code, text = concluded(report.Check.below("less", 0.99, 1))
    assert code == 0 and "< 1" in text
    for wrong in (1, 1.01, float("nan")):
        assert concluded(report.Check.below("less", wrong, 1))[0] == 1


def test_lines_have_a_panel_for_each_group_and_points_beside_them():
    frame = pd.DataFrame(
        {"x": [1.0, 10, 1, 10], "y": [1.0, 2, 3, 4], "who": ["a", "b"] * 2, "part": list("ppqq")}
    )
    chart = report.lines(
        frame, x=report.axis("x", "size", log=True), y=report.axis("y", "cost"), line="who", panel="part",
        points=frame, title="How much?", subtitle="made up",
    )  # fmt: skip
    drawn = chart.to_dict()
    assert drawn["facet"]["sort"] == ["p", "q"]
    line, point = drawn["spec"]["layer"]
    assert (line["mark"]["type"], point["mark"]["type"]) == ("line", "point")
    assert line["encoding"]["x"]["scale"]["type"] == "log"
    assert line["encoding"]["color"]["scale"]["domain"] == ["a", "b"]
    (rows,) = drawn["datasets"].values()
    assert [(row["mark"], row["panel"]) for row in rows] == [
        (mark, part) for mark in ("line", "point") for part in "ppqq"
    ]


def test_a_heatmap_keeps_the_order_of_the_frame():
    frame = pd.DataFrame({"r": ["z", "a"], "c": ["k", "k"], "v": [1.0, 2.0], "t": ["one", "two"]})
    chart = report.heatmap(frame, row="r", column="c", value="v", text="t", title="T", subtitle="S")
    assert chart.to_dict()["layer"][0]["encoding"]["y"]["sort"] == ["z", "a"]


LINKS = (Link("input", "layers.1", (2,)), Link("loss", "squared", ()))
KINDS = frozenset({"input", "loss"})


def test_the_network_shows_each_factor_once():
    paths = (Path(0.5, (1.0, 0.5), (1, 0), 0, LINKS), Path(0.25, (1.0, 0.25), (1, 0), 1, LINKS))
    chart = report.network(Anatomy(LINKS, paths, len(paths), 0.5, 0.5, KINDS)).to_dict()
    data = chart["datasets"][chart["layer"][1]["data"]["name"]]
    assert [(row["kind"], row["from"], row["to"]) for row in data] == (
        [("input", "the weight", "[1]"), ("loss", "[1]", "loss")]
    )
    written = chart["datasets"][chart["layer"][2]["data"]["name"]]
    assert [row["factor"] for row in written] == [1.0, 0.5]


def test_a_network_without_paths_shows_its_units_alone():
    chart = report.network(Anatomy(LINKS, (), 0, 0.0, 0.0, frozenset())).to_dict()
    units, *lines = (chart["datasets"][layer["data"]["name"]] for layer in chart["layer"])
    assert [row["unit"] for row in units] == ["[0]", "[1]", "loss"] and lines == [[]] * 3


def test_units_are_named_by_their_place():
    assert report.unit_name(Link("weight", "layers.0", (3, 4)), 6) == "[1,2]"
