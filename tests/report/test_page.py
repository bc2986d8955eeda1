"""Report pages in a real browser: drawn, answering, quiet, and safe."""

import itertools
import json

import numpy as np
import pytest
import xarray as xr

from bpresearch import report
from bpresearch.statistics import Target

EVIL = "</script><script>window.evil=1</script><img src=x onerror=window.evil=2>"
OPTIMIZERS, SCHEDULES = ("sgd", "momentum"), ("constant", "cosine")


@pytest.fixture(scope="module")
def results():
    """A sweep with everything that a report shows: three axes, diverged runs, a diagnostic."""
    runs = list(itertools.product(OPTIMIZERS, SCHEDULES, (0.01, 0.1, 1.0), (0.5, 0.9), range(3)))
    optimizer, schedule, lr, beta, seed = (np.array(values) for values in zip(*runs, strict=True))
    random, steps = np.random.default_rng(0), np.arange(1, 41)
    off = np.abs(np.log10(lr / 0.1)) + 0.2 * (optimizer == "sgd") + 0.3 * (schedule == "constant")
    score = 0.8 - 0.2 * off + random.normal(0, 0.02, len(runs))
    lost = (lr == 1.0) & (optimizer == "momentum") & (seed == 0)
    loss = (2 - score)[:, None] * np.exp(-steps / 40) * random.lognormal(0, 0.1, (len(runs), 40))
    loss[lost, 20:] = np.nan
    final = np.where(lost, np.nan, score)
    curves = {name: ("run", "eval_step") for name in ("valid_accuracy", "test_accuracy")}
    accuracy = np.stack([np.full(len(runs), 0.1), final], axis=1)
    return xr.Dataset(
        {
            "train_loss": (("run", "step"), loss),
            "gradient_norm": (("run", "step"), loss**2),
            "update_norm": (("run", "eval_step", "layer"), random.lognormal(size=(len(runs), 2, 3))),
            "nothing": (("run", "step"), np.full_like(loss, np.nan)),
            "diverged_at": ("run", np.where(lost, 21, -1)),
            "finished": ("run", np.ones(len(runs), bool)),
            "train_eval_accuracy": (("run", "eval_step"), accuracy + 0.05),
            **{name: (dims, accuracy) for name, dims in curves.items()},
            **{name.replace("accuracy", "loss"): (dims, 2 - accuracy) for name, dims in curves.items()},
        },
        {
            "optimizer": ("run", optimizer.astype(object)),
            "schedule": ("run", schedule.astype(object)),
            "lr": ("run", lr),
            "momentum": ("run", np.where(optimizer == "sgd", np.nan, beta)),
            "seed": ("run", seed),
            "batch_size": ("run", np.full(len(runs), 10)),
            **{n: ("run", np.full(len(runs), n, object)) for n in ("model", "dataset", "loss")},
            "step": steps,
            "eval_step": [0, 40],
            "layer": np.array(["first", "second", "third"], object),
        },
    )


CHECK = {
    "passed": False,
    "culprits": ["layers.1"],
    "notes": [],
    "hints": ["layers.1: the error looks like a factor of 2"],
    "rows": [
        {"path": path, "shape": [3], "oracle": oracle, "error": error, "tolerance": 1e-10, "passed": passed,
         "detail": "its rule is wrong" if oracle == "rule" and not passed else ""}
        for path, oracle, error, passed in (
            ("layers.0.kernel", "autodiff", 0.5, False), ("layers.2.kernel", "autodiff", 1e-16, True),
            ("input", "autodiff", "inf", False), ("layers.0", "rule", 0.0, True),
            ("layers.1", "rule", 0.5, False), ("layers.2", "rule", 1e-16, True), ("loss", "rule", 0.0, True),
        )
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    seconds = {key: (2e-4, 1e-4, 3e-4) for key in itertools.product(OPTIMIZERS, SCHEDULES)}
    sweep = report.Sweep("first", results, provenance={"command": "made up"}, check=CHECK, seconds=seconds)
    target = Target("accuracy", 0.5)
    return report.write(sweep, tmp_path_factory.mktemp("report"), target=target, drawings=False)


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (390, False), (390, True)])
def test_every_picture_is_drawn_and_nothing_is_said_or_loaded(browser, page, width, dark):
    browser.open(page, width, dark)
    figures = browser.run("return window.rendered.figures")
    others = {"target_profiles", "horizon", "ranking"}  # of several tasks, lengths, and evaluations
    wanted = {*report.PICTURES} - others | {"gradient_norm", "update_norm", "gradient_errors"}
    assert set(figures) == wanted
    for figure in figures:
        box = browser.run(
            f"const c = document.querySelector('[data-figure=\"{figure}\"] canvas');"
            "const p = c.parentElement.closest('.picture');"
            "return [c.clientWidth, c.clientHeight, p.scrollWidth - p.clientWidth]"
        )
        assert box[0] > 200 and box[1] > 100 and box[2] <= 0, (figure, box)
        colours = browser.run(
            f"const c = document.querySelector('[data-figure=\"{figure}\"] canvas');"
            "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "return new Set(new Uint32Array(d.buffer)).size"
        )
        assert colours > 20, figure
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return document.documentElement.dataset.theme") == ("dark" if dark else "light")
    browser.screenshot(f"report-{width}-{'dark' if dark else 'light'}")


