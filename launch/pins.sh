#!/usr/bin/env bash
# Compiles launch/pins.txt and launch/pins-dev.txt anew from pyproject.toml.
# Only for those who change the versions: running and testing the code reads the pins as they are.
set -euo pipefail

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  cat <<'HELP'
usage: bash launch/pins.sh [ARGUMENT OF uv pip compile ...]

Writes launch/pins.txt (what running needs) and launch/pins-dev.txt (what tests and notebooks need
on top), for Python 3.11 on Linux x86_64. Needs the program uv. Pins that still satisfy
pyproject.toml are kept.

examples:
  bash launch/pins.sh                            take up a package added to pyproject.toml
  bash launch/pins.sh --upgrade-package optax    the newest release of one package
  bash launch/pins.sh --upgrade                  the newest release of every package
HELP
  exit 0
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v uv > /dev/null || { echo "launch/pins.sh: needs uv: pip install uv" >&2; exit 1; }

all=$(mktemp)
trap 'rm -f "$all"' EXIT

compile() {  # compile OUTPUT [ARGUMENT ...]
  local output=$1
  shift
  # No index address may enter the pins, hence no lock format.
  uv pip compile --quiet pyproject.toml launch/pins.in --override launch/pins-left-out.txt \
    --python-version 3.11 --python-platform x86_64-manylinux_2_31 \
    --no-emit-index-url --no-annotate --no-header --output-file "$output" "$@" > /dev/null
}

compile launch/pins.txt --extra demo --extra page "$@"
# pins-dev.txt holds only what it adds, so that no package is pinned in two places.
cat launch/pins.txt > "$all"
[[ ! -f launch/pins-dev.txt ]] || cat launch/pins-dev.txt >> "$all"
compile "$all" --extra demo --extra page --extra dev --constraint launch/pins.txt "$@"
grep -vxFf launch/pins.txt "$all" > launch/pins-dev.txt
wc -l launch/pins.txt launch/pins-dev.txt
