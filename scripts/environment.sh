# Sourced by scripts/run and scripts/test: finds the project's virtual environment, and has
# scripts/environment.py make or update it where it is missing, unfinished or out of date.
# Written for the bash 3.2 that macOS has, too.

root="$(unset CDPATH; cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"

fail() {
    echo "scripts/${0##*/}: $1" >&2
    exit 2
}

# Prints the version of a Python, such as 3.11, or fails with one line.
python_version() {
    local version
    command -v "$1" > /dev/null ||
        fail "$1 is not on this machine: install Python 3.11 or later, or name one, as in PYTHON=/usr/bin/python3.13"
    version="$("$1" -E -S -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null)" ||
        fail "$1 does not run: name a Python 3.11 or later that does, as in PYTHON=/usr/bin/python3.13"
    case "$version" in
        [012].* | 3.[0-9] | 3.10)
            fail "$1 is Python $version, and 3.11 or later is needed: name one, as in PYTHON=/usr/bin/python3.13" ;;
    esac
    echo "$version"
}

# use_environment [EXTRA...]: sets `python` to the interpreter of an environment that has what
# pyproject.toml asks for, at the versions in constraints.txt, with the extras named here and in EXTRAS.
use_environment() {
    local directory=.venv interpreter="${PYTHON:-python3}" extras="${EXTRAS:-}"
    local version stamp installed made pins extra ready=yes
    extras="$* ${extras//,/ }"
    if [ -n "${PYTHON:-}" ]; then
        version="$(python_version "$interpreter")" || exit
        directory=".venv-$version"
    fi
    python="$root/$directory/bin/python"
    stamp="$root/$directory/installed.txt" # its lines: extras, Python version, then what is in $pins
    pins="$root
$(sed '/^\[tool/,$d' "$root/pyproject.toml")
$(cat "$root/constraints.txt")"

    if [ -f "$stamp" ]; then
        { read -r installed; read -r made; [ "$(cat)" = "$pins" ]; } < "$stamp" || ready=no
        [ "$("$python" -I -S -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null)" = "$made" ] || ready=no
        for extra in $extras; do
            case " $installed " in *" $extra "*) ;; *) ready=no ;; esac
        done
    else
        ready=no
    fi
    [ "$ready" = yes ] && return
    python_version "$interpreter" > /dev/null
    # shellcheck disable=SC2086  # extras are words
    "$interpreter" -I "$root/scripts/environment.py" "$root" "$directory" "$pins" $extras || exit
}
