#!/usr/bin/env bash
# Makes the demo cascade of configs/demo.py: its data, its three stages, its weights.
set -euo pipefail

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  cat <<'HELP'
usage: bash launch/demo.sh [WORKDIR]

Fetches the emoji (needs npm), embeds scenes of three sizes, trains the stages of configs/demo.py in
WORKDIR (default: runs/demo) and exports their weights to WORKDIR/export. Not yet run to its end;
estimated from the networks' operations at 10 to 12 hours on two cores. Interrupted, the same
command resumes.
HELP
  exit 0
fi

case "${1:-runs/demo}" in  # by a path from where the user stands
  /*) workdir=$1 ;;
  *) workdir=$PWD/${1:-runs/demo} ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh --dev
export PATH="$PWD/.venv/bin:$PATH"
set -x

stage() {  # stage NAME PIXELS COUNT  embeds a stage's scenes and trains it
  imagen embed --scenes emoji --count "$3" --image-size "$2" --shards 12 --output "$workdir/data$2"
  imagen train --config configs/demo.py --stage "$1" --data "$workdir/data$2" --workdir "$workdir"
}

imagen data fetch
stage base 64 60000
stage sr256 256 12000
stage sr1024 1024 6000
imagen export --workdir "$workdir" --output "$workdir/export"
