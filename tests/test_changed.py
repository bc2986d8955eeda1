"""`scripts/test --changed`: which tests concern a change."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]
_specification = importlib.util.spec_from_file_location("changed", ROOT / "scripts" / "changed.py")
changed = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(changed)


def test_a_room_concerns_those_that_import_it_directly_or_not():
    assert changed.rooms()["command"] == {"command"}
    assert {"chainrule", "verify", "theory", "diagnostics", "command"} <= changed.rooms()["chainrule"]
    assert not {"sweep", "statistics", "optim"} & changed.rooms()["chainrule"]


def test_paths_that_changed_become_tests_that_are_there():
    found = changed.tests_of(["bpresearch/chainrule/rules/lax/loops.py", "experiments/savings.py"])
    assert {"bpresearch/chainrule", "tests/chainrule", "tests/verify", "tests/test_house.py"} <= set(found)
    assert "tests/test_theory_experiments.py" in found and "tests/sweep" not in found
    assert all((ROOT / path).exists() for path in found)
    pages = changed.tests_of(["docs/sweep.md", "tests/test_files.py"])
    assert {"tests/test_docs.py", "tests/test_files.py"} <= set(pages)
    assert "tests/test_coverage.py" in changed.tests_of(["scripts/coverage.py"])
    for whole in ("pyproject.toml", "conftest.py", "bpresearch/__init__.py"):
        assert changed.tests_of([whole]) == ["bpresearch", "tests"]


def test_a_file_of_tests_that_is_gone_is_not_run():
    assert changed.tests_of(["tests/test_no_more.py"]) == ["tests/test_house.py"]
