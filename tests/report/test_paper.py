"""Pictures for a paper: their size, their words, and what they leave out."""

import json
import re

import numpy as np
import pytest

from bpresearch import report
from bpresearch.report.paper import length, renamed
from bpresearch.report.style import specification


def words(path):
    return set(re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text()))


def test_pictures_have_the_width_that_is_asked_and_the_authors_words(made_up, tmp_path):
    labels = {"sgd": "SGD", "momentum": "Heavy ball", "cosine": "Cosine", "step": "updates"}
    names = ("loss_curves", "intervals")
    paths = report.paper(made_up(), tmp_path / "paper", only=names, width="8cm", labels=labels)
    assert {path.name for path in paths} == {f"{name}.{kind}" for name in names for kind in ("pdf", "svg")}
    for name in names:
        svg, pdf = (tmp_path / "paper" / f"{name}.{kind}" for kind in ("svg", "pdf"))
        width = float(re.search(r'<svg[^>]* width="([\d.]+)pt"', svg.read_text())[1])
        box = re.search(rb"/MediaBox ?\[ ?0 0 ([\d.]+)", pdf.read_bytes())
        assert width == float(box[1]) == pytest.approx(8 / 2.54 * 72, abs=1.5)
        assert pdf.read_bytes().startswith(b"%PDF")
    curves = words(tmp_path / "paper" / "loss_curves.svg")
    assert {"SGD", "Heavy ball", "Cosine", "constant", "updates", "training loss"} <= curves
    assert not {"sgd", "momentum", "cosine", "step"} & curves
    assert not any("How fast" in text or "Mini-batch" in text for text in curves)
    against = (tmp_path / "paper" / "intervals.svg").read_text()
    assert ">SGD<" in against and ">sgd<" not in against


def test_dashes_keep_their_lines_under_other_names(made_up):
    chart = report.PICTURES["learning_rate_sensitivity"](report.Sweeps([report.Sweep("a", made_up())]))
    text = json.dumps(renamed(specification(chart), {"sgd": "SGD"}))
    assert json.dumps('indexof(["SGD", "momentum"], datum["optimizer"])').strip('"') in text
    assert '"sgd"' not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": "8"}, "width=8: takes column, text or a length such as"),
        ({"width": "9999cm"}, "width=9999cm: takes"),
        ({"only": ["loss_curve"]}, "only=loss_curve: there is no such picture here, but loss_curves"),
        ({"labels": {"adam": "Adam"}, "only": ["loss_curves"]}, "labels=adam: no picture shows this name"),
    ],
)
def test_what_is_not_there_is_one_line_and_writes_nothing(made_up, tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as error:
        report.paper(made_up(), tmp_path / "paper", **options)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_lengths():
    assert [length(w) for w in ("1in", "25.4mm", "72pt")] == pytest.approx([72] * 3)


def test_norms_of_layers_are_lines_in_the_networks_order_on_a_logarithmic_axis(made_up):
    results = made_up()
    layers = ["layers.0.kernel", "layers.2.bias", "layers.2.kernel", "layers.10.kernel"]
    norms = np.random.default_rng(0).lognormal(size=(36, 2, 4))
    norms[0, 0, 0] = 0.0
    results["gradient_norm"] = (("run", "eval_step", "layer"), norms)
    results = results.assign_coords(layer=layers)
    chart = report.sections.recorded.diagnostics(report.Sweeps([report.Sweep("a", results)]))
    drawn = chart["gradient_norm"].to_dict()
    (layer,) = drawn["spec"]["layer"]
    assert layer["mark"]["type"] == "line"
    assert layer["encoding"]["y"]["scale"]["type"] == "log"
    assert layer["encoding"]["color"]["scale"]["domain"] == ["layers.0", "layers.2", "layers.10"]
    assert layer["encoding"]["strokeDash"]["scale"]["domain"] == ["kernel", "bias"]


def test_intervals_of_accuracies_end_at_100_per_cent(made_up):
    results = made_up()
    for part in ("valid", "test"):
        results[f"{part}_accuracy"] = results[f"{part}_accuracy"] + 0.38
    sweeps = report.Sweeps([report.Sweep("a", results)])
    assert sweeps.settings.value.max() < 100 == sweeps.settings.high.max()
    rows = report.PICTURES["budgets"](sweeps).to_dict()["datasets"]
    assert max(row["high"] for table in rows.values() for row in table if "high" in row) <= 100


def test_a_sweep_is_shown_by_one_call(made_up, capsys):
    report.show(made_up())
    said = capsys.readouterr().out
    assert "Best settings by valid accuracy" in said and "Best: momentum 0.9, constant" in said
