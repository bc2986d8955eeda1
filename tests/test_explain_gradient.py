"""scripts/explain_gradient.py as a user types it."""

import json
from pathlib import Path

import pytest

SCRIPT = "scripts/explain_gradient.py"
TEXTBOOK = Path(__file__).parents[1] / "experiments" / "textbook.json"


def test_a_weight_of_the_perceptron_is_explained(tmp_path, run_commands):
    flags = (
        "--widths=6,5", "--activation=tanh", "--dataset=digits", "--weight=layers.1.kernel[20,5]",
        "--html=page.html", "--json=figures.json", "--examples=2",
        "--platform=cpu",
    )  # fmt: skip
    (found,) = run_commands(tmp_path, (SCRIPT, *flags))
    assert found.returncode == 0, found.stderr
    assert "They agree" in found.stdout and "jax.grad" in found.stdout
    assert all(len(line) <= 80 for line in found.stdout.splitlines())
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["paths"] == 2 * 5 * 10
    assert abs(figures["sum_of_paths"] - figures["autodiff"]) < 1e-12
    page = (tmp_path / "page.html").read_text()
    assert "<script" in page and "layers.1.kernel[20,5]" in page and 'src="http' not in page


DIGITS = ("--dataset=digits", "--widths=6")
SMALL = ("--sizes=2,1", "--inputs=1,0.5", "--targets=1", "--platform=cpu")


def test_a_small_network_is_explained_from_a_file_or_from_flags(tmp_path, run_commands):
    file, steep = f"--file={TEXTBOOK}", ("--weights=0.5,-0.25", "--biases=0.1", "--activations=identity")
    by_file, by_flags = run_commands(
        tmp_path,
        (SCRIPT, file, "--weight=w5", "--json=w5.json", "--html=page.html", "--platform=cpu"),
        (SCRIPT, *SMALL, *steep, "--weight=w2", "--json=w2.json", "--learning_rate=0.1"),
    )  # fmt: skip
    assert (by_file.returncode, by_flags.returncode) == (0, 0), by_file.stderr + by_flags.stderr
    figures = json.loads((tmp_path / "w5.json").read_text())
    assert round(figures["gradient"], 9) == 0.082167041 and round(figures["after_step"], 8) == 0.35891648
    assert "Both." in by_file.stdout and "w5 -> o1 -> E" in by_file.stdout
    page = (tmp_path / "page.html").read_text()
    assert "back-propagation" in page and "://" not in page.replace("http://www.w3.org/2000/svg", "")
    figures = json.loads((tmp_path / "w2.json").read_text())
    error = 0.5 - 0.25 * 0.5 + 0.1 - 1
    assert figures["gradient"] == pytest.approx(error * 0.5, rel=1e-14)
    assert figures["after_step"] == pytest.approx(-0.25 - 0.1 * error * 0.5, rel=1e-14)


def test_bad_input_is_one_line_and_leaves_what_was_there(tmp_path, run_commands):
    (tmp_path / "bad.json").write_text(TEXTBOOK.read_text().replace("0.05", "NaN"))
    (tmp_path / "out.json").write_text("before")
    cases = {
        ("--file=bad.json",): "bad.json: inputs[0]: is NaN",
        ("--file=none.json",): "none.json: cannot be read",
        (f"--file={TEXTBOOK}", "--weight=w9"): "--weight=w9: the network has w1, w2",
        (f"--file={TEXTBOOK}", "--dataset=digits"): "--dataset=digits: does not go with --file",
        (f"--file={TEXTBOOK}", "--model.depth=2"): "--model.depth=2: does not go with --file",
        (*SMALL, "--weights=1"): "--weights=1: lists 1, and by --sizes there are 2",
        (*SMALL, "--activations=tan"): '--activations[0]: is "tan"',
        ("--sizes=2,1", "--inputs=1,2"): "--targets is missing",
        ("--reduction=mean",): "--reduction=mean: does not go with --model=mlp",
        (*DIGITS, "--weight=layers.9.kernel[0,0]"): (
            "--weight=layers.9.kernel[0,0]: takes an element", "layers.1.kernel[64,6]",
        ),
        (*DIGITS, "--weight=layers.1.kernel[64,0]"): (
            "--weight=layers.1.kernel[64,0]", "layers.1.kernel has the shape (64, 6)",
        ),
        (*DIGITS, "--weight=layers.1.kernel"): ("--weight=layers.1.kernel:", "takes an element"),
    }  # fmt: skip
    ended = run_commands(tmp_path, *((SCRIPT, *flags, "--json=out.json") for flags in cases))
    for found, messages in zip(ended, cases.values(), strict=True):
        (line,) = found.stderr.splitlines()
        assert found.returncode == 2
        assert all(message in line for message in ([messages] if isinstance(messages, str) else messages))
    assert (tmp_path / "out.json").read_text() == "before"
