"""The rules of the house: who may import what, how long a file is, where derivatives come from."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bpresearch"
FOLDERS = ("bpresearch", "experiments", "scripts", "tests")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))

# From the top of the house to the ground: a part may import those further down.
# Parts that are not named here (the pure-function view of a model, say) are the ground itself.
ORDER = ["command", "pytest_plugin", "report", "sweep", "statistics", "diagnostics", "theory", "verify"]
ORDER += ["evaluation", "train", "same_bits", "optim", "autodiff", "chainrule", "models", "data"]
# Some import less: these are given functions and arrays, and the engines do not know each other.
ALONE = {"same_bits", "optim", "autodiff", "data", "statistics"}
ONLY = {"evaluation": {"train", "optim"}, "train": {"same_bits"}, "report": {"statistics", "theory"}}
ONLY |= {"verify": {"autodiff", "chainrule", "models", "data"}}

# With a derivative from one of these, the chain-rule engine would agree with autodiff by itself.
DIFFERENTIATE = {"vjp", "grad", "jvp", "linearize", "value_and_grad", "linear_transpose"}
DIFFERENTIATE |= {"jacobian", "jacfwd", "jacrev", "hessian"}


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def part(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


PARTS = {part(file) for file in PACKAGE.rglob("*.py")}


def imports(tree: ast.AST) -> set[str]:
    """Every module that a file imports, by its full name; `from a import b` counts as `a.b`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def allowed(importer: str) -> set[str]:
    if importer not in ORDER:
        return {importer}
    ground = PARTS - {*ORDER, "__init__"}
    below = set() if importer in ALONE else {*ORDER[ORDER.index(importer) + 1 :]}
    return ONLY.get(importer, below) | ground | {importer}


def parts_imported(file: Path) -> set[str]:
    found = [f"{module}.".split(".") for module in imports(ast.parse(file.read_text()))]
    return {module[1] for module in found if module[0] == "bpresearch"}


def test_dependencies_point_down_only():
    files = [file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py"]
    upward = {name(file): parts_imported(file) - allowed(part(file)) for file in files}
    assert {file: parts for file, parts in upward.items() if parts} == {}


MAP = re.findall(r"^\| `(\w+)` \| .* \|(.*)\|$", (ROOT / "docs" / "map.md").read_text(), re.MULTILINE)
"""The rooms of docs/map.md from the top, each with the text that names what it imports."""


def test_the_map_is_the_import_graph():
    """docs/map.md: every room, in the order of the house, and exactly the rooms that it imports."""
    rooms = [room for room, _ in MAP]
    assert set(rooms) == PARTS - {"__init__"} and rooms[: len(ORDER)] == ORDER
    real: dict[str, set[str]] = {room: {room} for room in rooms}
    for file in PACKAGE.rglob("*.py"):
        if file != PACKAGE / "__init__.py":
            real[part(file)] |= parts_imported(file)
    drawn = {room: {room, *re.findall(r"`(\w+)`", imported)} for room, imported in MAP}
    wrong = {room: (real[room] - drawn[room], drawn[room] - real[room]) for room in rooms}
    assert {room: both for room, both in wrong.items() if any(both)} == {}, (
        "imported, not drawn; and the reverse"
    )
    for room, imported in MAP:  # in the order of the house, too
        named = re.findall(r"`(\w+)`", imported)
        assert named == sorted(named, key=rooms.index) and all(
            rooms.index(n) > rooms.index(room) for n in named
        ), room


def test_the_readme_names_every_room_and_no_other():
    table = (ROOT / "README.md").read_text().partition("## The house")[2].partition("\n## ")[0]
    cells = " ".join(re.findall("^[|] (`.*?) [|]", table, re.MULTILINE))
    named = {word for word in re.findall(r"\w+(?:[.]py)?", cells)}
    folders = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert folders <= named
    assert [word for word in named if not any((top / word).exists() for top in (ROOT, PACKAGE))] == []


def test_only_command_experiments_and_scripts_read_flags():
    read = {file: imports(ast.parse(file.read_text())) for file in PACKAGE.rglob("*.py")}
    readers = {name(file) for file, modules in read.items() if "absl.flags" in modules}
    assert {reader for reader in readers if not reader.startswith("bpresearch/command/")} == set()


def derivatives_taken(source: str) -> list[str]:
    """Where code (not prose) names a transformation of JAX or Flax that differentiates."""
    tree = ast.parse(source)
    libraries = [name.split(".") for name in imports(tree) if re.match("(jax|flax)[.]", name)]
    found = [".".join(names) for names in libraries if names[-1] in DIFFERENTIATE]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in DIFFERENTIATE:
            dotted = ast.unparse(node)
            if dotted.split(".")[0] in {"jax", "nnx", "flax", "api"}:
                found.append(f"line {node.lineno}: {dotted}")
    return found


def test_rules_are_written_out_not_differentiated():
    files = sorted(PACKAGE.glob("chainrule/**/*.py"))
    found = {name(file): derivatives_taken(file.read_text()) for file in files}
    assert {file: places for file, places in found.items() if places} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import jax\njax.vjp(f, x)", 1),
        ("from jax import grad", 1),
        ("from flax import nnx\nnnx.value_and_grad(f)", 1),
        ("from jax import numpy\n'''as jax.grad does'''  # jax.vjp", 0),
        ("import jax\njax.custom_vjp(f)\nengine.value_and_grad(f)", 0),
    ],
)
def test_the_search_for_derivatives_sees_code_and_not_prose(source, found):
    assert len(derivatives_taken(source)) == found


def test_no_file_is_longer_than_400_lines():
    lengths = {name(file): len(file.read_text().splitlines()) for file in FILES}
    assert {file: length for file, length in lengths.items() if length > 400} == {}


def test_no_file_is_called_utils():
    assert [name(file) for file in FILES if "util" in file.stem] == []


UNPINNED = {"cuda", "torch", "tpu"}
"""Extras of other makers' builds, which a file of versions for every machine cannot hold."""


def test_every_dependency_is_pinned_and_no_file_of_versions_holds_a_url():
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search("https?:|file:|--index|--extra-index", text)
    pins = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[^ /]+( ; .*)?", pin) for pin in pins)
    pinned = {pin.split("==")[0] for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(r for name in extras.keys() - UNPINNED for r in extras[name])]
    assert {re.split("[<>=[]", requirement)[0].lower() for requirement in wanted} - {"bpresearch"} <= pinned
