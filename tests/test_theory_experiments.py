"""The experiments of the theory as a user types them."""

import json

import pytest

from bpresearch import sweep


@pytest.fixture
def run(run_commands, tmp_path):
    """`run(name, *flags)`: an experiment."""
    return lambda name, *flags: run_commands(tmp_path, (f"experiments/{name}.py", "--platform=cpu", *flags))[
        0
    ]


def test_an_experiment_leaves_its_figures_and_picture_and_says_that_theory_holds(tmp_path, run):
    found = run("deepobs_quadratic", "--quick", "--json=figures.json")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "Measured against theory" in found.stdout and "NO" not in found.stdout
    assert all(len(line) <= 80 for line in found.stdout.splitlines())
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert all(isinstance(value, int | float) for value in figures.values())
    assert round(figures["initial_loss"], 4) == 353.4468
    (workdir,) = (tmp_path / "results").iterdir()
    assert (workdir / "deepobs_quadratic.png").read_bytes().startswith(b"\x89PNG")


def test_a_check_that_fails_is_exit_code_one(run):
    """A mean over two runs is no expectation, so that the noisy quadratic model must seem wrong."""
    found = run("convergence_rates", "--condition=10", "--batch_size=4", "--runs=2")
    assert found.returncode == 1, found.stdout + found.stderr
    assert [line.split("│")[-2].strip() for line in found.stdout.splitlines() if "batch 4" in line] == ["NO"]
    assert found.stderr == ""


@pytest.mark.full
def test_the_table_of_mnist1d_has_every_model_and_both_orders_of_the_points(tmp_path, run):
    flags = ("--steps=2", "--seed=0:2", "--notune", "--json=figures.json", "--workdir=here")
    found = run("mnist1d_table", *flags)
    assert found.returncode == 0, found.stdout + found.stderr
    assert all(len(line) <= 80 for line in found.stdout.splitlines())
    figures = json.loads((tmp_path / "figures.json").read_text())
    models = ("linear", "residual_mlp", "cnn", "bidirectional_gru")
    parts = {f"{model}.{part}" for model in models for part in ("plain", "shuffled")}
    assert figures.keys() == {f"{part}.{of}" for part in parts for of in ("mean", "deviation", "best")}
    assert all(figures[f"{part}.best"] >= figures[f"{part}.mean"] for part in parts)
    assert (tmp_path / "here" / "mnist1d_table.png").read_bytes().startswith(b"\x89PNG")
    order = data_of(tmp_path / "here" / "linear-shuffled", "test_accuracy")
    assert not (order == data_of(tmp_path / "here" / "linear-plain", "test_accuracy")).all()


def data_of(workdir, name):
    return sweep.read(workdir)[name].values


SMALL = {
    "heavy_tails": ("--quick", "--classes=10"),
    "catapult": ("--multiple=1.5,3,4.5", "--examples=100", "--steps=20"),
    "schedule_theory": ("--horizon=400", "--steps=8", "--width=4", "--lr=0.1,0.2,0.4", "--seed=0"),
    "adaptive_edge": ("--b1=0.5", "--lr=0.01", "--steps=100", "--examples=30", "--width=4"),
    "weight_averages": ("--steps=50", "--runs=500", "--updates=4", "--lr=0.1,0.2", "--seed=0:2"),
    "critical_batch": ("--batch_size=16,64,256", "--lr=0.2,0.4", "--seed=0", "--target=2", "--updates=200"),
    "width_transfer": ("--width=4,8,16", "--lr=0.01,0.1,0.3", "--seed=0:2", "--steps=10"),
    "double_descent": ("--width=4,8", "--seed=0:2", "--epochs=1"),
}
"""The second part of the theory at a size that takes seconds, at which networks learn nothing yet."""

CLOSED_FORMS = {
    "heavy_tails": (
        "gradient descent: worst loss over closed form, off 1 by",
        "sign descent: worst loss over closed form, off 1 by",
    ),
    "catapult": (
        "lr x curvature 1.5: falls at once", "lr x curvature 3: is thrown and returns",
        "lr x curvature 4.5: diverges", "curvature against its closed equation",
        "3: lr x curvature at the end",
    ),
    "schedule_theory": (
        *(f"{name}, T = 400: bound" for name in ("constant", "linear", "cosine", "stable, linear")),
        "stable, sqrt, T = 400: bound", "convex function: measured / bound",
    ),
    "adaptive_edge": ("b1 = 0.5: edge by roots / closed form",),
    "weight_averages": (
        *(f"{name}: recursion / closed form in the long run" for name in ("last", "EMA", "tail")),
        *(
            f"constant, {name}: simulated / recursion, off 1 by"
            for name in ("last", "EMA", "tail", "schedule-free")
        ),
        "quadratic: tail / last iterate",
    ),
    "critical_batch": (
        "best step: simulated decrease / formula", "noisy quadratic: hyperbola / steps, off 1 by",
    ),
    "double_descent": ("wrong labels (%)",),
}  # fmt: skip
"""The checks that do not depend on what a network learns: they hold at every size."""


