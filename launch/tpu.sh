#!/usr/bin/env bash
# Runs a command of imagen on a Cloud TPU: creates it, installs, starts the command, deletes it.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash launch/tpu.sh --name NAME --type TYPE --zone ZONE --bucket BUCKET [OPTION ...]
                          -- COMMAND ARGUMENT ...
       bash launch/tpu.sh attach NAME
       bash launch/tpu.sh delete NAME

COMMAND is train, embed, sample, evaluate coco or doctor, with the arguments that imagen takes; it
must write to gs://. Creates a Cloud TPU through a queued resource, installs the last commit of this
repository on all of its hosts, and starts the command there with --multi-host, detached from this
script: the logs of all hosts go to gs://BUCKET/jobs/NAME. That of the first is followed here, and
kept in NAME.log. Ctrl-C or a closed terminal leaves the job at work: attach follows it again, from
this folder, and delete gives it up. Before the command has begun, Ctrl-C deletes the TPU.

Where the command ends with any status but 0 and 64, a mistake in its arguments, it is started again
on the TPU that is there; a TPU that was preempted is deleted and created again. Either way it
resumes where it stopped. In the end, or on an error, the TPU is deleted: this one that was created
here, and nothing else. Only this script does so: a TPU that was left, and whose job has ended, is
paid for until attach or delete.

options:
  --name NAME        of the TPU and its queued resource; must not exist yet
  --type TYPE        accelerator type, of v4, v5e, v5p or v6e: v4-8, v5litepod-16, v5p-128, v6e-8
  --zone ZONE        such as us-central2-b
  --bucket BUCKET    its name, without gs://; receives code, logs and compiled programs
  --project PROJECT  (default: gcloud's)
  --slices N         TPUs of that type, joined by the data-centre network (default: 1)
  --service-account EMAIL   that the hosts are, to the bucket (default: the project's Compute Engine
                     default account)
  --network NAME     (default: default)
  --subnetwork NAME  (default: default)
  --internal-ips     no external addresses: this machine must be in the network, and the network
                     must reach the package index (Cloud NAT)
  --reserved         of a reservation
  --spot             spare capacity: cheaper, and preempted at any time
  --attempts N       how many TPUs to create one after another at most (default: 20)
  --retries N        how often to start the command again on one TPU at most (default: 5)
  --plan TOPOLOGY    first ask imagen plan whether the stage fits, such as v4:2x2x1
  --poll SECONDS     between looks at what has become of the TPU (default: 30)
  --keep             leave the TPU running in the end; deleting it is then up to you
  --dry-run          print every command in place of running it
  -h, --help         show this help and exit

example:
  bash launch/tpu.sh --name base64 --type v5p-128 --zone us-east5-a --bucket my-bucket --spot \
    -- train --config quickstart --stage base --data gs://my-bucket/embeddings \
    --workdir gs://my-bucket/run

Needs the program gcloud, logged in. Google no longer develops this way to TPUs, and recommends GKE
(launch/gke.sh). Never run against Google Cloud by its authors: docs/run-on-tpu.md says what was
run, and against what.
HELP
}

# shellcheck source=launch/job.bash
source "$(dirname "${BASH_SOURCE[0]}")/job.bash"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name='' type='' zone='' bucket='' project='' slices=1 account='' network='' subnetwork=''
internal=false reserved=false spot=false attempts=20 retries=5 poll=30 plan='' verb=create
case "${1:-}" in
  attach | delete)
    verb=$1
    recall "${2:-}"
    set -- "${recalled[@]}" ;;
esac
given=("$@")
while (($#)); do
  case "$1" in
    --name) name=${2:?--name needs a name}; shift 2 ;;
    --type) type=${2:?--type needs an accelerator type}; shift 2 ;;
    --zone) zone=${2:?--zone needs a zone}; shift 2 ;;
    --bucket) bucket=${2:?--bucket needs a name}; shift 2 ;;
    --project) project=${2:?--project needs one}; shift 2 ;;
    --slices) slices=${2:?--slices needs a number}; shift 2 ;;
    --service-account) account=${2:?--service-account needs an address}; shift 2 ;;
    --network) network=${2:?--network needs a name}; shift 2 ;;
    --subnetwork) subnetwork=${2:?--subnetwork needs a name}; shift 2 ;;
    --attempts) attempts=${2:?--attempts needs a number}; shift 2 ;;
    --retries) retries=${2:?--retries needs a number}; shift 2 ;;
    --poll) poll=${2:?--poll needs seconds}; shift 2 ;;
    --plan) plan=${2:?--plan needs a topology}; shift 2 ;;
    --internal-ips) internal=true; shift ;;
    --reserved) reserved=true; shift ;;
    --spot) spot=true; shift ;;
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
[[ -z "$project" ]] || check_project "$project"
check --slices "$slices" '[1-9][0-9]{0,2}' 'a whole number from 1'
[[ -z "$account" ]] || check --service-account "$account" \
  '[a-z0-9][-a-z0-9.]*@[a-z0-9][-a-z0-9.]*' 'an address like NAME@PROJECT.iam.gserviceaccount.com'
