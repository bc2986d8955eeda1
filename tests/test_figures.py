"""Numbers in README.md and docs/ are those of docs/figures, and what is older than its code is marked."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_specification = importlib.util.spec_from_file_location("figures", ROOT / "scripts" / "figures.py")
figures = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(figures)

RECORDS = {path.stem: json.loads(path.read_text()) for path in figures.FIGURES.glob("*.json")}
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
QUOTED = [(page, *quote) for page, text in PAGES.items() for quote in figures.quotes(text)]


def test_every_number_that_a_page_quotes_is_the_one_that_was_measured():
    assert len(QUOTED) > 50
    measured = {(name, figure): v for name, of in RECORDS.items() for figure, v in of["figures"].items()}
    wrong = [
        f"{page}: {written} is not {name}.json's {figure}: {measured.get((name, figure))}"
        for page, written, name, figure, factor in QUOTED
        if (name, figure) not in measured or not figures.agrees(written, factor * measured[name, figure])
    ]
    assert wrong == []


def test_every_link_to_figures_names_one():
    links = {page: len(re.findall(r"\]\((?:docs/)?figures/", text)) for page, text in PAGES.items()}
    assert links == {page: sum(page == of for of, *_ in QUOTED) for page in PAGES}


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_figures_are_of_this_code(name):
    """Those that are older are marked: expected failures, whose reasons (pytest -rx) say what has changed."""
    record = RECORDS[name]
    assert {"command", "revision", "machine", "versions", "seed", "figures"} <= record.keys()
    script = record["command"].split()[1]
    assert (ROOT / script).exists() and name.startswith(Path(script).stem)
    current, line = figures.state(record)
    if not current:
        pytest.xfail(f"{name}: {line}")


def test_a_number_agrees_to_the_digits_that_are_shown():
    right = {
        "6.1": 6.14,
        "2,034": 2034.0,
        "3e-13": 2.7e-13,
        "-1.00": -1.004,
        "33,000": 33_000.4,
        "0.05": 0.0461,
    }
    assert all(figures.agrees(written, value) for written, value in right.items())
    assert not any(figures.agrees(written, value) for written, value in {"6.1": 6.2, "3e-13": 2e-13}.items())


def test_quotes_are_read_with_their_factor():
    text = 'saves [6.1](figures/savings.json "ratio"), [53](docs/figures/a.json "b c.d * 100") %, [x](a.md)'
    assert list(figures.quotes(text)) == [("6.1", "savings", "ratio", 1.0), ("53", "a", "b c.d", 100.0)]


def test_a_page_takes_the_numbers_of_the_files_in_its_own_form():
    values = {"ratio": 7.268, "count": 12_345.6, "error": 3.44e-12, "part": 0.0461, "same": 6.14}
    text = """saves [6.1](figures/savings.json "ratio") of [2,034](docs/figures/a.json "count"), off by
[3e-13](figures/a.json "error"), [5](figures/a.json "part * 100") %,
[6.1](figures/a.json "same"), [3](figures/a.json "lost")"""
    found = figures.rewritten(text, lambda name, figure: values.get(figure))
    assert [quote[0] for quote in figures.quotes(found)] == ["7.3", "12,346", "3e-12", "5", "6.1", "3"]
    assert figures.rewritten(found, lambda name, figure: values.get(figure)) == found
    numbers = {quote[0] for quote in (*figures.quotes(text), *figures.quotes(found))}
    for number in sorted(numbers, key=len, reverse=True):  # and nothing else has changed
        text, found = text.replace(f"[{number}]", "[]"), found.replace(f"[{number}]", "[]")
    assert text == found


@pytest.fixture
def history(tmp_path):
    """A repository with a script, a module that it imports and one that it does not; a record of it."""
    for name, text in {
        "experiments/claim.py": "from bpresearch import used\nfrom bpresearch.folder import part\n",
        "bpresearch/__init__.py": "",
        "bpresearch/used.py": '"""Used."""\nx = 1\n',
        "bpresearch/unused.py": "x = 1\n",
        "bpresearch/folder/__init__.py": "for file in iter_modules(__path__): pass\n",
        "bpresearch/folder/part.py": "x = 1\n",
        "bpresearch/folder/found.py": "x = 1\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    for command in ("init -q", "add -A", "-c user.name=n -c user.email=e commit -qm first"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    revision = figures.git("rev-parse", "--short", "HEAD", root=tmp_path).strip()
    return tmp_path, {"command": "scripts/run experiments/claim.py", "revision": revision}


def test_code_that_has_changed_since_is_named_and_words_are_no_code(history):
    folder, record = history
    assert list(figures.changed(record, folder)) == []
    (folder / "bpresearch" / "used.py").write_text('"""Of use."""\n# one\nx = 1\n')
    (folder / "bpresearch" / "unused.py").write_text("x = 2\n")
    assert list(figures.changed(record, folder)) == []
    (folder / "bpresearch" / "used.py").write_text("x = 2\n")
    (folder / "bpresearch" / "folder" / "found.py").write_text("x = 2\n")
    assert list(figures.changed(record, folder)) == ["bpresearch/folder/found.py", "bpresearch/used.py"]
    with pytest.raises(LookupError, match="0123456 is not in this history"):
        next(figures.changed(record | {"revision": "0123456"}, folder))


def test_a_record_says_where_and_when(run_commands, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", tmp_path)
    path = figures.record(
        "claim", {"seed": 7, "ratio": 6.1}, "abc1234+", "scripts/run experiments/claim.py", 1
    )
    entry = json.loads(path.read_text())
    assert (entry["seed"], entry["holds"], entry["revision"]) == (7, False, "abc1234+")
    assert "cores" in entry["machine"] and entry["figures"]["ratio"] == 6.1
    (lacking,) = run_commands(tmp_path, ("scripts/figures.py", "--record=claim"))
    assert (lacking.returncode, len(lacking.stderr.splitlines())) == (2, 1)
