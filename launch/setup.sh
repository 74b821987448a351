#!/usr/bin/env bash
# Makes the environment .venv from the pinned versions, once. quickstart.sh and test.sh call this.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash launch/setup.sh [--dev] [--tpu | --cuda12 | --cuda13]

Makes .venv with the packages of launch/pins.txt and the command `imagen`, on Linux (x86_64, aarch64)
or macOS (arm64), with Python 3.11, 3.12 or 3.13. Every file is checked against its pinned hash.
Where the program uv is installed, uv does the work, and fetches Python 3.12 if none is there that
works.
Does nothing where nothing has changed since the last time, so it is safe to run again.

options:
  --dev     also what tests, linters and notebooks need (launch/pins-dev.txt)
  --tpu     also the driver of TPUs, and what reads corpora in Cloud Storage
  --cuda12  also JAX on NVIDIA GPUs, with CUDA 12
  --cuda13  the same with CUDA 13, which needs an NVIDIA driver of 580 or later

environment:
  PYTHON  the Python to use (default: the first that fits of python3.12, python3.11, python3, python3.13)

Python 3.13 works where there are a C++ compiler and Python's headers: it has one package to compile.
HELP
}

fail() { echo "launch/setup.sh: $*" >&2; exit 1; }

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null; }

# compiles PYTHON  whether it can build the package editdistance, which has no wheel for Python 3.13
compiles() {
  "$1" -c 'import pathlib, shutil, sys, sysconfig
header = pathlib.Path(sysconfig.get_path("include"), "Python.h").exists()
compiler = any(map(shutil.which, ("c++", "g++", "clang++")))
sys.exit(sys.version_info >= (3, 13) and not (header and compiler))'
}

# find_python  prints the Python to use, or nothing where uv is to fetch one
find_python() {
  local candidate candidates=(python3.12 python3.11 python3 python3.13) lacking=
  if [[ -n "${PYTHON:-}" ]]; then
    fits "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13"
    candidates=("$PYTHON")
  fi
  for candidate in "${candidates[@]}"; do
    if ! fits "$candidate"; then
      continue
    elif compiles "$candidate"; then
      echo "$candidate"
      return
    fi
    lacking=$candidate
  done
  if [[ -z "${PYTHON:-}" ]] && command -v uv > /dev/null; then
    return
  elif [[ -n "$lacking" ]]; then
    fail "$lacking is Python 3.13, which needs a C++ compiler and Python's headers to build the \
package editdistance: on Debian and Ubuntu install g++ and python3-dev; or use Python 3.11 or 3.12, \
which uv fetches (pip install uv)"
  fi
  fail "needs Python 3.11, 3.12 or 3.13 and found none: install one, or install \
uv (pip install uv), which fetches one; or say where it is: PYTHON=/path/to/python bash launch/setup.sh"
}

make_environment() {
  local python
  python=$(find_python)
  if command -v uv > /dev/null; then
    echo "Making .venv with uv ..."
    uv venv --quiet --no-project --clear --python "${python:-3.12}" .venv ||
      fail "uv could not make an environment with Python ${python:-3.12}"
    return
  fi
  echo "Making .venv with $("$python" --version) ..."
  "$python" -m venv --clear .venv ||
    fail "$python cannot make an environment: on Debian and Ubuntu install python3-venv, or uv"
}

# check_environment  refuses an environment of another Python than the one that is asked for
check_environment() {
  local version='import sys; print("Python %d.%d" % sys.version_info[:2])' there
  there=$(.venv/bin/python -c "$version")
  fits .venv/bin/python || fail ".venv is of $there; remove it, and run this again"
  [[ -z "${PYTHON:-}" || "$("$PYTHON" -c "$version")" == "$there" ]] ||
    fail ".venv is of $there, and PYTHON=$PYTHON is another; remove .venv, and run this again"
}

# install WHAT ARGUMENT...  shows the installer's log only on failure
install() {
  local what=$1 log=.venv/setup.log started=$SECONDS installer
  shift
  if .venv/bin/python -c 'import pip' 2> /dev/null; then
    installer=(.venv/bin/python -m pip install --disable-pip-version-check --no-input)
  else
    installer=(uv pip install --python .venv/bin/python)
  fi
  echo "Installing $what ..."
  if ! "${installer[@]}" --no-deps --no-build-isolation "$@" > "$log" 2>&1; then
    grep -v '^WARNING' "$log" | tail -n 15 >&2 || true
    fail "could not install $what; the whole log is in $log"
  fi
  echo "  done in $((SECONDS - started)) s"
}

checksum() {
  .venv/bin/python -c 'import hashlib, pathlib, sys
for name in sys.argv[1:]:
    print(hashlib.sha256(pathlib.Path(name).read_bytes()).hexdigest(), name)' "$@"
}

# once STAMP FILE...  runs `install` with the rest after --, unless the files are as they were then
once() {
  local stamp=.venv/$1 files
  files=("$2")
  shift 2
  while [[ "$1" != -- ]]; do files+=("$1"); shift; done
  shift
  [[ "$(cat "$stamp" 2> /dev/null)" != "$(checksum "${files[@]}")" ]] || return 0
  install "$@"
  checksum "${files[@]}" > "$stamp"
}

pins() {  # pins NAME WHAT  the packages of launch/NAME.txt
  once ".stamp-$1" "launch/$1.txt" -- "$2" --require-hashes -r "launch/$1.txt"
}

dev=false accelerator=
for argument in "$@"; do
  case "$argument" in
    --dev) dev=true ;;
    --tpu | --cuda12 | --cuda13)
      [[ -z "$accelerator" ]] || fail "give one of --tpu, --cuda12 and --cuda13"
      accelerator=${argument#--} ;;
    -h | --help) usage; exit 0 ;;
    *) fail "unknown argument $argument; see bash launch/setup.sh --help" ;;
  esac
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "$(uname -sm)" in
  "Linux x86_64" | "Linux aarch64" | "Darwin arm64") ;;
  *) fail "there are no packages for $(uname -sm): JAX and TensorFlow are built for Linux on x86_64 \
and aarch64 and for macOS on arm64" ;;
esac

.venv/bin/python -c '' 2> /dev/null || make_environment
check_environment
pins pins-build "what builds packages"
pins pins "$(grep -c '^[a-z]' launch/pins.txt) packages (about 650 MB to download)"
! $dev || pins pins-dev "$(grep -c '^[a-z]' launch/pins-dev.txt) packages for tests"
[[ -z "$accelerator" ]] || pins "pins-$accelerator" "JAX's parts for $accelerator"
once .stamp-imagen pyproject.toml launch/pins.txt -- "the command imagen" --editable .
