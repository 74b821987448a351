#!/usr/bin/env bash
# The paper's findings in small: trains what is needed, measures, and draws what docs/findings.md shows.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash launch/findings.sh [--t5 NAME=CHECKPOINT]... FINDING ...

Repeats findings of the paper on the built-in scenes, and writes the figures and tables that
docs/findings.md shows. Interrupted, the same command resumes where it stopped.

  thresholding   guidance weight against none, static and dynamic thresholding (section 2.3):
                 samples the demo cascade
  augmentation   super-resolution trained with and without noise conditioning augmentation, over
                 levels of it in sampling (section 2.4): trains one stage.
                 Needs runs/quickstart, which bash launch/quickstart.sh makes
  text           a frozen pretrained text encoder against a random one, in words that training never
                 saw (section 4.4): runs launch/unseen_words.sh, which trains a cascade.
                 Needs runs/quickstart, too
  encoders       a random text encoder, a bag of words and MiniLM (section 4.4), and T5 where
                 given: learning curves of a small base stage
  pooling        cross-attention against text that is pooled by attention or as a mean
                 (section 4.4, appendix D.3): learning curves
  unet           Efficient U-Net against U-Net (section 4.4, appendix B): learning curves over steps,
                 seconds and FLOPs
  prediction     eps, v and x0, and loss weightings: learning curves
  jit            the U-Net against a transformer over patches of pixels (not in the paper): learning
                 curves over steps, seconds and FLOPs
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
known=(thresholding augmentation text encoders pooling unet prediction jit)
t5=()
while [[ "${1:-}" == --t5 ]]; do
  [[ "${2:-}" == ?*=* && -d "${2#*=}" ]] ||
    fail "--t5 needs NAME=CHECKPOINT with CHECKPOINT a folder, got '${2:-}'"
  [[ "${2%%=*}" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
    fail "--t5 '$2': NAME must be of letters, digits, dots, _ and -"
  [[ -f "${2#*=}/spiece.model" ]] || fail "--t5 ${2%%=*}: no spiece.model in ${2#*=}"
  t5+=("${2%%=*}=$(cd "${2#*=}" && pwd)")
  shift 2
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
findings=("$@")
((${#findings[@]})) || fail "which finding? choices: ${known[*]}, all"
[[ "$*" != all ]] || findings=("${known[@]}")
for finding in "${findings[@]}"; do
  case "$finding" in
    thresholding | encoders | pooling | unet | prediction | jit) ;;
    augmentation | text)
      [[ -d runs/quickstart/sr ]] ||
        fail "$finding needs runs/quickstart; make it with: bash launch/quickstart.sh" ;;
    *) fail "unknown finding $finding; choices: ${known[*]}, all" ;;
  esac
done
((${#t5[@]} == 0)) || [[ " ${findings[*]} " == *" encoders "* ]] || fail "--t5 is for encoders alone"

bash launch/setup.sh --dev
export PATH="$PWD/.venv/bin:$PATH"

thresholding() {
  imagen evaluate sweep --sweep base.guidance=1,2,4,8 --sweep threshold=none,static,dynamic \
    --count 64 --output runs/findings/thresholding
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
    imagen evaluate sweep --workdir "$workdir" --sweep base.guidance=2 \
      --sweep aug_level=0,0.02,0.1,0.2,0.3 --count 64 --output "runs/findings/augmentation-$name"
    mkdir -p docs/findings
    cp "runs/findings/augmentation-$name/sweep.csv" "docs/findings/augmentation-$name.csv"
  done
  python -m benchmarks.augmentation_figure docs/findings/augmentation-{with,without}.csv \
    --output docs/findings/augmentation.png
}

text() {
  bash launch/unseen_words.sh
}

# embeddings NAME [OPTION ...]: scenes with token states by an encoder, in
# runs/findings/NAME.
embeddings() {
  local output=runs/findings/$1
  imagen embed --scenes quickstart --count 20000 --output "$output" "${@:2}"
  imagen embed --scenes quickstart --count 256 --split validation --output "$output" "${@:2}"
}

# curves NAME OPTION ...: learning curves of variants of configs/findings.py, to docs/findings.
curves() {
  local output=runs/findings/$1 ending
  python -m benchmarks.learning_curve --config findings --data runs/findings/minilm --steps 600 \
    --round 100 --output "$output" "${@:2}"
  for ending in csv png; do cp "$output/curves.$ending" "docs/findings/$1.$ending"; done
}

encoders() {
  local encoder name width variants=()
  for encoder in minilm-random minilm-words minilm; do
    embeddings "$encoder" --encoder "$encoder"
  done
  for encoder in ${t5[@]:+"${t5[@]}"}; do
    name=t5-${encoder%%=*}
    embeddings "$name" --encoder t5 --encoder-weights "${encoder#*=}"
    width=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["encoder"]["width"])' \
      "runs/findings/$name/manifest.json")
    variants+=(--variant "T5 ${encoder%%=*}" "data=runs/findings/$name" text.encoder=t5
      "text.width=$width")
  done
  curves encoders \
    --variant "random" data=runs/findings/minilm-random text.encoder=minilm-random \
    --variant "bag of words" data=runs/findings/minilm-words text.encoder=minilm-words \
    --variant "MiniLM" ${variants[@]:+"${variants[@]}"}
}

pooling() {
  local alone="stages.base.network.cross_attention=(False,False)"
  embeddings minilm
  curves pooling --variant "mean of the tokens" "$alone" stages.base.network.text_pool=mean \
    --variant "pooled by attention" "$alone" --variant "cross-attention"
}

unet() {
  embeddings minilm
  curves unet --stage sr --variant "Efficient U-Net" \
    --variant "U-Net" config=findings_unet
}

prediction() {
  local pair variants=()
  embeddings minilm
  for pair in eps-eps eps-min_snr v-min_snr x0-min_snr v-v v-x0; do
    variants+=(--variant "${pair/-/, weighted }" "stages.base.diffusion.parametrization=${pair%-*}"
      "stages.base.diffusion.weighting=${pair#*-}")
  done
  curves prediction ${variants[@]+"${variants[@]}"}
}

jit() {
  embeddings minilm
  curves jit --config findings_jit --steps 200 --variant "U-Net, v" --variant "JiT, x0" stage=jit \
    --variant "JiT, v" stage=jit stages.jit.diffusion.parametrization=v
}

mkdir -p docs/findings
for finding in "${findings[@]}"; do
  "$finding"
done