[[ -z "$network" ]] || check_word --network "$network"
[[ -z "$subnetwork" ]] || check_word --subnetwork "$subnetwork"
check_number --attempts "$attempts"
check_number --retries "$retries"
check_poll "$poll"
case "$type" in  # of another type's software, a TPU may start and take no connection
  v4-*) runtime=tpu-ubuntu2204-base ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) fail "--type is '$type'; known are v4-N, v5litepod-N, v5p-N and v6e-N; later TPUs need GKE" ;;
esac
! $spot || ! $reserved || fail "--spot and --reserved exclude each other"
check_job "$@"
check_kept '' "$@"
check_plan "$plan" "$1"
command=("$@")

tpus=(gcloud compute tpus)
where=(--zone="$zone")
[[ -z "$project" ]] || where+=(--project="$project")
nodes=("$name")
for ((i = 0; slices > 1 && i < slices; i++)); do nodes[i]=$name-$i; done
logs=gs://$bucket/jobs/$name
archive=$logs.tar.gz

state() {  # of the queued resource; empty if there is none, UNKNOWN if gcloud cannot tell
  local found
  if found=$("${tpus[@]}" queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2> "$scratch/error"); then
    echo "${found:-UNKNOWN}"
  elif ! grep -q NOT_FOUND "$scratch/error"; then
    echo UNKNOWN
  fi
}

check_ssh() {  # gcloud refuses an agent with other keys, and waits for a passphrase, on a paid TPU
  local key=$HOME/.ssh/google_compute_engine held mark
  [[ -f "$key" ]] || return 0  # gcloud makes one, without a passphrase
  if held=$(ssh-add -l 2> /dev/null); then
    mark=$(ssh-keygen -lf "$key" | awk '{print $2}')
    grep -qF "$mark" <<< "$held" ||
      fail "ssh-agent holds other keys, and gcloud refuses to connect then: ssh-add $key"
  elif ! ssh-keygen -y -P '' -f "$key" > /dev/null 2>&1; then
    fail "$key has a passphrase, and no ssh-agent holds it: start one, and ssh-add $key"
  fi
}

# What costs nothing is checked before anything that does.
if ! $dry; then
  command -v gcloud > /dev/null || fail "needs the program gcloud: https://cloud.google.com/sdk"
  [[ -n "$project" ]] || project=$(gcloud config get-value project 2> /dev/null || true)
  [[ -n "$project" && "$project" != "(unset)" ]] ||
    fail "gcloud has no project; give --project, or set it: gcloud config set project PROJECT"
  check_bucket "$bucket"
  check_ssh
  found=$(state)
  [[ "$found" != UNKNOWN ]] || fail "cannot look up $name in $zone: $(cat "$scratch/error")"
  case "$verb:$found" in
    create:) check_committed ;;
    create:*) fail "$name exists in $zone already; choose another --name, or delete it yourself" ;;
    attach:) fail "there is no $name in $zone any more" ;;
  esac
fi

thing="the TPU $name"
attach="bash launch/tpu.sh attach $name"
by_hand="bash launch/tpu.sh delete $name"
delete_created() {
  if $dry || [[ -n "$(state)" ]]; then
    run "${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet
  fi
}

clean() {  # removes what `attach` needs; the logs stay
  run gcloud storage rm "$archive" || true
  rm -f "$name.job"
}

on_all_hosts() {  # on_all_hosts TEXT  of bash
  local node ssh
  for node in "${nodes[@]}"; do
    ssh=("${tpus[@]}" tpu-vm ssh "$node" "${where[@]}" --worker=all --quiet)
    ! $internal || ssh+=(--internal-ip)
    run "${ssh[@]}" --command="$1" || return
  done
}

create() {
  local options=(--zone="$zone" --accelerator-type="$type" --runtime-version="$runtime" --quiet)
  if ((slices == 1)); then
    options+=(--node-id="$name")
  else
    options+=(--node-count="$slices" --node-prefix="$name")
  fi
  [[ -z "$project" ]] || options+=(--project="$project")
  [[ -z "$account" ]] || options+=(--service-account="$account")
  [[ -z "$network" ]] || options+=(--network="$network")
  [[ -z "$subnetwork" ]] || options+=(--subnetwork="$subnetwork")
  ! $internal || options+=(--internal-ips)
  ! $reserved || options+=(--reserved)
  ! $spot || options+=(--spot)
  created=true detached=false  # before the command, which may be interrupted
  if ! run "${tpus[@]}" queued-resources create "$name" "${options[@]}"; then
    created=false  # the name may be that of someone else's by now
    fail "gcloud refused to create $name; its state is '$(state)' (empty: there is none)"
  fi
}

