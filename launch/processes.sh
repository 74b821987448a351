#!/usr/bin/env bash
# Runs a command of imagen in several processes on this machine, to try what several hosts will do.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash launch/processes.sh COUNT COMMAND ARGUMENT ...

Starts COUNT processes of imagen COMMAND --multi-host, COMMAND being train, embed, sample or evaluate
coco: they train one stage together, or each does its share of the job. When one of them fails, the
others are stopped, and its status is that of this script. For trying out: one process makes better
use of one machine.

example (the batch of the config must be divisible by COUNT):
  bash launch/processes.sh 2 train --config quickstart --stage base \
    --data runs/quickstart/embeddings --workdir runs/two
HELP
}

fail() { echo "launch/processes.sh: $*" >&2; exit 2; }

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  '' | *[!0-9]* | 0) fail "how many processes? see bash launch/processes.sh --help" ;;
esac
count=$1
shift
(($#)) || fail "nothing to run: give a command of imagen, such as train, and its arguments"

imagen=$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/imagen
[[ -x "$imagen" ]] || imagen=$(command -v imagen) ||
  fail "there is no .venv yet, and no imagen on the PATH: bash launch/setup.sh makes it"
port=$("$(dirname "$imagen")/python" -c '
import socket
with socket.socket() as free:
    free.bind(("localhost", 0))
    print(free.getsockname()[1])')

processes=()
# shellcheck disable=SC2329  # called by the trap
stop() { kill ${processes[@]+"${processes[@]}"} 2> /dev/null || true; }
trap stop EXIT
for ((i = 0; i < count; i++)); do
  "$imagen" "$@" --multi-host "$i/$count@localhost:$port" &
  processes[i]=$!
done
running=$count
while ((running)); do
  running=0
  for process in ${processes[@]+"${processes[@]}"}; do
    if kill -0 "$process" 2> /dev/null; then
      running=$((running + 1))
    else
      wait "$process"  # a failure ends this script
    fi
  done
  sleep 0.2
done
