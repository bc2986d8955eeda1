"""scripts/report.py as a user types it."""

import pytest
import zarr

from bpresearch import files

SCRIPT = "scripts/report.py"


@pytest.fixture
def workdirs(made_up, tmp_path):
    """Two workdirs, `a` and `b`, of which the second is not finished."""
    for name, finished in (("a", 36), ("b", 30)):
        results = made_up()
        results["finished"] = ("run", [number < finished for number in range(36)])
        results.attrs["axes"] = [name for name in results.coords if results[name].dims == ("run",)]
        path = tmp_path / name / "results.zarr"
        with zarr.config.set({"array.write_empty_chunks": True}):
            results.to_zarr(path, consolidated=False, mode="w")
        whole = {"arrays": list(results.variables), "runs": 36, "coordinates": " ".join(results.coords)}
        zarr.open_group(path).attrs.update(whole)
        files.write(tmp_path / name / "config.json", '{"provenance": {"command": "made up"}}')
    return tmp_path


WRONG = {
    ("--workdir=a", "--only=loss_curve"): "did you mean loss_curves?",
    ("--workdir=a,./a",): "holds a folder twice",
    ("--workdir=d",): "there is no results.zarr",
    ("--workdir=a", "--out="): "--out= is empty",
    (): "--workdir= is empty",
    ("--workdir=a", "--labels=sgd:SGD"): "--labels needs --style=paper",
    ("--workdir=a", "--style=paper", "--labels=sgd"): "--labels=sgd: takes names with words",
    ("--workdir=a", "--style=paper", "--width=wide"): "--width=wide: takes column, text or a length",
    ("--workdir=a", "--style=paper", "--only=loss"): "--only=loss: there is no such picture here",
}
PAPER = (
    "--workdir=a",
    "--style=paper",
    "--only=loss_curves",
    "--width=column",
    "--labels=sgd:SGD",
    "--out=d",
)


@pytest.mark.filterwarnings("ignore")  # zarr's, on text of any length
def test_two_workdirs_make_one_report(run_commands, workdirs):
    right = ("--workdir=a,b", "--title=<i>Two", "--only=verdict,provenance", "--out=c")
    found, paper, *wrong = run_commands(workdirs, *((SCRIPT, *flags) for flags in (right, PAPER, *WRONG)))
    assert (found.returncode, found.stdout.strip()) == (0, "c/index.html"), found.stderr
    page = (workdirs / "c" / "index.html").read_text()
    assert "&lt;i&gt;Two" in page and "<i>Two" not in page
    assert "b: 6 runs have not finished" in page and "a: Best: momentum" in page and "made up" in page
    assert "<figure" not in page and [path.name for path in (workdirs / "c").iterdir()] == ["index.html"]

    assert paper.stdout.split() == ["d/loss_curves.pdf", "d/loss_curves.svg"], paper.stderr
    assert ">SGD<" in (workdirs / "d" / "loss_curves.svg").read_text()

    for one, words in zip(wrong, WRONG.values(), strict=True):
        assert (one.returncode, one.stdout) == (2, ""), words
        assert words in one.stderr and len(one.stderr.splitlines()) == 1, one.stderr
