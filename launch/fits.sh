#!/usr/bin/env bash
# Asks whether a stage fits a TPU topology; the launch scripts call this before they spend money.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash launch/fits.sh TOPOLOGY ARGUMENT OF imagen train ...

Runs imagen plan on this machine, that of .venv or else the one on the PATH, with the --config,
--stage and --set among the arguments, which compiles the stage for TOPOLOGY (such as v4:2x2x4)
without having one. Needs Linux on x86_64, for which alone the compiler of TPUs exists. Ends with
status 0 if it fits, and with 2 if it does not or nobody can tell.
HELP
}

fail() { echo "launch/fits.sh: $*" >&2; exit 2; }

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  '') fail "which topology? see bash launch/fits.sh --help" ;;
esac
topology=$1
shift
form='^[a-z0-9]+:[0-9]+(x[0-9]+)*$'
[[ "$topology" =~ $form ]] ||
  fail "the topology is '$topology'; it must be like v4:2x2x4"
arguments=() option=''
for argument in "$@"; do
  [[ "$argument" != --* ]] || option=$argument
  case "$option" in
    --config | --stage | --set | --config=* | --stage=* | --set=*) arguments+=("$argument") ;;
  esac
done
[[ " $* " == *" --config"* ]] || fail "the arguments of imagen train lack --config"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
imagen=.venv/bin/imagen
[[ -x $imagen ]] || imagen=$(command -v imagen) ||
  fail "there is no .venv yet, and no imagen on the PATH: bash launch/setup.sh --tpu makes it"
$imagen plan --help > /dev/null 2>&1 || fail "this version of imagen has no command plan"
$imagen plan ${arguments[@]+"${arguments[@]}"} --topology "$topology" ||
  fail "the stage does not fit $topology, or cannot be planned; see above"