arrives() {  # waits until the TPU is there
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

install() {  # Python comes through uv: the hosts' own is older, and apt is busy while they start
  on_all_hosts "set -eu
python3 - $bucket jobs/$name.tar.gz $digest <<'PYTHON'
$(cat launch/fetch.py)
PYTHON
export PATH=\$HOME/.local/bin:\$PATH
command -v uv > /dev/null || python3 -m pip install --quiet --user uv
bash imagen-jax/launch/setup.sh --tpu"
}

start() {  # detached, each time with a folder of logs of its own
  round=$(date -u +%Y%m%d-%H%M%S)-$RANDOM
  if $dry; then
    round=TIME
  else
    echo "$round" > "$scratch/round"
    gcloud storage cp "$scratch/round" "$logs/round" 2> "$scratch/error" ||
      { cat "$scratch/error" >&2; return 1; }
  fi
  on_all_hosts "cd imagen-jax
export JAX_COMPILATION_CACHE_DIR=gs://$bucket/jobs/compiled
nohup python3 launch/host.py $bucket jobs/$name/$round $(on_every_host "${command[@]}") \
> \$HOME/host.log 2>&1 < /dev/null &"
}

OLD=600  # seconds without a sign of life after which a host has died
# outcome  reads the hosts' status files: nothing while they run, or the status of the job
outcome() {
  awk -v now="$(date +%s)" -v old=$OLD '
    $1 == "running" { if (now - $2 > old) dead++; else alive++ }
    $1 == "ended" { ended++; if ($2 != 0) { worst = worst == 64 || $2 == 64 ? 64 : $2 } }
    END {
      if (worst == 64) print 64
      else if (dead) print "dead"
      else if (ended && !alive) print worst + 0
    }' "$1"
}

# follow  prints the log of the first host until all have ended; sets `ended` to the status of the
# job, to dead where a host has died, or to taken where the TPU was
follow() {
  local offset=0 now missing=0
  while true; do
    if gcloud storage cat --range="$offset-" "$logs/$round/0-0.log" 2> /dev/null \
      > "$scratch/more"; then
      cat "$scratch/more"
      offset=$((offset + $(wc -c < "$scratch/more")))
    fi
    gcloud storage cat "$logs/$round/*.status" > "$scratch/statuses" 2> /dev/null || true
    ended=$(outcome "$scratch/statuses")
    [[ -z "$ended" ]] || return 0
    now=$(state)
    case "$now" in
      SUSPEND*) ended=taken; return ;;
      '' | FAILED) fail "stopped; the state of $name is '$now' (empty: someone has deleted it)" ;;
    esac
    if [[ ! -s "$scratch/statuses" ]]; then
      missing=$((missing + 1))
      ((missing < 40)) || { ended=dead; return; }
    fi
    sleep "$poll"
  done
}

taken() {  # whether the TPU was taken away; that may show a little later than its hosts die
  local look
  for look in 1 2 3; do
    case "$(state)" in SUSPEND*) return 0 ;; esac
    ((look == 3)) || sleep "$poll"
  done
  return 1
}

# work  has the command done on the TPU that is there; status 1 if the TPU was taken away
work() {
  local try ended='' resumed=$1
  for ((try = 1; try <= retries; try++)); do
    if $resumed; then
      resumed=false
    elif ! { install && start; }; then
      ! taken || return 1
      say "could not install or start it (try $try of $retries)"
      $dry || sleep "$poll"
      continue
    fi
    detached=true
    ! $dry || return 0
    follow
    case "$ended" in
      0) return 0 ;;
      64) fail "a mistake in the arguments or in the files that they name: see above, and $logs" ;;
      taken) return 1 ;;
    esac
    ! taken || return 1
    say "status $ended (75: told to stop; dead: a host does not answer), try $try of $retries"
  done
  fail "stopped after $retries tries; the state of $name is '$(state)', and the logs are in $logs"
}

if [[ $verb == delete ]]; then
  created=true keep=false
  delete || exit 1
  clean
  exit 0
fi
if [[ $verb == create ]]; then
  check_fits "$plan" "$@"
  pack
  run gcloud storage cp "$scratch/imagen-jax.tar.gz" "$archive"
  remember "${given[@]}"
fi
$dry || exec > >(trap '' HUP INT TERM; exec tee -a "$name.log") 2>&1
resumed=false
if [[ $verb == attach ]]; then
  created=true detached=true
  round=$(gcloud storage cat "$logs/round" 2> /dev/null) && resumed=true
fi
for ((attempt = 1; attempt <= attempts; attempt++)); do
  if [[ $verb == attach && $attempt == 1 ]]; then
    say "following $name"
  else
    say "TPU $attempt of at most $attempts"
    create
  fi
  if arrives; then
    if work $resumed; then
      say "done"
      $keep || clean
      exit 0
    fi
  else
    taken || fail "stopped; the state of $name is '$(state)', and what it printed is above"
  fi
  resumed=false
  say "$name was preempted; creating another"
  delete || exit 1
done
fail "preempted $attempts times; the same command resumes"
