#!/usr/bin/env bash
# Runs a command of imagen on a GKE cluster that is managed with xpk.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash launch/xpk.sh --name NAME --cluster CLUSTER --type TYPE --bucket BUCKET [OPTION ...]
                          -- COMMAND ARGUMENT ...

COMMAND is train, embed, sample, evaluate coco or doctor, with the arguments that imagen takes; it
must write to gs://. Makes a workload of xpk from the last commit of this repository, which installs on every
host of a TPU slice and runs the command with --multi-host; waits for its end, and deletes it, also
after an error. Ctrl-C or a closed terminal leaves it at work. Nothing else is ever deleted.

Hosts that are taken away (status 75), or that fail (1 and all others), are started again together,
and the command resumes where it stopped; a mistake in the arguments (64) ends the workload at once.

options:
  --name NAME        of the workload; must not exist yet
  --cluster CLUSTER  made by xpk cluster create
  --type TYPE        of the slice as xpk names it, such as v5p-32, v5litepod-64 or v6e-64
  --slices N         of that type, joined by the data-centre network (default: 1)
  --bucket BUCKET    its name, without gs://; receives compiled programs
  --project PROJECT  (default: gcloud's)
  --zone ZONE        of the cluster (default: gcloud's)
  --spot             on spot nodes, where the cluster provisions them itself
  --restarts N       how often the hosts are started again at most, preemptions included
                     (default: 50)
  --grace SECONDS    from the notice that a host is to go to its end (default: 330; on spot nodes GKE
                     gives 15, whatever is asked for, unless the node pool is configured for more)
  --image IMAGE      that the code is put into; must have Python 3.11 to 3.13 (default: python:3.11)
  --plan TOPOLOGY    first ask imagen plan whether the stage fits, such as v4:2x2x4
  --keep             leave the workload in the end; xpk deletes it twelve hours after its end
  --dry-run          print every command in place of running it
  -h, --help         show this help and exit

example:
  bash launch/xpk.sh --name base64 --cluster tpus --type v5p-32 --bucket my-bucket \
    -- train --config quickstart --stage base --data gs://my-bucket/embeddings \
    --workdir gs://my-bucket/run

Needs the program xpk (1.16), and what it needs (gcloud, kubectl, docker). The hosts read and write
the bucket as the service account of their nodes. Never run against Google Cloud by its authors:
docs/run-on-tpu.md says what was run, and against what.
HELP
}

# shellcheck source=launch/job.bash
source "$(dirname "${BASH_SOURCE[0]}")/job.bash"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name='' cluster='' type='' slices=1 bucket='' project='' zone='' spot=false restarts=50 grace=330
image=python:3.11 plan=''
while (($#)); do
  case "$1" in
    --name) name=${2:?--name needs a name}; shift 2 ;;
    --cluster) cluster=${2:?--cluster needs a name}; shift 2 ;;
    --type) type=${2:?--type needs a type}; shift 2 ;;
    --slices) slices=${2:?--slices needs a number}; shift 2 ;;
    --bucket) bucket=${2:?--bucket needs a name}; shift 2 ;;
    --project) project=${2:?--project needs one}; shift 2 ;;
    --zone) zone=${2:?--zone needs a zone}; shift 2 ;;
    --restarts) restarts=${2:?--restarts needs a number}; shift 2 ;;
    --grace) grace=${2:?--grace needs seconds}; shift 2 ;;
    --image) image=${2:?--image needs one}; shift 2 ;;
    --plan) plan=${2:?--plan needs a topology}; shift 2 ;;
    --spot) spot=true; shift ;;
    --keep) keep=true; shift ;;
    --dry-run) dry=true; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown argument $1; see bash launch/xpk.sh --help" ;;
  esac
done
for option in name cluster type bucket; do
  [[ -n "${!option}" ]] || fail "--$option is missing; see bash launch/xpk.sh --help"
done
check_name "$name"
check_word --cluster "$cluster"
check_word --type "$type"
check --slices "$slices" '[1-9][0-9]{0,2}' 'a whole number from 1'
check_bucket_name "$bucket"
[[ -z "$project" ]] || check_project "$project"
[[ -z "$zone" ]] || check_word --zone "$zone"
check --restarts "$restarts" '0|[1-9][0-9]{0,8}' 'a whole number'
check_number --grace "$grace"
check_image "$image"
check_job "$@"
check_kept '' "$@"
check_plan "$plan" "$1"
where=(--cluster="$cluster")
[[ -z "$project" ]] || where+=(--project="$project")
[[ -z "$zone" ]] || where+=(--zone="$zone")

# What costs nothing is checked before anything that does.
if ! $dry; then
  command -v xpk > /dev/null || fail "needs the program xpk: pip install xpk"
  found=$(xpk workload list "${where[@]}" --filter-by-job="^$name\$" 2>&1) ||
    fail "xpk cannot list the workloads of $cluster: $(tail -n 1 <<< "$found")"
  ! grep -qE "^ *$name( |\$)" <<< "$found" ||
    fail "a workload $name exists in $cluster already; choose another --name, or delete it yourself"
  check_committed
fi
check_fits "$plan" "$@"

thing="the workload $name"
by_hand="xpk workload delete ${where[*]} --workload=$name"
# Without a name, xpk would delete every workload of the cluster.
delete_created() { run xpk workload delete "${where[@]}" --workload="${name:?}" --force; }

mkdir "$scratch/imagen-jax"
git archive HEAD | tar x -C "$scratch/imagen-jax"
# By itself, xpk starts hosts again after the statuses 42 and 127 to 255 alone.
create=(xpk workload create "${where[@]}" --workload="$name" --tpu-type="$type"
  --num-slices="$slices" --base-docker-image="$image" --script-dir="$scratch/imagen-jax"
  --max-restarts="$restarts" --restart-on-exit-codes="1-63,65-126"
  --termination-grace-period-seconds="$grace"
  --env="JAX_COMPILATION_CACHE_DIR=gs://$bucket/jobs/compiled")
! $spot || create+=(--spot)
create+=(--command="bash launch/setup.sh --tpu && exec $(on_every_host "$@")")
created=true  # before the command, which may be interrupted
if ! run "${create[@]}"; then
  created=false  # the name may be that of someone else's by now
  fail "xpk could not create the workload $name; if xpk workload list shows it, delete it yourself"
fi
detached=true
attach="xpk workload list ${where[*]} --wait-for-job-completion=$name"
run xpk workload list "${where[@]}" --wait-for-job-completion="$name" ||
  fail "the workload $name did not end well; see its logs: gcloud logging read, or the console"
say "done"
