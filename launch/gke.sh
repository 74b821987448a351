#!/usr/bin/env bash
# Runs a command of imagen on TPU slices of a GKE cluster: creates a JobSet, follows it, deletes it.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash launch/gke.sh --name NAME --accelerator TYPE --topology TOPOLOGY --bucket BUCKET
                          --service-account NAME [OPTION ...] -- COMMAND ARGUMENT ...
       bash launch/gke.sh attach NAME
       bash launch/gke.sh delete NAME

COMMAND is train, embed, sample, evaluate coco or doctor, with the arguments that imagen takes; it
must write to gs://. Copies the last commit of this repository to the bucket and creates a JobSet with one pod
for each host. Every pod installs, and runs the command with --multi-host. The output of the first
pod is followed here; all of them are in Cloud Logging.

Pods that are taken away (status 75), or that fail (1 and all others), are started again together,
and the command resumes where it stopped; a mistake in the arguments (64) ends the JobSet at once. In
the end, or on an error, the JobSet is deleted: this one, and nothing else. Ctrl-C or a closed
terminal leaves it at work: attach follows it again, from this folder, and delete gives it up. A week
after its end the cluster deletes it by itself. Node pools are neither created nor deleted.

options:
  --name NAME             of the JobSet; must not exist yet
  --accelerator TYPE      label of the nodes, such as tpu-v5p-slice or tpu-v6e-slice
  --topology TOPOLOGY     chips of the slice, such as 2x2x4
  --slices N              of that topology, joined by the data-centre network (default: 1)
  --chips-per-host N      of the nodes' machine type (default: 4)
  --memory GIB            limit and request of each pod (default: whatever its node has)
  --bucket BUCKET         its name, without gs://; receives the code and compiled programs
  --service-account NAME  of Kubernetes, that may read and write the bucket
  --queue NAME            LocalQueue of Kueue that the JobSet waits in
  --mount                 also mount the bucket as /bucket (Cloud Storage FUSE)
  --spot                  on spot nodes
  --restarts N            how often the pods are started again at most, preemptions included
                          (default: 50)
  --grace SECONDS         from the notice that a pod is to go to its end (default: 330; with --spot
                          15, what GKE gives there unless the node pool is configured for more)
  --image IMAGE           of the containers; must have Python 3.11 to 3.13 (default: python:3.11)
  --plan TOPOLOGY         first ask imagen plan whether the stage fits, such as v4:2x2x4
  --poll SECONDS          between looks at what has become of the JobSet (default: 30)
  --keep                  leave the JobSet in the end; deleting it is then up to you
  --dry-run               print the manifest and every command in place of running it
  -h, --help              show this help and exit

example:
  bash launch/gke.sh --name base64 --accelerator tpu-v5p-slice --topology 2x2x4 \
    --bucket my-bucket --service-account trainer \
    -- train --config quickstart --stage base --data gs://my-bucket/embeddings \
    --workdir gs://my-bucket/run

Needs the programs gcloud and kubectl, logged in to a cluster with JobSet. Never run against Google
Cloud by its authors: docs/run-on-tpu.md says what was run, and against what.
HELP
}

# shellcheck source=launch/job.bash
source "$(dirname "${BASH_SOURCE[0]}")/job.bash"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name='' accelerator='' topology='' slices=1 chips=4 memory='' bucket='' account='' queue=''
folder='' spot=false restarts=50 grace='' image=python:3.11 plan='' poll=30 verb=create
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
    --accelerator) accelerator=${2:?--accelerator needs a type}; shift 2 ;;
    --topology) topology=${2:?--topology needs one}; shift 2 ;;
    --slices) slices=${2:?--slices needs a number}; shift 2 ;;
    --chips-per-host) chips=${2:?--chips-per-host needs a number}; shift 2 ;;
    --memory) memory=${2:?--memory needs GiB}; shift 2 ;;
    --bucket) bucket=${2:?--bucket needs a name}; shift 2 ;;
    --service-account) account=${2:?--service-account needs a name}; shift 2 ;;
    --queue) queue=${2:?--queue needs a name}; shift 2 ;;
    --restarts) restarts=${2:?--restarts needs a number}; shift 2 ;;
    --grace) grace=${2:?--grace needs seconds}; shift 2 ;;
    --image) image=${2:?--image needs one}; shift 2 ;;
    --plan) plan=${2:?--plan needs a topology}; shift 2 ;;
    --poll) poll=${2:?--poll needs seconds}; shift 2 ;;
    --mount) folder=/bucket; shift ;;
    --spot) spot=true; shift ;;
    --keep) keep=true; shift ;;
    --dry-run) dry=true; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown argument $1; see bash launch/gke.sh --help" ;;
  esac
