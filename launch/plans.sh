#!/usr/bin/env bash
# Plans of the paper's three stages and of T5-XXL on TPU v4, as docs/plans/ shows them.
set -euo pipefail

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  cat <<'HELP'
usage: bash launch/plans.sh [NAME ...]

Compiles the paper's stages for the paper's TPU v4 topologies and writes docs/plans/NAME.txt, .json
and .png. No TPU is needed, only its compiler. Takes several minutes for each NAME on two cores:

  base64    train step, batch 2048 on v4:8x8x4
  sr256     train step, batch 2048 on v4:4x4x8
  sr1024    train step, batch 2048 on v4:4x4x8
  sample-base64, sample-sr256, sample-sr1024
            the sampler on the 4 chips of a v4:2x2x1, one picture on each
  t5-xxl    512 captions of 128 tokens on a v4:2x2x1

examples:
  bash launch/plans.sh
  bash launch/plans.sh base64 t5-xxl
HELP
  exit 0
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh --dev
export PATH="$PWD/.venv/bin:$PATH"
mkdir -p docs/plans

plan() {  # plan NAME ARGUMENT...
  local name=$1
  shift
  echo "+ imagen plan $*"
  # Status 1 says that it does not fit, which is a result, too.
  imagen plan "$@" --json "docs/plans/$name.json" --chart "docs/plans/$name.png" \
    > "docs/plans/$name.txt" || [[ $? == 1 ]]
  cat "docs/plans/$name.txt"
}

[[ $# -gt 0 ]] || set -- base64 sr256 sr1024 sample-base64 sample-sr256 sample-sr1024 t5-xxl
for name in "$@"; do
  case "$name" in
    base64) plan "$name" --config configs/base64.py --topology v4:8x8x4 ;;
    sr256 | sr1024) plan "$name" --config "configs/$name.py" --topology v4:4x4x8 ;;
    sample-*) plan "$name" --config "configs/${name#sample-}.py" --job sample --topology v4:2x2x1 ;;
    t5-xxl) plan "$name" --config configs/base64.py --job embed --topology v4:2x2x1 --batch 512 ;;
    *) echo "unknown plan $name; see bash launch/plans.sh --help" >&2; exit 2 ;;
  esac
done
