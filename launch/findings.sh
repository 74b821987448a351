#!/usr/bin/env bash
# The paper's findings in small: trains what is needed, measures, and draws what docs/findings.md shows.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash launch/findings.sh FINDING ...

Repeats findings of the paper on the built-in scenes, and writes the figures and tables that
docs/findings.md shows. Interrupted, the same command goes on where it stopped.

  thresholding   guidance weight against none, static and dynamic thresholding (section 2.3):
                 samples the demo cascade
  augmentation   super-resolution trained with and without noise conditioning augmentation, over
                 levels of it in sampling (section 2.4): trains one stage.
                 Needs runs/quickstart, which bash launch/quickstart.sh makes
  text           a frozen pretrained text encoder against a random one, in words that training never
                 saw (section 4.4): runs launch/unseen_words.sh, which trains a cascade.
                 Needs runs/quickstart, too
  all            all of them
HELP
}

fail() { echo "launch/findings.sh: $*" >&2; exit 2; }

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  "") usage >&2; exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
findings=("$@")
[[ "$*" != all ]] || findings=(thresholding augmentation text)
for finding in "${findings[@]}"; do
  case "$finding" in
    thresholding) ;;
    augmentation | text)
      [[ -d runs/quickstart/sr ]] ||
        fail "$finding needs runs/quickstart; make it with: bash launch/quickstart.sh" ;;
    *) fail "unknown finding $finding; choices: thresholding, augmentation, text, all" ;;
  esac
done

bash launch/setup.sh --dev
export PATH="$PWD/.venv/bin:$PATH"

thresholding() {
  imagen evaluate sweep --guidance 1 2 4 8 --threshold none static dynamic --count 64 \
    --output runs/findings/thresholding
  cp runs/findings/thresholding/sweep.{png,csv} docs/evaluation
}

augmentation() {
  local without=runs/findings/no-augmentation
  mkdir -p "$without"
  [[ -d "$without/base" ]] || cp -r runs/quickstart/base "$without/base"
  imagen train --config configs/quickstart.py --stage sr --set stages.sr.train.max_aug_level=0.0 \
    --data runs/quickstart/embeddings --workdir "$without"
  local workdir=runs/quickstart name
  for name in with without; do
    [[ $name == with ]] || workdir=$without
    imagen evaluate sweep --workdir "$workdir" --guidance 2 --aug-level 0 0.02 0.1 0.2 0.3 \
      --count 64 --output "runs/findings/augmentation-$name"
    mkdir -p docs/findings
    cp "runs/findings/augmentation-$name/sweep.csv" "docs/findings/augmentation-$name.csv"
  done
  python -m benchmarks.augmentation_figure docs/findings/augmentation-{with,without}.csv \
    --output docs/findings/augmentation.png
}

text() {
  bash launch/unseen_words.sh
}

for finding in "${findings[@]}"; do
  "$finding"
done
