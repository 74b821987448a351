#!/usr/bin/env bash
# From nothing to images: sets up .venv, trains a small cascade, samples it, and scores it.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash launch/quickstart.sh [--workdir DIR] [--count N] [--no-open]

Trains the small cascade of configs/quickstart.py on images that the package makes itself, samples
prompts with compositions that training never saw, and measures how often the images are right.
Prints each command before it runs: they are what you would type with settings of your own.
Interrupted, the same command resumes. Needs what launch/setup.sh needs: Python 3.11 to 3.13, or uv.

options:
  --workdir DIR  where everything goes (default: runs/quickstart)
  --count N      images to train on (default: 20000)
  --no-open      do not open the images in a viewer at the end
  -h, --help     show this help and exit

Settings of the networks and of training are in configs/quickstart.py.
HELP
}

fail() { echo "launch/quickstart.sh: $*" >&2; exit 2; }

workdir=runs/quickstart
count=20000
open=true
while (($#)); do
  case "$1" in
    --workdir) workdir=${2:?--workdir needs a folder}; shift 2 ;;
    --count) count=${2:?--count needs a number}; shift 2 ;;
    --no-open) open=false; shift ;;
    -h | --help) usage; exit 0 ;;
    *) fail "unknown argument $1; see bash launch/quickstart.sh --help" ;;
  esac
done

# A folder given by a path from where the user stands stays there.
[[ "$workdir" == runs/quickstart || "$workdir" == /* ]] || workdir=$PWD/$workdir
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

started=$SECONDS

run() {  # run COMMAND...  shows a command as one would type it, runs it, and says how long it took
  local begin=$SECONDS
  local argument line=
  for argument in "$@"; do
    [[ "$argument" != *[!-a-zA-Z0-9_./=]* ]] || argument="\"$argument\""
    line+=" $argument"
  done
  if [[ -t 1 ]]; then printf '\n\033[1m$%s\033[0m\n' "$line"; else printf '\n$%s\n' "$line"; fi
  "$@"
  echo "  ($((SECONDS - begin)) s)"
}

run imagen embed --scenes quickstart --count "$count" --output "$workdir/embeddings"
for stage in base sr; do
  run imagen train --config configs/quickstart.py --stage "$stage" \
    --data "$workdir/embeddings" --workdir "$workdir"
done
run imagen sample --workdir "$workdir" --output "$workdir/samples" \
  --prompts launch/quickstart_prompts.txt
run imagen evaluate scenes --workdir "$workdir" --output "$workdir/evaluation"

minutes=$(((SECONDS - started) / 60))
seconds=$(((SECONDS - started) % 60))
cat <<DONE

Done in ${minutes} min ${seconds} s, installation apart.
  images   $workdir/samples
  scores     $workdir/evaluation
  curves     .venv/bin/tensorboard --logdir $workdir

More of your own:
  .venv/bin/imagen sample --workdir $workdir "a drawing of a red star on a blue background"
DONE

if $open && [[ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ]] && command -v xdg-open > /dev/null; then
  xdg-open "$workdir/samples/grid.png" > /dev/null 2>&1 || true
fi
