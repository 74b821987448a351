#!/usr/bin/env bash
# Makes the pretrained demo cascade in imagen_jax/demo, its scores, and the figures of docs/demo.md.
set -euo pipefail

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  cat <<'HELP'
usage: bash launch/demo.sh [WORKDIR]

Trains the cascade of configs/demo.py in WORKDIR (default: runs/demo), writes its weights to
imagen_jax/demo and its curves, scores and images to docs/demo. Takes half an hour on two cores,
after the quickstart, whose base stage it goes on from: bash launch/quickstart.sh comes first.
Interrupted, the same command goes on where it stopped.
HELP
  exit 0
fi

workdir=$(realpath -m "${1:-runs/demo}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh --dev
export PATH="$PWD/.venv/bin:$PATH"
set -x

imagen embed --scenes quickstart --count 60000 --output "$workdir/embeddings"
train() { imagen train --config configs/demo.py --data "$workdir/embeddings" "$@"; }
train --workdir "$workdir" --stage base --init-from runs/quickstart
train --workdir "$workdir" --stage sr
imagen export --workdir "$workdir" --output imagen_jax/demo
imagen sample --prompts launch/quickstart_prompts.txt --output "$workdir/samples"
imagen evaluate scenes --count 128 --output "$workdir/evaluation"
python -m benchmarks.demo_figures --workdir "$workdir" --output docs/demo
