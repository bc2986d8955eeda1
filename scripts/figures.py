"""The figures that README.md and docs/ quote: where each was measured, and whether code has changed since.

A page quotes a number as a link, [6.1](docs/figures/savings.json "operations_ratio"): the file, and the name
of the figure in it. Without flags, prints each file's revision and which files of the code it speaks of are
others now. With --record=NAME, puts what a command wrote with --json into docs/figures/NAME.json;
`scripts/reproduce --figures` does both, the measuring and this. With --write, the numbers in the pages become
those of the files, with as many digits as before; the sentences around them are yours to read again.
"""

import ast
import functools
import itertools
import json
import platform as machine
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from absl import flags

from bpresearch import command as shared
from bpresearch import files
from bpresearch.platform import available_cores

flags.DEFINE_string("record", None, "name of the figures to write: an experiment's or a benchmark's")
flags.DEFINE_string("json", None, "with --record: the file of figures that the command wrote")
flags.DEFINE_string("revision", None, "with --record: the git revision that was measured")
flags.DEFINE_string("command", None, "with --record: the command that was run")
flags.DEFINE_bool("write", False, "write the numbers of docs/figures into README.md and docs/")
flags.DEFINE_integer("exit_code", 0, "with --record: how it ended; 1 where a check does not hold")

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures"
SHOWN_BY = ("command", "report", "pytest_plugin")
"""Rooms that bring figures in and out, and do not compute them."""

QUOTE = re.compile(r'\[([^\]]+)\]\((?:docs/)?figures/(\w+)[.]json "([^"*]+?)(?: \* ([\d.e+-]+))?"\)')


def quotes(text: str) -> Iterator[tuple[str, str, str, float]]:
    """The numbers that a page quotes: as written, the file's name, the figure's name, and a factor."""
    for written, name, figure, factor in QUOTE.findall(text):
        yield written, name, figure, float(factor or 1)


def agrees(written: str, value: float) -> bool:
    """Whether a number as written is the value, rounded to the digits that are shown."""
    mantissa, _, exponent = written.replace(",", "").partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(float(mantissa) * 10.0 ** int(exponent or 0) - value) <= 0.500001 * unit


def rounded(value: float, like: str) -> str:
    """A number with as many digits as another one shows, and in its form."""
    mantissa, exponential, _ = like.partition("e")
    digits = len(mantissa.partition(".")[2])
    if exponential:
        first, _, exponent = f"{value:.{digits}e}".partition("e")
        return f"{first}e{int(exponent)}"
    return f"{value:,.{digits}f}" if "," in like or abs(value) >= 10_000 else f"{value:.{digits}f}"


def rewritten(text: str, measured: Callable[[str, str], float | None]) -> str:
    """A page whose numbers are `measured(file's name, figure's name)`; where that is None, as they were."""

    def number(quote: re.Match) -> str:
        written, name, figure, factor = quote.groups()
        value = measured(name, figure)
        if value is None or agrees(written, float(factor or 1) * value):
            return quote[0]
        return quote[0].replace(f"[{written}]", f"[{rounded(float(factor or 1) * value, written)}]", 1)

    return QUOTE.sub(number, text)


def write_pages() -> Iterator[str]:
    """Writes the numbers of docs/figures into the pages; what became of each number that changes."""
    recorded = {path.stem: json.loads(path.read_text())["figures"] for path in FIGURES.glob("*.json")}
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = page.read_text()
        after = rewritten(before, lambda name, figure: recorded.get(name, {}).get(figure))
        for old, new in zip(quotes(before), quotes(after), strict=True):
            if old != new:
                yield f"{page.relative_to(ROOT)}: {old[0]} is {new[0]} ({old[1]}, {old[2]})"
        if after != before:
            files.write(page, after)


@functools.cache
def modules(source: str) -> set[str]:
    """The modules of this package that a source imports, and those further up; `from a import b` is `a.b`."""
    imports = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in imports if name.split(".")[0] == "bpresearch"}


def speaks_of(script: Path, root: Path = ROOT) -> set[str]:
    """The files that a script's figures are computed by: itself and what it imports, not what shows them."""
    reached, left = {script}, [script]
    while left:
        file = left.pop()
        source = file.read_text()
        imported = set()
        if "iter_modules(" in source and file.name == "__init__.py":  # it loads every file of its folder
            imported |= set(file.parent.glob("*.py"))
        for name in modules(source):
            parts = name.split(".")
            for end in range(2, len(parts) + 1):
                path = root.joinpath(*parts[:end])
                imported |= {path.with_suffix(".py"), path / "__init__.py"}
        for path in imported - reached:
            if path.exists() and path.relative_to(root).parts[1] not in SHOWN_BY:
                reached.add(path)
                left.append(path)
    return {str(path.relative_to(root)) for path in reached}


@functools.cache
def without_words(source: str) -> str:
    """What a source computes: its syntax tree without docstrings, comments and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                e for e in body if not (isinstance(e, ast.Expr) and isinstance(e.value, ast.Constant))
            ]
    return ast.dump(tree)


def git(*arguments: str, root: Path = ROOT) -> str | None:
    """What git says; None where there is no git, no repository or no such revision."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def changed(record: dict, root: Path = ROOT) -> Iterator[str]:
    """The files that a record's figures speak of and that compute something else than at its revision.

    Raises:
        LookupError: the history does not hold that revision.
    """
    script = next(root / word for word in record["command"].split() if word.endswith(".py"))
    revision = record["revision"].removesuffix("+")
    listed = git("diff", "--name-only", revision, "--", "bpresearch", "experiments", "scripts", root=root)
    if listed is None:
        raise LookupError(f"{revision} is not in this history")
    for name in sorted(set(listed.split()) & speaks_of(script, root)):
        before = git("show", f"{revision}:{name}", root=root) or ""
        if without_words(before) != without_words((root / name).read_text()):
            yield name


def record(name: str, figures: dict, revision: str, command: str, exit_code: int) -> Path:
    """Writes docs/figures/NAME.json, whole or not at all."""
    device = jax.devices()[0]
    kind = machine.machine() if device.platform == "cpu" else device.device_kind
    entry = {
        "command": command,
        "revision": revision,
        "machine": f"{available_cores()} cores, {kind}",
        "versions": f"Python {machine.python_version()}, JAX {jax.__version__}",
        "seed": figures.get("seed", "the command's own"),
        "holds": exit_code == 0,
        "figures": figures,
    }
    FIGURES.mkdir(exist_ok=True)
    return files.write(FIGURES / f"{name}.json", json.dumps(entry, indent=2, ensure_ascii=False) + "\n")


def state(entry: dict) -> tuple[bool, str]:
    """Whether a record is of this code, and a line on it: its revision, some of what has changed since."""
    try:
        since = list(itertools.islice(changed(entry), 4))
    except LookupError as error:
        return False, str(error)
    if not since:
        return True, f"{entry['revision']}, of this code"
    shown = ", ".join(since[:3]) + (" and others" if len(since) > 3 else "")
    return False, f"{entry['revision']}, older than {shown}"


def main() -> int:
    given = flags.FLAGS
    if given.record:
        if not (given.json and given.revision and given.command):
            raise ValueError("--record needs --json, --revision and --command")
        figures = json.loads(Path(given.json).read_text())
        print(f"Figures: {record(given.record, figures, given.revision, given.command, given.exit_code)}")
        return 0
    if given.write:
        for line in write_pages():
            print(line)
        return 0
    for path in sorted(FIGURES.glob("*.json")):
        print(f"{path.stem}: {state(json.loads(path.read_text()))[1]}")
    return 0


if __name__ == "__main__":
    shared.run(main)
