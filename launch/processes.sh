#!/usr/bin/env bash
# Trains one stage in several processes on this machine: to try what several hosts will do.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash launch/processes.sh COUNT ARGUMENT OF imagen train ...

Starts COUNT processes of imagen train --multi-host, which train one stage together, each with its
share of every batch and files of its own. When one of them fails, the others are stopped, and its
status is that of this script. For trying out: one process makes better use of one machine.

example (the batch of the config must be divisible by COUNT):
  bash launch/processes.sh 2 --config configs/quickstart.py --stage base \
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
(($#)) || fail "nothing to train: give the arguments of imagen train"

imagen=$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/imagen
[[ -x "$imagen" ]] || fail "there is no .venv yet: bash launch/setup.sh makes it"
port=$("$(dirname "$imagen")/python" -c '
import socket
with socket.socket() as free:
    free.bind(("localhost", 0))
    print(free.getsockname()[1])')

processes=()
# shellcheck disable=SC2329  # called by the trap
stop() { kill "${processes[@]}" 2> /dev/null || true; }
trap stop EXIT
for ((i = 0; i < count; i++)); do
  "$imagen" train --multi-host "$i/$count@localhost:$port" "$@" &
  processes+=($!)
done
for ((i = 0; i < count; i++)); do
  wait -n "${processes[@]}"  # of any that ends; a failure ends this script
done