def test_the_legend_hides_and_shows(browser, page):
    browser.open(page)
    before = {name: browser.pixels(name) for name in ("loss_curves", "all_runs", "budgets")}
    button = "document.querySelector('[data-key=\"optimizer momentum\"]')"
    browser.run(f"{button}.focus()")
    assert browser.run("return document.activeElement.dataset.key") == "optimizer momentum"
    browser.run(f"{button}.click()")
    assert browser.run(f"return {button}.getAttribute('aria-pressed')") == "false"
    browser.wait_until_changed("budgets", before["budgets"])
    assert all(browser.pixels(name) != pixels for name, pixels in before.items())
    assert browser.run("return document.querySelector('tr[data-optimizer=momentum]').hidden")
    browser.run(f"{button}.click()")
    browser.wait_until_changed("budgets", before["budgets"], back=True)
    assert browser.pixels("loss_curves") == before["loss_curves"]
    assert browser.errors() == []


def test_axes_switch_between_logarithmic_and_linear(browser, page):
    browser.open(page)
    before = browser.pixels("loss_curves")
    browser.run("document.querySelector('[data-for=loss_curves] [data-toggle=y]').click()")
    browser.wait(
        "return document.querySelector('[data-for=loss_curves] [data-toggle=y]').ariaPressed === 'false'"
    )
    browser.wait_until_changed("loss_curves", before)
    select = "document.querySelector('[data-for=heat_maps] select')"
    heat = browser.pixels("heat_maps")
    browser.run(f"{select}.value = 'momentum'; {select}.dispatchEvent(new Event('change'))")
    browser.wait_until_changed("heat_maps", heat)
    assert browser.errors() == []


def test_brushed_runs_are_shown_in_the_other_pictures(browser, page, results):
    browser.open(page)
    before = {name: browser.pixels(name) for name in ("loss_curves", "parallel_coordinates")}
    browser.drag("all_runs", (0.15, 0.15), (0.9, 0.5))
    browser.wait("return document.getElementById('status').textContent.includes('picked')")
    count = int(browser.run("return document.getElementById('status').textContent").split()[0])
    assert 0 < count < results.sizes["run"]
    rows = browser.run("return document.querySelectorAll('#picked tbody tr').length")
    assert rows == min(count, 50)
    assert all(browser.pixels(name) != pixels for name, pixels in before.items())
    browser.run("document.querySelector('#status button').click()")
    browser.wait("return document.getElementById('status').textContent === ''")
    assert browser.errors() == []


def test_runs_are_picked_by_keyboard(browser, page, results):
    browser.open(page)
    browser.run(
        "const [low] = document.querySelectorAll('#picks input'); low.value = 70; low.form.requestSubmit()"
    )
    browser.wait("return document.getElementById('status').textContent.includes('picked')")
    count = int(browser.run("return document.getElementById('status').textContent").split()[0])
    assert count == int((results.test_accuracy[:, -1] >= 0.7).sum())
    browser.run("document.querySelector('.numbers[data-for=budgets] summary').click()")
    browser.wait("return document.querySelector('.numbers[data-for=budgets] td')")


def test_what_comes_from_flags_and_files_stays_text(browser, results, tmp_path):
    evil = results.assign_coords(
        optimizer=("run", np.where(results.optimizer == "sgd", EVIL, "momentum").astype(object)),
        schedule=("run", np.full(results.sizes["run"], "a'b\"]" + EVIL, object)),
        dataset=("run", np.full(results.sizes["run"], EVIL, object)),
    ).rename({"momentum": "x[<b>]." + EVIL, "gradient_norm": "norm" + EVIL})
    check = json.loads(json.dumps(CHECK).replace("layers.1", json.dumps(EVIL)[1:-1]))
    sweeps = [
        report.Sweep(EVIL, evil, provenance={EVIL: EVIL}, check=check),
        report.Sweep("second, judged by its loss", results.drop_vars(["valid_accuracy", "test_accuracy"])),
    ]
    browser.open(report.write(sweeps, tmp_path, title=EVIL, drawings=False))
    browser.run("for (const d of document.querySelectorAll('details')) d.open = true;")
    browser.drag("all_runs", (0.15, 0.15), (0.9, 0.5))
    browser.wait("return document.getElementById('status').textContent.includes('picked')")
    assert browser.run("return window.evil ?? 0") == 0
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert browser.run("return document.title") == EVIL
    assert browser.errors() == []


def test_a_gradient_report_marks_the_culprit(browser, tmp_path):
    path = tmp_path / "gradient.html"
    path.write_text(report.gradients.page(CHECK), encoding="utf-8")
    browser.open(path)
    names = browser.run("return [...document.querySelectorAll('.chain strong')].map(e => e.textContent)")
    assert names == ["loss", "layers.2", "layers.1", "layers.0", "input"]
    assert browser.run("return document.querySelector('.chain .culprit strong').textContent") == "layers.1"
    wrong = "return [...document.querySelectorAll('tr.wrong td:first-child')].map(e => e.textContent)"
    assert browser.run(wrong) == ["layers.0.kernel", "input", "layers.1"]
    browser.screenshot("gradient")
