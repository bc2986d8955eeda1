"""README.md and docs/: links lead somewhere, examples run, commands have the flags that pages name."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {
    str(file.relative_to(ROOT)): file.read_text() for file in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
}
SEVERAL_PROCESSES = "docs/clusters.md"
ELSEWHERE = {
    "CONTRIBUTING.md": "test_contributing.py",
    "TUTORIAL.md": "test_tutorial.py",
    "docs/own_task.md": "test_own_task.py",
}
"""Pages whose Python is run by a test of their own, which says more of the results."""

LONG = {"docs/sweep.md", "docs/verify.md"}
WITH_PYTHON = sorted(page for page, text in PAGES.items() if "```python\n" in text and page not in ELSEWHERE)


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """What a page tells to type, in blocks of its own or in a line, as words; without variables before it."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    inline = re.findall(r"`((?:[A-Z]+=\S+ )*scripts/(?:run|test|reproduce)[^`]*)`", " ".join(text.split()))
    typed = [
        match[1]
        for line in lines
        if (match := re.match(r"(?:    |\$ |srun )?((?:[A-Z]+=\S+ )*scripts/.*)", line))
    ]
    words = [shlex.split(command) for command in (*typed, *inline)]
    return [[word for word in command if not re.match("[A-Z]+=", word)] for command in words]


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_links_lead_somewhere_and_every_page_is_linked_from_the_readme():
    linked = {
        page: [(ROOT / page).parent / target for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text)]
        for page, text in PAGES.items()
    }
    assert [f"{page}: {target}" for page, of in linked.items() for target in of if not target.exists()] == []
    assert {(ROOT / page).resolve() for page in PAGES} - {file.resolve() for file in linked["README.md"]} == {
        ROOT / "README.md"
    }


def test_every_experiment_has_a_section_of_findings_and_a_line_in_the_readme():
    names = {file.stem for file in ROOT.glob("experiments/*.py")} - {
        "compare_optimizers",
        "compare_schedules",
    }
    assert names == set(
        re.findall(r"^    scripts/run experiments/(\w+)[.]py$", PAGES["docs/findings.md"], re.M)
    )
    assert names == set(re.findall(r"[?] \(`(\w+)`\)", " ".join(PAGES["README.md"].split())))


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.full) if page in LONG else page for page in WITH_PYTHON]
)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, users_ranks):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    names = {"__name__": page}
    for block in blocks(PAGES[page]):
        program = compile(block, page, "exec")
        if page != SEVERAL_PROCESSES:
            exec(program, names)


def test_pages_with_a_test_of_their_own_have_it():
    for page, test in ELSEWHERE.items():
        assert blocks(PAGES[page]) and page in (ROOT / "tests" / test).read_text().replace('" / "', "/")


def test_commands_are_there_and_have_the_flags_that_pages_name(run_commands, tmp_path):
    """Flags are parsed as the scripts parse them, in forks of one process; nothing is trained or verified."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    typed = sorted(
        {tuple(command) for page in PAGES.keys() - {"TUTORIAL.md"} for command in commands(PAGES[page])}
    )
    assert {command[0] for command in typed} == {"scripts/run", "scripts/test", "scripts/reproduce"}
    for command in typed:
        named = [word for word in command[1:] if not word.startswith("-")]
        assert command[0] == "scripts/reproduce" or all((ROOT / name).exists() for name in named[:1]), command
    programs = [command[1:] for command in typed if command[0] == "scripts/run" and command[-1] != "FILE"]
    flagged = [program for program in programs if len(program) > 1]
    ended = run_commands(tmp_path, *((*program, "--only_check_args") for program in flagged))
    wrong = {command: done.stderr for command, done in zip(flagged, ended, strict=True) if done.returncode}
    assert len(flagged) > 10 and wrong == {}


def test_the_search_for_commands_sees_blocks_lines_and_variables():
    text = (
        "    EXTRAS=a scripts/run f.py --a=1 \\\n        --b=2\nand `scripts/test --full`, no scripts/run\n"
    )
    assert commands(text) == [["scripts/run", "f.py", "--a=1", "--b=2"], ["scripts/test", "--full"]]


@pytest.mark.full
def test_pages_are_made_of_the_docstrings_without_a_warning(run_commands, tmp_path):
    pytest.importorskip("pdoc")
    (done,) = run_commands(tmp_path, ("scripts/api.py", "--out=api"))
    assert (done.returncode, done.stderr) == (0, "")
    for name, formula in {
        "chainrule/rules/layers/linear": "W_bar",
        "verify/oracles/taylor": "O(h^2)",
    }.items():
        assert formula in (tmp_path / "api" / "bpresearch" / f"{name}.html").read_text()
