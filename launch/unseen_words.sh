#!/usr/bin/env bash
# Trains the quickstart cascade once more on random text embeddings, and compares.
set -euo pipefail

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  cat <<'HELP'
usage: bash launch/unseen_words.sh

Trains configs/quickstart.py on embeddings of the same images by an untrained text encoder in
runs/quickstart-random, and compares it with runs/quickstart, which bash launch/quickstart.sh makes,
on prompts in words that training never saw. Takes about as long as the quickstart.
HELP
  exit 0
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh --dev
export PATH="$PWD/.venv/bin:$PATH"
set -x

workdir=runs/quickstart-random
imagen embed --scenes quickstart --count 20000 --encoder minilm-random --output $workdir/embeddings
for stage in base sr; do
  imagen train --config configs/quickstart.py --stage $stage --set text.encoder=minilm-random \
    --data $workdir/embeddings --workdir $workdir
done
python -m benchmarks.unseen_words --minilm runs/quickstart --random $workdir --output docs/unseen_words