def verdicts(text):
    """What each check says, by its name, from the last table of an experiment."""
    found = {}
    for line in text.partition("Measured against theory")[2].splitlines():
        if line.startswith("│"):
            what, *_, verdict = (cell.strip() for cell in line.strip("│").split("│"))
            if verdict:
                found[what] = verdict
            else:  # the name goes on
                last = list(found)[-1]
                found[f"{last} {what}"] = found.pop(last)
    return found


def run_all(folder, run_commands, flags):
    """What all of them print and exit with; figures and pictures must be there."""
    ended = run_commands(
        folder,
        *(
            (
                f"experiments/{name}.py",
                *flags[name],
                "--platform=cpu",
                f"--json={name}.json",
                f"--workdir={name}",
            )
            for name in SMALL
        ),
    )
    for name, found in zip(SMALL, ended, strict=True):
        said = verdicts(found.stdout)
        assert said and set(said.values()) <= {"yes", "NO"}, (name, found.stderr)
        assert found.returncode == ("NO" in said.values()), (name, found.stderr)
        assert json.loads((folder / f"{name}.json").read_text())
        assert all(len(line) <= 80 for line in found.stdout.splitlines())
        assert list((folder / name).glob("*.png"))
    return dict(zip(SMALL, (verdicts(found.stdout) for found in ended), strict=True))


def test_closed_forms_hold_in_the_theorys_second_part(tmp_path, run_commands):
    found = run_all(tmp_path, run_commands, SMALL)
    for name, checks in CLOSED_FORMS.items():
        assert {check: found[name].get(check) for check in checks} == dict.fromkeys(checks, "yes"), name


@pytest.mark.full
def test_every_check_of_the_theorys_second_part_holds_in_quick_runs(tmp_path, run_commands):
    found = run_all(tmp_path, run_commands, dict.fromkeys(SMALL, ("--quick",)))
    assert {verdict for checks in found.values() for verdict in checks.values()} == {"yes"}, found


FIRST_PART = (
    "which_derivative",
    "quotient_update",
    "minibatch_averaging",
    "step_fidelity",
    "convergence_rates",
)


@pytest.mark.full
@pytest.mark.parametrize("name", FIRST_PART)
def test_every_check_of_the_theorys_first_part_holds_in_quick_runs(tmp_path, run, name):
    ended = run(name, "--quick", f"--json={name}.json", "--workdir=here")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert set(verdicts(ended.stdout).values()) == {"yes"}
    assert all(len(line) <= 80 for line in ended.stdout.splitlines())
    figures = json.loads((tmp_path / f"{name}.json").read_text())
    assert sum(figure.startswith("check.") for figure in figures) == len(verdicts(ended.stdout))
    assert list((tmp_path / "here").glob("*.png"))
    if name == "which_derivative":  # which answers in words first
        assert ended.stdout.startswith(
            "Is the derivative in back-propagation that of the activation or that of"
        )


def test_bad_input_is_one_line(tmp_path, run_commands):
    cases = {
        ("savings", "--depth=8"): "at least 2 values, for an exponent",
        ("step_fidelity", "--momentum=1"): "below 1",
        ("convergence_rates", "--condition=uniform:10:100"): "takes a list or a range",
        ("minibatch_averaging", "--seed=3"): "at least 2 values, for",
        ("mnist1d_table", "--seed=3"): "at least 2 values, for",
        ("deepobs_quadratic", "--workdir="): "is empty",
        ("schedule_theory", "--lr=0.1,0.2"): "at least 3 values, of which",
        ("adaptive_edge", "--steps=10"): "at least 100",
        ("heavy_tails", "--target=9"): "between 0 and log(classes)",
        ("weight_averages", "--seed=3"): "at least 2 values, for",
        ("critical_batch", "--batch_size=8,16"): "at least 3 values, for a hyperbola",
        ("catapult", "--multiple=4.5,5"): "at least one below 4",
        ("width_transfer", "--width=64,128"): "at least 3 values, for an exponent",
        ("double_descent", "--seed=3"): "at least 2 values, for",
    }
    ended = run_commands(tmp_path, *((f"experiments/{name}.py", flag) for name, flag in cases))
    for found, ((_, flag), message) in zip(ended, cases.items(), strict=True):
        (line,) = found.stderr.splitlines()
        assert found.returncode == 2 and flag.partition("=")[0] in line and message in line
