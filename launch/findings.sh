#!/usr/bin/env bash
# The paper's findings in small: trains what is needed, measures, and draws what docs/findings.md shows.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash launch/findings.sh [--t5 NAME=CHECKPOINT]... FINDING ...

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
  encoders       a random text encoder, a bag of words and MiniLM (section 4.4), and T5 where
                 given: trains one small base stage for each
  pooling        cross-attention against text that is pooled by attention or as a mean
                 (section 4.4, appendix D.3): trains two more
  unet           Efficient U-Net against U-Net (section 4.4, appendix B): learning curves over steps,
                 seconds and FLOPs
  prediction     eps, v and x0, and loss weightings: learning curves
  all            all of them

  --t5 NAME=CHECKPOINT  with encoders: also this T5 encoder, T5X or Hugging Face, with its
                        spiece.model in the same folder; may be given several times, for sizes
HELP
}

fail() { echo "launch/findings.sh: $*" >&2; exit 2; }

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  "") usage >&2; exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
known=(thresholding augmentation text encoders pooling unet prediction)
t5=()
while [[ "${1:-}" == --t5 ]]; do
  [[ "${2:-}" == ?*=* && -d "${2#*=}" ]] ||
    fail "--t5 needs NAME=CHECKPOINT with CHECKPOINT a folder, got '${2:-}'"
  t5+=("$2")
  shift 2
done
findings=("$@")
((${#findings[@]})) || fail "which finding? choices: ${known[*]}, all"
[[ "$*" != all ]] || findings=("${known[@]}")
for finding in "${findings[@]}"; do
  case "$finding" in
    thresholding | encoders | pooling | unet | prediction) ;;
    augmentation | text)
      [[ -d runs/quickstart/sr ]] ||
        fail "$finding needs runs/quickstart; make it with: bash launch/quickstart.sh" ;;
    *) fail "unknown finding $finding; choices: ${known[*]}, all" ;;
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

# embeddings NAME [OPTION ...]: scenes with token states by an encoder, in runs/findings/NAME/embeddings.
embeddings() {
  local name=$1
  shift
  imagen embed --scenes quickstart --count 20000 --output "runs/findings/$name/embeddings" "$@"
}

# small_base NAME EMBEDDINGS SETTING ... [-- OPTION ...]: trains configs/findings.py in runs/findings/NAME
# and scores it; options are of the evaluation.
small_base() {
  local workdir=runs/findings/$1 data=runs/findings/$2/embeddings settings=()
  shift 2
  while (($#)) && [[ $1 != -- ]]; do settings+=("$1"); shift; done
  imagen train --config configs/findings.py --stage base --data "$data" --workdir "$workdir" \
    ${settings[@]:+--set "${settings[@]}"}
  [[ -f "$workdir/evaluation/scores.json" ]] ||
    imagen evaluate scenes --workdir "$workdir" --splits train heldout unseen --count 128 \
      --output "$workdir/evaluation" "${@:2}"
}

encoders() {
  local encoder name width bars=()
  for encoder in minilm-random minilm-words minilm; do
    embeddings "$encoder" --encoder "$encoder"
    small_base "$encoder" "$encoder" "text.encoder=$encoder"
  done
  for encoder in ${t5[@]:+"${t5[@]}"}; do
    name=t5-${encoder%%=*} encoder=${encoder#*=}
    embeddings "$name" --encoder t5 --encoder-weights "$encoder"
    width=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["encoder"]["width"])' \
      "runs/findings/$name/embeddings/manifest.json")
    small_base "$name" "$name" text.encoder=t5 "text.width=$width" -- --encoder-weights "$encoder"
    bars+=("${name/t5-/T5 }=runs/findings/$name/evaluation")
  done
  python -m benchmarks.alignment_figure --output docs/findings/encoders \
    "random=runs/findings/minilm-random/evaluation" \
    "bag of words=runs/findings/minilm-words/evaluation" \
    "MiniLM=runs/findings/minilm/evaluation" ${bars[@]:+"${bars[@]}"}
}

pooling() {
  local pool
  embeddings minilm --encoder minilm
  small_base minilm minilm
  for pool in mean attention; do
    small_base "pool-$pool" minilm "stages.base.network.text_pool=$pool" \
      "stages.base.network.cross_attention=(False,False,False)"
  done
  python -m benchmarks.alignment_figure --output docs/findings/pooling \
    "mean of the tokens=runs/findings/pool-mean/evaluation" \
    "pooled by attention=runs/findings/pool-attention/evaluation" \
    "cross-attention=runs/findings/minilm/evaluation"
}

# curves NAME OPTION ...: learning curves of variants of configs/findings.py, to docs/findings.
curves() {
  local name=$1 output=runs/findings/$1 end
  shift
  embeddings minilm --encoder minilm
  imagen embed --scenes quickstart --count 1000 --split validation --encoder minilm \
    --output runs/findings/minilm/embeddings
  python -m benchmarks.learning_curve --config configs/findings.py \
    --data runs/findings/minilm/embeddings --steps 600 --round 100 --output "$output" "$@"
  for end in csv png; do cp "$output/curves.$end" "docs/findings/$name.$end"; done
}

unet() {
  curves unet --stage sr --variant "Efficient U-Net" \
    --variant "U-Net" config=configs/findings_unet.py
}

prediction() {
  local pair variants=()
  for pair in eps-eps eps-min_snr v-min_snr x0-min_snr v-v v-x0; do
    variants+=(--variant "${pair/-/, weighted }" "stages.base.diffusion.parametrization=${pair%-*}"
      "stages.base.diffusion.weighting=${pair#*-}")
  done
  curves prediction "${variants[@]}"
}

mkdir -p docs/findings
for finding in "${findings[@]}"; do
  "$finding"
done
