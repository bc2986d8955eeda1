"""Makes or updates a virtual environment; called by scripts/environment.sh, not by hand.

Usage: environment.py ROOT DIRECTORY PINS [EXTRA...]. Installs the project (editable) with the
extras, at the versions in constraints.txt, into ROOT/DIRECTORY. The file `installed.txt` in there
says what it holds: a line of extras, a line with the Python version ("unfinished" until everything
is in place), then PINS, the text that decides whether it is up to date. Needs the standard library.
"""

import fcntl
import importlib.util
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
UNREACHABLE = "connection broken by"  # pip's word whenever it has to try again


class SetupError(Exception):
    """The environment cannot be made; the message is one line for the user."""


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def read_stamp(stamp: Path) -> tuple[list[str], str, str]:
    """The extras, Python version and pins an environment was made with; empty if there is none."""
    if not stamp.exists():
        return [], "", ""
    extras, version, pins = [*stamp.read_text().split("\n", 2), "", ""][:3]
    return extras.split(), version, pins


def write_stamp(stamp: Path, extras: list[str], version: str, pins: str) -> None:
    """Replaces the stamp in one step, so that nobody ever reads half of it."""
    temporary = stamp.with_suffix(".new")
    temporary.write_text(f"{' '.join(extras)}\n{version}\n{pins}")
    temporary.replace(stamp)


def make(directory: Path, stamp: Path, lock: int) -> None:
    """An empty virtual environment, in place of whatever an earlier one left."""
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise SetupError(
                f"Python {VERSION} at {sys.executable} lacks the module {module}: install it "
                f"(Debian: apt install python{VERSION}-venv), or name another Python with PYTHON="
            )
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry != stamp:
            entry.unlink()
    # With an environment activated, python3 may be the very one that is being replaced.
    base = getattr(sys, "_base_executable", None) or sys.executable
    command = [base, "-m", "venv", str(directory)]
    made = subprocess.run(command, capture_output=True, text=True, pass_fds=[lock])
    if made.returncode:
        lines = (made.stdout + made.stderr).strip().splitlines() or ["no reason given"]
        raise SetupError(f"Python at {base} cannot make a virtual environment: {lines[-1]}")


def install(root: Path, directory: Path, extras: list[str], lock: int) -> None:
    """Runs pip, showing on a terminal what it is at."""
    command = [str(directory / "bin" / "python"), "-I", "-m", "pip", "install", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "-c", "constraints.txt"]
    command += ["-e", f".[{','.join(extras)}]" if extras else "."]
    start, lines, terminal = time.monotonic(), [], sys.stderr.isatty()
    width = shutil.get_terminal_size().columns - 1
    log = directory / "setup.log"
    # pip inherits the lock: should this process be killed, the next one waits until pip has ended.
    with (
        log.open("w") as file,
        subprocess.Popen(
            command,
            cwd=root,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
        ) as pip,
    ):
        assert pip.stdout is not None
        for line in pip.stdout:
            lines.append(line.strip())
            file.write(line)
            step = line.strip()
            if step.startswith("Installing collected packages:"):
                step = f"Installing {step.count(',') + 1} packages"
            if terminal and step.startswith(("Collecting", "Downloading", "Installing ")):
                shown = f"  {time.monotonic() - start:3.0f} s  {step}"[:width]
                print(f"\r{shown:<{width}}", end="", file=sys.stderr, flush=True)
    if terminal:
        print(f"\r{'':<{width}}\r", end="", file=sys.stderr, flush=True)
    if pip.returncode:
        unreachable = any(UNREACHABLE in line for line in lines)
        what = "the package registry cannot be reached" if unreachable else "pip failed"
        error = ([line for line in lines if line.startswith("ERROR")] or lines[-1:] or [""])[0]
        raise SetupError(f"{what} ({error}); pip's messages are in {log}")


def prepare(root: Path, directory: Path, pins: str, wanted: list[str], lock: int) -> None:
    """Brings the environment from whatever state it is in to the one asked for."""
    stamp = directory / "installed.txt"
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    known = list(project.get("optional-dependencies", {}))
    for extra in wanted:
        if extra not in known:
            raise SetupError(f"EXTRAS={extra}: the project's extras are {', '.join(known)}")
    if directory.exists() and not stamp.exists() and any(directory.iterdir()):
        raise SetupError(f"{directory} was made by something else: move it away or delete it")
    directory.mkdir(exist_ok=True)

    before = read_stamp(stamp)
    installed, version, old_pins = before
    extras = sorted({*installed, *wanted} & {*known})
    missing = sorted({*extras} - {*installed})
    moved = old_pins.split("\n")[0] != str(root)  # the environment knows its own and our path
    fresh = version != VERSION or moved or not (directory / "bin" / "python").exists()
    if not fresh and old_pins == pins and not missing:
        return  # another process has done it while this one waited

    write_stamp(stamp, extras, "unfinished", pins)
    if version == "unfinished":
        say(f"An earlier set-up of {directory.name} was not finished; starting again.")
    if fresh:
        full = ".".join(map(str, sys.version_info[:3]))
        say(f"Setting up {directory.name} with Python {full}: about a minute, once.")
    elif old_pins != pins:
        say(f"The pinned versions have changed: updating {directory.name}.")
    else:
        say(f"Adding {', '.join(missing)} to {directory.name}, once.")
    start = time.monotonic()
    try:
        if fresh:
            make(directory, stamp, lock)
        install(root, directory, extras, lock)
    except SetupError:
        if not fresh:
            write_stamp(stamp, *before)  # pip refuses before it changes anything
        raise
    write_stamp(stamp, extras, VERSION, pins)
    say(f"{directory.name} is ready after {time.monotonic() - start:.0f} s.")


def main(root: Path, directory: Path, pins: str, wanted: list[str]) -> None:
    """Holds a lock while it works, so that two set-ups at the same time do not meet."""
    with directory.with_name(f"{directory.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Waiting for another set-up of {directory.name} to finish.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        prepare(root, directory, pins, wanted, lock.fileno())


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[1], sys.argv[2]), sys.argv[3], sys.argv[4:])
    except (SetupError, OSError) as error:
        say(f"scripts: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        say("Interrupted; the next call starts the set-up again.")
        sys.exit(130)
