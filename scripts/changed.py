"""Which tests concern what has changed? `scripts/test --changed` runs those.

Changed is what differs from the last commit, or, if nothing does, what that commit changed. A room of the
package concerns its own tests and those of every room that imports it, directly or not (docs/map.md, which a
test compares with the imports); a script, an experiment or a page concerns the tests that name it.
"""

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def rooms() -> dict[str, set[str]]:
    """Each room of docs/map.md, and those that import it, directly or not; and itself."""
    table = re.findall(r"^\| `(\w+)` \| .* \|(.*)\|$", (ROOT / "docs" / "map.md").read_text(), re.MULTILINE)
    concerned: dict[str, set[str]] = {name: {name} for name, _ in table}
    for name, imported in reversed(table):  # from the ground up: who is imported stands further down
        for other in re.findall(r"`(\w+)`", imported):
            concerned[other].add(name)
    for name, _ in table:
        for above in list(concerned[name] - {name}):
            concerned[name] |= concerned[above]
    return concerned


def tests_of(changed: Iterable[str]) -> list[str]:
    """Folders and files of tests, for paths from the root; all of them for the settings of the whole."""
    concerned, tests = rooms(), {"tests/test_house.py"}
    for path in map(Path, changed):
        room = path.with_suffix("").parts[1:2]
        if path.parts[0] == "bpresearch" and room and room[0] in concerned:
            tests |= {place for name in concerned[room[0]] for place in _places(name)}
        elif path.parts[0] == "tests" and path.name.startswith("test_"):
            tests |= {str(path)} if (ROOT / path).exists() else set()
        elif path.parts[0] == "tests" and path.name == "conftest.py" and len(path.parts) > 2:
            tests.add(str(path.parent))
        elif path.suffix == ".md" or path.parts[0] == "docs":
            tests |= {"tests/test_docs.py", "tests/test_figures.py", *_naming(path.name)}
        elif path.parts[0] in ("experiments", "scripts", "tests"):
            words = {"scripts": path.name if path.suffix else f"scripts/{path.name}"}
            tests |= {*_naming(words.get(path.parts[0], path.stem))}
        elif path.parts[0] == "bpresearch" or path.suffix in (".toml", ".txt", ".py"):
            return ["bpresearch", "tests"]
    return sorted(tests)


def _places(room: str) -> list[str]:
    """Where the tests of a room are: its examples, its folder or its file; of `command`, those of scripts."""
    ours = [f"bpresearch/{room}", f"bpresearch/{room}.py", f"tests/{room}", f"tests/test_{room}.py"]
    ours += _naming("run_commands") if room == "command" else []
    return [path for path in ours if (ROOT / path).exists()]


def _naming(word: str) -> list[str]:
    """The files of tests in which a word stands."""
    pattern = re.compile(rf"\b{re.escape(word)}\b")
    tests = (ROOT / "tests").rglob("test_*.py")
    return [str(test.relative_to(ROOT)) for test in tests if pattern.search(test.read_text())]


def changed() -> list[str]:
    """What differs from the last commit, new files included; if nothing does, what that commit changed."""
    uncommitted = _git("diff", "--name-only", "HEAD") + _git("ls-files", "--others", "--exclude-standard")
    return uncommitted or _git("diff", "--name-only", "HEAD~1", "HEAD")


def _git(*arguments: str) -> list[str]:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


if __name__ == "__main__":
    print("\n".join(tests_of(changed())))
