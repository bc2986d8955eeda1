"""scripts/verify_gradients.py as a user runs it."""

import json

import pytest

SCRIPT = "scripts/verify_gradients.py"


@pytest.fixture
def verify_gradients(run_commands, tmp_path):
    """`verify_gradients(*flags)`."""
    return lambda *flags: run_commands(tmp_path, (SCRIPT, "--dataset=diabetes", "--platform=cpu", *flags))[0]


def test_right(tmp_path, verify_gradients):
    file = tmp_path / "report.json"
    done = verify_gradients("--model=linear", "--dtype=bfloat16", "--batch_size=8", f"--json={file}")
    assert done.returncode == 0, done.stderr
    assert "The gradient is right" in done.stdout
    assert "layers.1.kernel" in done.stdout
    read = json.loads(file.read_text())
    assert read["passed"] is True
    assert read["culprits"] == []
    assert {row["oracle"] for row in read["rows"]} == {
        "autodiff",
        "finite differences",
        "rounding",
        "rule",
        "behaviour",
    }
    assert list(tmp_path.iterdir()) == [file]


def test_planted_fault(tmp_path, verify_gradients):
    page, file = tmp_path / "report.html", tmp_path / "report.json"
    done = verify_gradients(
        "--widths=4,4", "--dtype=float64", "--batch_size=8", "--plant=weight_not_transposed",
        "--every_coordinate=3", f"--html={page}", f"--json={file}",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "culprits: layers.3" in done.stdout
    text = page.read_text(encoding="utf-8")
    assert "the mistake is in the rule of layers.3" in text
    assert "mlp on 8 examples of diabetes, squared_error, float64" in text
    rows = json.loads(file.read_text())["rows"]
    looked = {row["path"]: row["detail"] for row in rows if row["oracle"] == "finite differences"}
    assert looked["layers.5.bias"].startswith("every coordinate (1)")
    assert looked["layers.1.kernel"].startswith("20 random directions")
    assert set(tmp_path.iterdir()) == {page, file}


BAD_FLAGS = {
    "--plant=pool_mean_for_max": "--plant=pool_mean_for_max: ",
    "--dtype=float8": "--dtype=float8 is not one of float64, float32, bfloat16",
    "--json=/no/such/folder/report.json": "--json=/no/such/folder/report.json: takes the name of a file in a",
    "--html=/no/such/folder/report.html": "--html=/no/such/folder/report.html: takes the name of a file in a",
    "--every_coordinate=-1": "--every_coordinate=-1: takes an integer of at least 0",
    "--batch_size=1000000": "--batch_size=1000000: takes 1 to ",
    "--seed=-1": "--seed=-1: takes an integer of at least 0",
}


def test_bad_flags(run_commands, tmp_path):
    ended = run_commands(tmp_path, *((SCRIPT, "--dataset=diabetes", flag) for flag in BAD_FLAGS))
    for found, message in zip(ended, BAD_FLAGS.values(), strict=True):
        assert (found.returncode, found.stdout) == (2, "")
        assert found.stderr.startswith("verify_gradients.py: ") and message in found.stderr
        assert len(found.stderr.strip().splitlines()) == 1
