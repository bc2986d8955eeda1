"""experiments/compare_schedules.py as a user types it."""

import json

SCRIPT = "experiments/compare_schedules.py"
SMALL = ["--model=linear", "--steps=10", "--seed=0:2", "--lr=0.1,0.01", "--batch_size=20", "--platform=cpu"]
SMALL += ["--schedule=constant,cosine", "--optimizer=sgd", "--workdir=w", "--quiet", "--confirm_seeds=2"]


def test_schedules_are_compared_over_several_data_sets(run_commands, tmp_path):
    found, wrong, misread = run_commands(
        tmp_path,
        (SCRIPT, *SMALL, "--dataset=spirals,digits", "--json=figures.json"),
        (SCRIPT, *SMALL, "--dataset=spirals,digit"),
        (SCRIPT, *SMALL, "--dataset=spirals", "--layout=rows"),
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert "spirals: Best: " in found.stdout and "digits: Best: " in found.stdout
    assert "Over all data sets" in found.stdout and "P(" in found.stdout
    assert all(len(line) <= 80 for line in found.stdout.splitlines())
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert 0 < figures["constant.interquartile_mean"] < 2
    assert {"spirals.sgd.cosine.lr", "digits.sgd.constant.test_accuracy"} <= set(figures)
    page = (tmp_path / "w" / "report" / "index.html").read_text()
    assert "digits \\u00b7 sgd" in page and "How much tuning does each schedule need?" in page
    assert (tmp_path / "w" / "report" / "profiles.png").exists()

    for one, words in ((wrong, "did you mean digits?"), (misread, "--layout=rows")):
        assert (one.returncode, one.stdout) == (2, "")
        assert words in one.stderr and len(one.stderr.splitlines()) == 1
