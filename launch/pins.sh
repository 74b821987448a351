#!/usr/bin/env bash
# Compiles launch/pins*.txt again from pyproject.toml.
# Only for those who change the versions: running and testing the code reads the pins as they are.
set -euo pipefail

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  cat <<'HELP'
usage: bash launch/pins.sh [ARGUMENT OF uv pip compile ...]

Writes, with the hash of every file, for all supported Pythons and platforms at once:
  launch/pins-build.txt   what builds the packages that come as source
  launch/pins.txt         what running needs
  launch/pins-dev.txt     what tests and notebooks need on top
  launch/pins-tpu.txt     the driver of TPUs, and what reads corpora in Cloud Storage
  launch/pins-cuda12.txt  JAX on GPUs with CUDA 12
  launch/pins-cuda13.txt  the same with CUDA 13
Needs the program uv. Pins that still satisfy pyproject.toml are kept. Afterwards,
`python launch/check_pins.py` lists what has to be compiled where.

examples:
  bash launch/pins.sh                            take up a package added to pyproject.toml
  bash launch/pins.sh --upgrade-package optax    the newest release of one package
  bash launch/pins.sh --upgrade                  the newest release of every package
HELP
  exit 0
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v uv > /dev/null || { echo "launch/pins.sh: needs uv: pip install uv" >&2; exit 1; }

before=$(mktemp) all=$(mktemp)
trap 'rm -f "$before" "$all"' EXIT

# compile NAME [ARGUMENT ...]  writes launch/NAME, without what the files before it hold
compile() {
  local output=launch/$1
  shift
  touch "$output"
  cat "$before" "$output" > "$all"
  # No index address may enter the pins, hence no lock format.
  uv pip compile --quiet launch/pins-build.in --override launch/pins-left-out.txt \
    --universal --python-version 3.11 --generate-hashes --constraint "$before" \
    --no-emit-index-url --no-annotate --no-header --output-file "$all" "$@" > /dev/null
  python3 - "$before" "$all" > "$output" << 'PYTHON'
import re
import sys

before, everything = (re.split(r"\n(?=\S)", open(path).read().strip()) for path in sys.argv[1:])
print("\n".join(pin for pin in everything if pin not in before))
PYTHON
}

run=(pyproject.toml launch/pins.in --extra train --extra page)
compile pins-build.txt "$@"
cp launch/pins-build.txt "$before"
compile pins.txt "${run[@]}" "$@"
cat launch/pins.txt >> "$before"
for extra in dev cuda12 cuda13; do
  compile "pins-$extra.txt" "${run[@]}" --extra "$extra" "$@"
done
compile pins-tpu.txt "${run[@]}" --extra tpu --extra gcs "$@"
grep -c '^[a-z]' launch/pins*.txt
