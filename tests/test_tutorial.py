"""TUTORIAL.md does what it says: its commands are run, and print what stands there."""

import doctest
import re
import shlex
from pathlib import Path

TUTORIAL = (Path(__file__).parents[1] / "TUTORIAL.md").read_text()
NUMBER = r"(?<![\w.\]])[-+]?\d+(\.\d+)?(e[-+]\d+)?"
BOX = "─━│┃┏┳┓┡╇┩└┴┘╺"


def test_the_commands_print_what_the_tutorial_shows(run_commands, tmp_path):
    blocks = re.findall(r"```console\n\$ (.*?)\n(.*?)```", TUTORIAL.replace("\\\n", " "), re.DOTALL)
    commands = [shlex.split(command) for command, _ in blocks]
    assert [run for run, *_ in commands] == ["scripts/run"] * 6
    ended = run_commands(tmp_path, *(tuple(command[1:]) for command in commands))
    for command, (_, shown), found in zip(commands, blocks, ended, strict=True):
        expected_code = 1 if "--plant=gelu_constant" in command else 0
        assert found.returncode == expected_code, (command, found.stderr)
        exact = "scripts/explain_gradient.py" in command
        parts = [part.strip() for part in plain(shown, exact).split("...")]
        text = plain(found.stdout, exact)
        assert text.startswith(parts[0]) and text.endswith(parts[-1]), (command, text)
        for part in parts:
            assert part in text, (command, part, text)
            text = text[text.index(part) + len(part) :]
    page = (tmp_path / "both" / "index.html").read_text()
    assert "first" in page and "second/digits" in page
    assert (tmp_path / "results" / "first" / "report" / "effective_learning_rate.png").exists()
    assert "culprit" in (tmp_path / "wrong.html").read_text()


def plain(text: str, exact: bool = False) -> str:
    """Printed text without what the machine decides: numbers (if `exact`, only those that are rounding), the
    widths of columns, and who is best.
    """
    text = " ".join("".join(" " if letter in BOX else letter for letter in text).split())
    text = re.sub(r"Best: .*?, level 5 %( with Holm's correction for \d+ comparisons)?\.", "Best.", text)
    return re.sub(r"\S+e-1\d" if exact else rf"{NUMBER}[*]?", "#", text)


def test_who_is_best_and_numbers_are_all_that_is_not_compared():
    shown = (
        "│ sgd │ 0.3* │ 95.7 ± 3.8 │\nBest: sgd, cosine (p = 0.3). Student's t test, level\n5 %. "
        "layers.1.kernel[20,5]"
    )
    assert plain(shown) == "sgd # # ± # Best. layers.1.kernel[#,#]"
    assert plain("input -0.8123, difference 4.2e-17", exact=True) == "input -0.8123, difference #"


def test_the_examples_in_python():
    parsed = doctest.DocTestParser().get_doctest(TUTORIAL, {}, "TUTORIAL.md", None, 0)
    assert len(parsed.examples) == 11
    said: list[str] = []
    found = doctest.DocTestRunner().run(parsed, out=said.append)
    assert found.failed == 0, "".join(said)


def test_the_best_learning_rates_are_a_factor_apart_that_momentum_explains():
    """What the tutorial says of its table, of the numbers that it shows."""
    rows = re.findall(r"│ (sgd|momentum) +│ \w+ +│ +([\d.]+) │ +(-|[\d.]+) │ +[\d.]+ ±", TUTORIAL)
    effective = {round(float(lr) / (1 - (0 if beta == "-" else float(beta))), 9) for _, lr, beta in rows}
    assert len(rows) == 4 and effective == {0.3}
