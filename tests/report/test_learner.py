"""The page to think with, in a real browser: its numbers are JAX's, its steps Optax's."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpresearch import optim, report, theory
from bpresearch.theory import network

TEXTBOOK = network.read(Path(__file__).parents[2] / "experiments" / "textbook.json")
LOSSES = ["half_squared_error", "squared_error", "binary_cross_entropy", "softmax_cross_entropy"]
NUMBERS = "const s = chainRule.forward(arguments[0]); return [s.cost, chainRule.backward(arguments[0], s)]"


def random_network(seed):
    """Every activation and loss occurs among ten of them."""
    random = np.random.default_rng(seed)
    sizes = [int(n) for n in random.integers(1, 5, 2 + seed % 3)]
    loss, kinds = LOSSES[seed % 4], list(network.ACTIVATIONS)
    activations = [kinds[(seed + n) % len(kinds)] for n in range(len(sizes) - 1)]
    if loss == "binary_cross_entropy":
        activations[-1] = "sigmoid"
    targets = random.dirichlet(np.ones(sizes[-1])) if seed % 4 > 1 else random.normal(size=sizes[-1])
    return network.from_dict({
        "sizes": sizes, "activations": activations, "loss": loss,
        "weights": [random.normal(size=(n, m)).tolist() for m, n in itertools.pairwise(sizes)],
        "biases": [random.normal(size=n).tolist() for n in sizes[1:]],
        "inputs": random.normal(size=sizes[0]).tolist(), "targets": targets.tolist(),
        "reduction": "mean" if loss != "softmax_cross_entropy" and seed % 5 else "sum", "learning_rate": 0.1,
    })  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("learner") / "page.html"
    path.write_text(report.learner(TEXTBOOK, "w5"))
    return path


@pytest.fixture
def opened(browser, page):
    browser.open(page, width=800)
    return browser


def text(browser, selector):
    return browser.run(f"return document.querySelector('{selector}').textContent")


def test_the_pages_numbers_are_those_of_jax(opened):
    for net in (TEXTBOOK, *map(random_network, range(10))):
        cost, gradients = theory.gradients(net)
        by_page = opened.run(NUMBERS, net.to_dict())
        assert by_page[0] == pytest.approx(cost, rel=1e-12)
        assert by_page[1] == pytest.approx(gradients, rel=1e-12, abs=1e-15)
        name = next(iter(gradients))
        products = opened.run(
            "const s = chainRule.forward(arguments[0]);"
            "return chainRule.paths(arguments[0], s, arguments[1]).map(path => path.product)",
            net.to_dict(), name,
        )  # fmt: skip
        assert sum(products) == pytest.approx(gradients[name], rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        ("sgd", optax.sgd(0.5)),
        ("momentum", optax.sgd(0.5, momentum=0.9)),
        ("quotient", optim.quotient_global(1.0)),
    ],
)
def test_steps_are_those_of_optax(opened, rule, optimizer):
    net, steps = TEXTBOOK, 3
    weights = {name: net.value(name) for name in net.places}
    with jax.enable_x64(True):
        state = optimizer.init(weights)
        for _ in range(steps):
            cost, gradients = jax.tree.map(jnp.asarray, theory.gradients(net))
            updates, state = optax.with_extra_args_support(optimizer).update(
                gradients, state, weights, value=cost
            )
            weights = {name: value + float(updates[name]) for name, value in weights.items()}
            net = with_weights(net, weights)
    opened.run(
        f"document.getElementById('again').click(); for (let n = 0; n < {steps}; n++) take('{rule}', 1)"
    )
    by_page = opened.run("return [page.net, page.history.at(-1).cost]")
    after = network.from_dict(by_page[0])
    assert {name: after.value(name) for name in after.places} == pytest.approx(weights, rel=1e-12)
    assert by_page[1] == pytest.approx(theory.gradients(net)[0], rel=1e-12)
    assert f"After {steps} steps" in text(opened, "#after") and opened.errors() == []


def with_weights(net, weights):
    """The network with other values of its weights, by name."""
    given = net.to_dict()
    for name, places in net.places.items():
        for layer, unit, source in places:
            if source is None:
                given["biases"][layer][unit] = weights[name]
            else:
                given["weights"][layer][unit][source] = weights[name]
    return network.from_dict(given)


def test_the_question_is_answered_for_the_weight_that_is_chosen(opened):
    assert text(opened, "#answer").startswith("Both. dE/dw5 = 0.5933 × 0.1868 × 0.7414 = 0.08217")  # noqa: RUF001
    kinds = "return [...document.querySelectorAll('.chip')].map(chip => chip.classList[1])"
    assert opened.run(kinds) == ["input", "activation", "loss"]
    opened.run("choose('w:w1')")
    assert text(opened, "#answer").startswith("Both, and the weights between them. 2 paths lead from w1")
    assert opened.run(kinds) == ["input", "activation", "weight", "activation", "loss"] * 2
    opened.run("document.querySelector('[name=loss]').click()")
    assert opened.run("return document.querySelectorAll('.chip.loss.replaced').length") == 2
    assert "instead of 0.0004386" in text(opened, "#without")


def test_a_number_is_dragged_with_the_pointer_and_moved_by_keyboard(opened):
    where = "const b = document.querySelector('[data-key=\"i:0\"]').getBoundingClientRect();"
    x, y = opened.run(where + "return [b.x + b.width / 2, b.y + b.height / 2]")
    for kind, dy in (("mousePressed", 0), ("mouseMoved", -20), ("mouseMoved", -40), ("mouseReleased", -40)):
        event = {"type": kind, "button": "left", "buttons": 1, "clickCount": 1, "x": x, "y": y + dy}
        opened.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)
    assert opened.run("return page.net.inputs[0]") == pytest.approx(0.45)
    opened.run("document.querySelector('[data-key=\"w:w6\"]').focus()")
    press(opened, "ArrowUp", "ArrowUp", "Enter")
    assert opened.run("return chainRule.valueOf(page.net, 'w6')") == pytest.approx(0.47)
    assert opened.run("return [page.chosen, document.activeElement.dataset.key]") == ["w6", "w:w6"]
    gradient = opened.run("return chainRule.backward(page.net, chainRule.forward(page.net)).w6")
    assert gradient == pytest.approx(
        theory.gradients(network.from_dict(opened.run("return page.net")))[1]["w6"]
    )


def press(browser, *keys):
    for key, kind in itertools.product(keys, ("keyDown", "keyUp")):
        browser.driver.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, "key": key, "code": key})


@pytest.mark.parametrize(("width", "dark"), [(800, False), (375, True)])
def test_the_page_fits_its_window(browser, page, width, dark):
    browser.open(page, width=width, dark=dark)
    browser.run("document.querySelector('[data-rule=momentum][data-count=\"50\"]').click()")
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.run("return document.documentElement.dataset.theme") == ("dark" if dark else "light")
    assert browser.run("return document.querySelectorAll('svg.curve path.momentum').length") == 50
    overlapping = """
        const signs = [...document.querySelectorAll('#network .tag rect:first-child')];
        const boxes = signs.map(sign => sign.getBoundingClientRect());
        return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b =>
            a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)).length"""
    assert browser.run(overlapping) == 0
    browser.screenshot(f"learner-{width}")


def test_a_layer_too_wide_to_draw_is_refused():
    with pytest.raises(ValueError, match="at most 12 units"):
        report.learner(network.from_dict(wide(20)), "w1")


def wide(units):
    return {
        "sizes": [1, units], "activations": ["tanh"], "weights": [[[0.5]] * units], "biases": [[0.0] * units],
        "inputs": [1.0], "targets": [0.0] * units, "loss": "squared_error", "reduction": "sum",
        "learning_rate": 0.1,
    }  # fmt: skip
