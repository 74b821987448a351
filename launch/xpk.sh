#!/usr/bin/env bash
# Trains one stage on a GKE cluster that is managed with xpk.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash launch/xpk.sh --name NAME --cluster CLUSTER --type TYPE [OPTION ...]
                          -- ARGUMENT OF imagen train ...

Makes a workload of xpk from the last commit of this repository, which installs on every host of a
TPU slice and runs imagen train --multi-host with the arguments behind --; waits for its end, and
deletes it: then, on an error, or when interrupted (Ctrl-C). Nothing else is ever deleted.

Hosts that are taken away are started again together, and training resumes from its last checkpoint.

The bucket with embeddings and checkpoints must be attached to the cluster, once, by you:
  xpk storage attach bucket --cluster CLUSTER --type gcsfuse --auto-mount true \
    --mount-point /bucket --bucket BUCKET \
    --mount-options implicit-dirs,rename-dir-limit=200000

options:
  --name NAME        of the workload; must not exist yet
  --cluster CLUSTER  made by xpk cluster create
  --type TYPE        of the slice, such as v4-128 or v5litepod-64
  --spot             on spot nodes, where the cluster provisions them itself
  --restarts N       how often the hosts are started again at most (default: 50)
  --grace SECONDS    from the notice that a host is to go to its end (default: 120)
  --image IMAGE      that the code is put into; must have Python 3.11 to 3.13 (default: python:3.11)
  --plan TOPOLOGY    first ask imagen plan whether the stage fits, such as v4:2x2x4
  --keep             leave the workload in the end; deleting it is then up to you
  --dry-run          print every command in place of running it
  -h, --help         show this help and exit

example:
  bash launch/xpk.sh --name base64 --cluster tpus --type v4-32 \
    -- --config configs/quickstart.py --stage base --data /bucket/embeddings --workdir /bucket/run

Needs the program xpk, and what it needs (gcloud with a project and zone, kubectl, docker). Never
run against Google Cloud by its authors: tested against a stand-in that records the commands
(tests/test_launch_xpk.py).
HELP
}

# shellcheck source=launch/job.bash
source "$(dirname "${BASH_SOURCE[0]}")/job.bash"

name='' cluster='' type='' spot=() restarts=50 grace=120 image=python:3.11 plan=''
while (($#)); do
  case "$1" in
    --name) name=${2:?--name needs a name}; shift 2 ;;
    --cluster) cluster=${2:?--cluster needs a name}; shift 2 ;;
    --type) type=${2:?--type needs a type}; shift 2 ;;
    --restarts) restarts=${2:?--restarts needs a number}; shift 2 ;;
    --grace) grace=${2:?--grace needs seconds}; shift 2 ;;
    --image) image=${2:?--image needs one}; shift 2 ;;
    --plan) plan=${2:?--plan needs a topology}; shift 2 ;;
    --spot) spot=(--spot); shift ;;
    --keep) keep=true; shift ;;
    --dry-run) dry=true; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown argument $1; see bash launch/xpk.sh --help" ;;
  esac
done
for option in name cluster type; do
  [[ -n "${!option}" ]] || fail "--$option is missing; see bash launch/xpk.sh --help"
done
check_name "$name"
check_word --cluster "$cluster"
check_word --type "$type"
check --restarts "$restarts" '0|[1-9][0-9]{0,8}' 'a whole number'
check_number --grace "$grace"
check_image "$image"
check_plan "$plan"
(($#)) || fail "nothing to train: give the arguments of imagen train behind --"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# What costs nothing is checked before anything that does.
if ! $dry; then
  command -v xpk > /dev/null || fail "needs the program xpk: pip install xpk"
  found=$(xpk workload list --cluster="$cluster" --filter-by-job="^$name\$" 2>&1) ||
    fail "xpk cannot list the workloads of $cluster: $(tail -n 1 <<< "$found")"
  ! grep -qE "^ *$name( |\$)" <<< "$found" ||
    fail "a workload $name exists in $cluster already; choose another --name, or delete it yourself"
  check_committed
fi
[[ -z "$plan" ]] || run bash launch/fits.sh "$plan" "$@" || exit 2

thing="the workload $name"
by_hand="xpk workload delete --cluster=$cluster --workload=$name"
# Without a name, xpk would delete every workload of the cluster.
delete_created() { run xpk workload delete --cluster="$cluster" --workload="${name:?}" --force; }

printf -v arguments ' %q' "$@"
git archive HEAD | tar x --one-top-level="$scratch/imagen-jax"
created=true  # before the command, which may be interrupted
if ! run xpk workload create --cluster="$cluster" --workload="$name" --tpu-type="$type" \
  "${spot[@]}" --base-docker-image="$image" --script-dir="$scratch/imagen-jax" \
  --max-restarts="$restarts" --restart-on-user-code-failure \
  --termination-grace-period-seconds="$grace" \
  --command="bash launch/setup.sh --tpu && exec .venv/bin/imagen train --multi-host$arguments"; then
  created=false  # the name may be that of someone else's by now
  fail "xpk could not create the workload $name; if xpk workload list shows it, delete it yourself"
fi
run xpk workload list --cluster="$cluster" --wait-for-job-completion="$name" ||
  fail "the workload $name did not end well; see its logs: gcloud logging read, or the console"
say "done"
