#!/usr/bin/env bash
# Plans of the paper's three stages and of T5-XXL on TPU v4 and on an H100, as docs/plans/ shows them.
set -euo pipefail

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  cat <<'HELP'
usage: bash launch/plans.sh [NAME ...]

Compiles the paper's stages and writes docs/plans/NAME.txt, .json and .png. Neither TPUs nor GPUs are
needed, only their compilers. Takes up to several minutes for each NAME on two cores:

  base64    train step, batch 2048 on v4:8x8x4
  sr256     train step, batch 2048 on v4:4x4x8
  sr1024    train step, batch 2048 on v4:4x4x8
  sample-base64, sample-sr256, sample-sr1024
            the sampler, one image on one chip of TPU v4
  t5-xxl    512 captions of 128 tokens on a v4:2x2x1

and, if they are named:

  base64-full, sr256-full, sr1024-full
            the train steps with all searches of the compiler, as training compiles them, and with
            the time that it estimates: 5 to 8 minutes each on two cores
  sample-base64-full, sample-sr256-full, sample-sr1024-full, t5-xxl-full
            likewise
  search-sr256
            train step of sr256 on ten meshes, one after another: a quarter of an hour
  h100-sample-base64, h100-sample-sr256, h100-sample-sr1024
            the same on one H100; needs JAX's plugin for CUDA (pip install 'jax[cuda13]')
  h100-base64-small
            train step of configs/base64_small.py, batch 256 on 8 H100; needs that plugin, too
  if-base-M, if-sr-M, if-t5-M
            DeepFloyd IF's I-XL, II-L and their text encoder, one image on one chip M: v4, v5e, v6e,
            or h100, which needs the plugin
  if-tune-S-M, if-lora-S-M
            train step of IF's first stage of the size S, M, L or XL, on v4-8, v5e-8, v6e-8 (in
            cores, chips and chips) or h100: all weights with Adafactor, or a change of rank 8

examples:
  bash launch/plans.sh
  bash launch/plans.sh base64 t5-xxl
  bash launch/plans.sh h100-sample-base64
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
  rm -f "docs/plans/$name".{json,png,txt}
  # Status 1 says that it does not fit, which is a result, too.
  imagen plan "$@" --json "docs/plans/$name.json" --chart "docs/plans/$name.png" \
    > "docs/plans/$name.txt" || [[ $? == 1 ]]
  cat "docs/plans/$name.txt"
}

one_chip() {  # one_chip MACHINE  the topology of one chip
  case "$1" in v4) echo v4:1x1x1 ;; h100) echo h100:1 ;; *) echo "$1:1x1" ;; esac
}

eight() {  # eight MACHINE  the topology of a machine of eight, by the names that Google sells them by
  case "$1" in v4-8) echo v4:2x2x1 ;; h100) echo h100:1 ;; *) echo "${1%-8}:2x4" ;; esac
}

of_size() {  # of_size M|L|XL  settings of DeepFloyd IF's first stage
  local channels
  case "$1" in
    M) channels="(192,384,576,768)" ;;
    L) channels="(320,640,960,1280)" ;;
    XL) channels="(704,1408,2112,2816)" ;;
    *) echo "no size '$1': M, L or XL" >&2; exit 2 ;;
  esac
  local widest=${channels##*,}
  local network=stages.base.network
  echo "$network.channels=$channels $network.features=${widest%)} $network.text_channels=${widest%)}"
}

trained() {  # trained tune|lora  settings of what is trained
  local train=stages.base.train
  case "$1" in
    tune) echo "$train.optimizer=adafactor" ;;
    lora) echo "$train.lora_rank=8 $train.ema_decay=0" ;;
  esac
}

[[ $# -gt 0 ]] || set -- base64 sr256 sr1024 sample-base64 sample-sr256 sample-sr1024 t5-xxl
for name in "$@"; do
  case "$name" in
    *[!A-Za-z0-9-]*) echo "unknown plan '$name'; see bash launch/plans.sh --help" >&2; exit 2 ;;
    base64) plan "$name" --config configs/base64.py --topology v4:8x8x4 ;;
    sr256 | sr1024) plan "$name" --config "configs/$name.py" --topology v4:4x4x8 ;;
    base64-full) plan "$name" --config configs/base64.py --topology v4:8x8x4 --effort full ;;
    sr256-full | sr1024-full)
      plan "$name" --config "configs/${name%-full}.py" --topology v4:4x4x8 --effort full ;;
    sample-*-full)
      stage=${name#sample-} && stage=${stage%-full}
      plan "$name" --config "configs/$stage.py" --job sample --topology v4:1x1x1 \
        --effort full ;;
    sample-*) plan "$name" --config "configs/${name#sample-}.py" --job sample --topology v4:1x1x1 ;;
    search-sr256)
      plan "$name" --config configs/sr256.py --topology v4:4x4x8 --remat products --search ;;
    h100-sample-*)
      plan "$name" --config "configs/${name#h100-sample-}.py" --job sample --topology h100:1 ;;
    h100-base64-small) plan "$name" --config configs/base64_small.py --topology h100:8 ;;
    t5-xxl) plan "$name" --config configs/base64.py --job embed --topology v4:2x2x1 --batch 512 ;;
    t5-xxl-full)
      plan "$name" --config configs/base64.py --job embed --topology v4:2x2x1 --batch 512 \
        --effort full ;;
    if-base-* | if-sr-*)
      stage=${name#if-} && stage=${stage%%-*}
      plan "$name" --config configs/deepfloyd.py --stage "$stage" --job sample \
        --topology "$(one_chip "${name##*-}")" --batch 1 \
        --set "stages.$stage.sample.sampler=ddpm(variance=learned)" ;;  # as it is imported
    if-t5-*)
      plan "$name" --config configs/deepfloyd.py --stage base --job embed \
        --topology "$(one_chip "${name##*-}")" --batch 1 ;;
    if-tune-* | if-lora-*)
      IFS=- read -r _ kind size machine <<< "$name"
      # shellcheck disable=SC2046  # several settings
      plan "$name" --config configs/deepfloyd.py --stage base --topology "$(eight "$machine")" \
        --batch 8 --set $(of_size "$size") $(trained "$kind") ;;
    *) echo "unknown plan $name; see bash launch/plans.sh --help" >&2; exit 2 ;;
  esac
done