done
for option in name accelerator topology bucket; do
  [[ -n "${!option}" ]] || fail "--$option is missing; see bash launch/gke.sh --help"
done
[[ -n "$account" ]] || fail "--service-account is missing; see bash launch/gke.sh --help"
[[ -n "$grace" ]] || { $spot && grace=15 || grace=330; }
check_name "$name"
check_word --accelerator "$accelerator"
check --topology "$topology" '[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}' 'like 2x2x4'
check --slices "$slices" '[1-9][0-9]{0,2}' 'a whole number from 1'
check_number --chips-per-host "$chips"
[[ -z "$memory" ]] || check_number --memory "$memory"
check_bucket_name "$bucket"
check --service-account "$account" '[a-z0-9]([-a-z0-9.]*[a-z0-9])?' \
  'of small letters, digits, dots and hyphens'
[[ -z "$queue" ]] || check_word --queue "$queue"
check --restarts "$restarts" '0|[1-9][0-9]{0,8}' 'a whole number'
check_number --grace "$grace"
check_image "$image"
check_poll "$poll"
hosts=$((${topology//x/*} / chips))
((hosts * chips == ${topology//x/*} && hosts)) ||
  fail "$topology is not a multiple of $chips chips for each host; see --chips-per-host"
((slices == 1 || hosts > 1)) ||
  fail "--slices is $slices, and $topology is a single host: GKE joins only slices of several hosts"
check_job "$@"
check_kept "$folder" "$@"
check_plan "$plan" "$1"

# The manifest has no value of a user's but checked words and, in a block that ends with its
# indentation, one line of quoted arguments.
manifest() {
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  labels:
    app.kubernetes.io/name: imagen-jax
YAML
  [[ -z "$queue" ]] || echo "    kueue.x-k8s.io/queue-name: $queue"
  cat <<YAML
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  ttlSecondsAfterFinished: 604800
  failurePolicy:
    maxRestarts: $restarts
    rules:
    - name: mistake
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: $slices
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {containerName: imagen, operator: In, values: [64]}
        template:
          metadata:
            labels:
              app.kubernetes.io/name: imagen-jax
YAML
  [[ -z "$folder" ]] || cat <<'YAML'
            annotations:
              gke-gcsfuse/volumes: "true"
              gke-gcsfuse/cpu-limit: "0"
              gke-gcsfuse/memory-limit: "0"
              gke-gcsfuse/ephemeral-storage-limit: "0"
YAML
  cat <<YAML
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: $grace
            serviceAccountName: $account
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $topology
YAML
  ! $spot || echo '              cloud.google.com/gke-spot: "true"'
  cat <<YAML
            containers:
            - name: imagen
              image: $image
              workingDir: /opt
              env:
              - {name: JAX_COMPILATION_CACHE_DIR, value: "gs://$bucket/jobs/compiled"}
              command: [bash, -euc]
              args:
              - |
                python3 - $bucket jobs/$name.tar.gz $digest <<'PYTHON'
YAML
  sed 's/^/                /' launch/fetch.py
  cat <<YAML
                PYTHON
                cd imagen-jax
                bash launch/setup.sh --tpu
YAML
  printf '                exec %s\n' "$(on_every_host "$@")"
  cat <<YAML
              ports:
              - containerPort: 8471
              - containerPort: 8080
              resources:
                requests: {google.com/tpu: $chips${memory:+, memory: ${memory}Gi}}
                limits: {google.com/tpu: $chips${memory:+, memory: ${memory}Gi}}
YAML
  [[ -z "$folder" ]] || cat <<YAML
              volumeMounts:
              - {name: bucket, mountPath: $folder}
            volumes:
            - name: bucket
              csi:
                driver: gcsfuse.csi.storage.gke.io
                volumeAttributes:
                  bucketName: $bucket
                  mountOptions: implicit-dirs,rename-dir-limit=200000
YAML
}

conditions() {  # of the JobSet, such as Completed; empty while it runs, UNKNOWN if none can tell
  kubectl get jobset "$name" -o 'jsonpath={.status.conditions[?(@.status=="True")].type}' \
    2> "$scratch/error" && return
  ! grep -q NotFound "$scratch/error" || { echo GONE; return; }
  echo UNKNOWN
}

archive=gs://$bucket/jobs/$name.tar.gz
attach="bash launch/gke.sh attach $name"
thing="the JobSet $name (and $archive)"
by_hand="bash launch/gke.sh delete $name"
submitted=false
delete_created() {
  ! $submitted || run kubectl delete jobset "$name" --ignore-not-found || return
  run gcloud storage rm "$archive" || return
  rm -f "$name.job"
}

# What costs nothing is checked before anything that does.
if ! $dry; then
  for program in gcloud kubectl; do
    command -v $program > /dev/null || fail "needs the program $program"
  done
  kubectl config current-context > /dev/null 2>&1 ||
    fail "kubectl has no cluster; choose it: gcloud container clusters get-credentials CLUSTER"
  kubectl get crd jobsets.jobset.x-k8s.io > /dev/null 2>&1 ||
    fail "the cluster has no JobSet; install it: https://jobset.sigs.k8s.io"
  existing=$(kubectl get jobset "$name" --ignore-not-found -o name 2>&1) ||
    fail "cannot look up the JobSet $name: $existing"
  case "$verb" in
    create)
      [[ -z "$existing" ]] ||
        fail "a JobSet $name exists already; choose another --name, or delete it yourself"
      kubectl get serviceaccount "$account" > /dev/null 2>&1 ||
        fail "the cluster has no service account $account, or cannot be asked"
      check_bucket "$bucket"
      check_committed ;;
    attach)
      [[ -n "$existing" ]] || fail "there is no JobSet $name any more" ;;
  esac
fi

if [[ $verb == create ]]; then
  check_fits "$plan" "$@"
  pack
  manifest "$@" > "$scratch/jobset.yaml"
  ! $dry || cat "$scratch/jobset.yaml"
  run gcloud storage cp "$scratch/imagen-jax.tar.gz" "$archive"
  created=true submitted=true  # before the command, which may be interrupted
  if ! run kubectl create -f "$scratch/jobset.yaml"; then
    submitted=false  # the name may be that of someone else's by now
    fail "the cluster refused to create the JobSet $name"
  fi
  remember "${given[@]}"
fi
created=true submitted=true
if [[ $verb == delete ]]; then
  keep=false
  exit 0
fi
detached=true
first=jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0
first+=,batch.kubernetes.io/job-completion-index=0
since=--tail=-1
if $dry; then
  run kubectl logs --follow --selector="$first" "$since"
  exit 0
fi
say "the JobSet $name is created; Ctrl-C ends this script, and not the JobSet"
while true; do
  # Ends when the pod does; there is none until its nodes are there, and another after a restart.
  kubectl logs --follow --selector="$first" "$since" 2> /dev/null && since=--since="${poll}s"
  case "$(conditions)" in
    *Completed*) say "done"; exit 0 ;;
    *Failed*) fail "the JobSet $name failed; what its first pod printed is above" ;;
    GONE) fail "there is no JobSet $name any more: someone has deleted it" ;;
  esac
  sleep "$poll"
done
