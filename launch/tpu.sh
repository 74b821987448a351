#!/usr/bin/env bash
# Trains one stage on a Cloud TPU: creates it, installs, trains on all hosts, and deletes it.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash launch/tpu.sh --name NAME --type TYPE --zone ZONE --bucket BUCKET [OPTION ...]
                          -- ARGUMENT OF imagen train ...

Creates a Cloud TPU through a queued resource, puts the last commit of this repository on all of its
hosts, mounts the bucket there as /bucket (gcsfuse), and runs imagen train --multi-host with the
arguments behind -- on every host. Its output is followed here and kept in NAME.log.

A TPU that was preempted is deleted and created again, and training resumes from its last
checkpoint. In the end, on an error, or when interrupted (Ctrl-C), the TPU is deleted: this one that
was created here, and nothing else. One call trains one stage; stages can be trained at once.

options:
  --name NAME        of the TPU and its queued resource; must not exist yet
  --type TYPE        accelerator type, such as v4-8 or v5p-128
  --zone ZONE        such as us-central2-b
  --bucket BUCKET    its name, without gs://; holds the embeddings, and receives the checkpoints
  --runtime VERSION  software of the TPU (default: tpu-ubuntu2204-base)
  --spot             spare capacity: cheaper, and preempted at any time
  --attempts N       how many TPUs to create one after another at most (default: 20)
  --plan TOPOLOGY    first ask imagen plan whether the stage fits, such as v4:2x2x1
  --poll SECONDS     between looks at what has become of the TPU (default: 30)
  --keep             leave the TPU running in the end; deleting it is then up to you
  --dry-run          print every command in place of running it
  -h, --help         show this help and exit

example:
  bash launch/tpu.sh --name base64 --type v4-128 --zone us-central2-b --bucket my-bucket --spot \
    -- train --config configs/quickstart.py --stage base --data /bucket/embeddings --workdir /bucket/run

Needs the program gcloud, logged in, with a project set. Never run against Google Cloud by its
authors: tested against a stand-in that records the commands (tests/test_launch_tpu.py).
HELP
}

# shellcheck source=launch/job.bash
source "$(dirname "${BASH_SOURCE[0]}")/job.bash"

name='' type='' zone='' bucket='' runtime=tpu-ubuntu2204-base attempts=20 poll=30 plan=''
spot=()
while (($#)); do
  case "$1" in
    --name) name=${2:?--name needs a name}; shift 2 ;;
    --type) type=${2:?--type needs an accelerator type}; shift 2 ;;
    --zone) zone=${2:?--zone needs a zone}; shift 2 ;;
    --bucket) bucket=${2:?--bucket needs a name}; shift 2 ;;
    --runtime) runtime=${2:?--runtime needs a version}; shift 2 ;;
    --attempts) attempts=${2:?--attempts needs a number}; shift 2 ;;
    --poll) poll=${2:?--poll needs seconds}; shift 2 ;;
    --plan) plan=${2:?--plan needs a topology}; shift 2 ;;
    --spot) spot=(--spot); shift ;;
    --keep) keep=true; shift ;;
    --dry-run) dry=true; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown argument $1; see bash launch/tpu.sh --help" ;;
  esac
done
for option in name type zone bucket; do
  [[ -n "${!option}" ]] || fail "--$option is missing; see bash launch/tpu.sh --help"
done
check_name "$name"
check_word --type "$type"
check_word --zone "$zone"
check_bucket_name "$bucket"
check --runtime "$runtime" '[a-z0-9]([a-z0-9._-]*[a-z0-9])?' 'a version like tpu-ubuntu2204-base'
check_number --attempts "$attempts"
check_poll "$poll"
check_job "$@"
check_plan "$plan" "$1"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tpus=(gcloud compute tpus)

state() {  # of the queued resource; empty if there is none, UNKNOWN if gcloud cannot tell
  local found
  if found=$("${tpus[@]}" queued-resources describe "$name" --zone="$zone" \
    --format='value(state.state)' 2> "$scratch/error"); then
    echo "${found:-UNKNOWN}"
  elif ! grep -q NOT_FOUND "$scratch/error"; then
    echo UNKNOWN
  fi
}

# What costs nothing is checked before anything that does.
if ! $dry; then
  command -v gcloud > /dev/null || fail "needs the program gcloud: https://cloud.google.com/sdk"
  project=$(gcloud config get-value project 2> /dev/null || true)
  [[ -n "$project" && "$project" != "(unset)" ]] ||
    fail "gcloud has no project; set it: gcloud config set project PROJECT"
  check_bucket "$bucket"
  check_committed
  case "$(state)" in
    '') ;;
    UNKNOWN) fail "cannot look up $name in $zone: $(cat "$scratch/error")" ;;
    *) fail "$name exists in $zone already; choose another --name, or delete it yourself" ;;
  esac
fi
check_fits "$plan" "$@"

thing="the TPU $name"
by_hand="${tpus[*]} queued-resources delete $name --zone=$zone --force"
delete_created() {
  if $dry || [[ -n "$(state)" ]]; then
    run "${tpus[@]}" queued-resources delete "$name" --zone="$zone" --force --quiet
  fi
}

on_all_hosts() { run "${tpus[@]}" tpu-vm ssh "$name" --zone="$zone" --worker=all --quiet --command="$1"; }

create() {
  created=true  # before the command, which may be interrupted
  if ! run "${tpus[@]}" queued-resources create "$name" --node-id="$name" --zone="$zone" \
    --accelerator-type="$type" --runtime-version="$runtime" "${spot[@]}" --quiet; then
    created=false  # the name may be that of someone else's by now
    fail "gcloud refused to create $name; its state is '$(state)' (empty: there is none)"
  fi
  local now last=
  until $dry; do
    now=$(state)
    [[ "$now" == "$last" ]] || say "$name is ${now:-gone}"
    last=$now
    case "$now" in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | '') return 1 ;;
    esac
    sleep "$poll"
  done
}

install() {
  git archive --format=tar.gz --prefix=imagen-jax/ --output="$scratch/imagen-jax.tar.gz" HEAD
  run "${tpus[@]}" tpu-vm scp "$scratch/imagen-jax.tar.gz" "$name:imagen-jax.tar.gz" \
    --zone="$zone" --worker=all --quiet || return
  on_all_hosts "set -e; tar xzf imagen-jax.tar.gz
    sudo apt-get update -qq; sudo apt-get install -y -qq python3.11 python3.11-venv gcsfuse
    sudo mkdir -p /bucket; mountpoint -q /bucket ||
      sudo gcsfuse --implicit-dirs --rename-dir-limit 200000 -o allow_other \\
        --uid \$(id -u) --gid \$(id -g) $bucket /bucket
    bash imagen-jax/launch/setup.sh --tpu"
}

train() {
  on_all_hosts "cd imagen-jax && $(on_every_host "$@")"
}

preempted() {  # whether the TPU was taken away; that may show a little later than its hosts die
  local look now
  for look in 1 2 3; do
    now=$(state)
    [[ "$now" != SUSPEND* ]] || return 0
    ((look == 3)) || sleep "$poll"
  done
  return 1
}

$dry || exec > >(tee -a "$name.log") 2>&1
for ((attempt = 1; attempt <= attempts; attempt++)); do
  say "TPU $attempt of at most $attempts"
  if create && install && train "$@"; then
    say "done"
    exit 0
  fi
  preempted || fail "stopped; the state of $name is '$(state)', and what it printed is above and in $name.log"
  say "$name was preempted; creating another"
  delete || exit 1
done
fail "preempted $attempts times; the same command resumes from the last checkpoint"
