#!/usr/bin/env bash
# Trains one stage on a TPU slice of a GKE cluster: creates a JobSet, follows it, and deletes it.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash launch/gke.sh --name NAME --accelerator TYPE --topology TOPOLOGY --bucket BUCKET
                          --service-account NAME [OPTION ...] -- ARGUMENT OF imagen train ...

Copies the last commit of this repository to the bucket and creates a JobSet with one pod for each
host of a TPU slice. Every pod has the bucket as /bucket, installs, and runs imagen train
--multi-host with the arguments behind --. The output of the first pod is followed here.

Pods that are taken away, or that fail, are started again together, and training resumes from its
last checkpoint; a mistake in the arguments (status 64) ends the JobSet at once. In the end, on an
error, or when interrupted (Ctrl-C), the JobSet is deleted: this one, and nothing else. Node pools
are neither created nor deleted.

options:
  --name NAME             of the JobSet; must not exist yet
  --accelerator TYPE      label of the nodes, such as tpu-v4-podslice or tpu-v5p-slice
  --topology TOPOLOGY     chips of the slice, such as 2x2x4
  --chips-per-host N      of the nodes' machine type (default: 4)
  --bucket BUCKET         its name, without gs://; holds the embeddings, and receives the checkpoints
  --service-account NAME  of Kubernetes, that may read and write the bucket
  --spot                  on spot nodes
  --restarts N            how often the pods are started again at most (default: 50)
  --grace SECONDS         from the notice that a pod is to go to its end (default: 120)
  --image IMAGE           of the containers; must have Python 3.11 to 3.13 (default: python:3.11)
  --plan TOPOLOGY         first ask imagen plan whether the stage fits, such as v4:2x2x4
  --poll SECONDS          between looks at what has become of the JobSet (default: 30)
  --keep                  leave the JobSet in the end; deleting it is then up to you
  --dry-run               print the manifest and every command in place of running it
  -h, --help              show this help and exit

example:
  bash launch/gke.sh --name base64 --accelerator tpu-v4-podslice --topology 2x2x4 \
    --bucket my-bucket --service-account trainer \
    -- --config configs/quickstart.py --stage base --data /bucket/embeddings --workdir /bucket/run

Needs the programs gcloud and kubectl, logged in to a cluster with JobSet and the Cloud Storage FUSE
driver. Never run against Google Cloud by its authors: tested against stand-ins that record the
commands, and the pods' manifest against the schema of Kubernetes (tests/test_launch_gke.py).
HELP
}

# shellcheck source=launch/job.bash
source "$(dirname "${BASH_SOURCE[0]}")/job.bash"

name='' accelerator='' topology='' chips=4 bucket='' account='' spot=false restarts=50 grace=120
image=python:3.11 plan='' poll=30
while (($#)); do
  case "$1" in
    --name) name=${2:?--name needs a name}; shift 2 ;;
    --accelerator) accelerator=${2:?--accelerator needs a type}; shift 2 ;;
    --topology) topology=${2:?--topology needs one}; shift 2 ;;
    --chips-per-host) chips=${2:?--chips-per-host needs a number}; shift 2 ;;
    --bucket) bucket=${2:?--bucket needs a name}; shift 2 ;;
    --service-account) account=${2:?--service-account needs a name}; shift 2 ;;
    --restarts) restarts=${2:?--restarts needs a number}; shift 2 ;;
    --grace) grace=${2:?--grace needs seconds}; shift 2 ;;
    --image) image=${2:?--image needs one}; shift 2 ;;
    --plan) plan=${2:?--plan needs a topology}; shift 2 ;;
    --poll) poll=${2:?--poll needs seconds}; shift 2 ;;
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
check_name "$name"
check_word --accelerator "$accelerator"
check --topology "$topology" '[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}' 'like 2x2x4'
check_number --chips-per-host "$chips"
check_bucket_name "$bucket"
check --service-account "$account" '[a-z0-9]([-a-z0-9.]*[a-z0-9])?' \
  'of small letters, digits, dots and hyphens'
check --restarts "$restarts" '0|[1-9][0-9]{0,8}' 'a whole number'
check_number --grace "$grace"
check_image "$image"
check_poll "$poll"
check_plan "$plan"
hosts=$((${topology//x/*} / chips))
((hosts * chips == ${topology//x/*} && hosts)) ||
  fail "$topology is not a multiple of $chips chips for each host; see --chips-per-host"
(($#)) || fail "nothing to train: give the arguments of imagen train behind --"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
manifest() {
  local arguments selectors
  printf -v arguments ' %q' "$@"
  arguments=${arguments//\'/\'\'}  # in single quotes of YAML
  selectors="cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $topology"
  ! $spot || selectors+='
              cloud.google.com/gke-spot: "true"'
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:
    - action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: hosts
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {containerName: train, operator: In, values: [64]}
        template:
          metadata:
            annotations:
              gke-gcsfuse/volumes: "true"
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: $grace
            serviceAccountName: $account
            nodeSelector:
              $selectors
            containers:
            - name: train
              image: $image
              workingDir: /opt
              command: [bash, -euc]
              args:
              - 'cp /bucket/jobs/$name.tar.gz job.tar.gz;
                echo "$digest  job.tar.gz" | sha256sum --check --quiet --strict;
                tar xzf job.tar.gz; cd imagen-jax; bash launch/setup.sh --tpu;
                exec .venv/bin/imagen train --multi-host$arguments'
              ports:
              - containerPort: 8471
              resources:
                requests: {google.com/tpu: $chips}
                limits: {google.com/tpu: $chips}
              volumeMounts:
              - {name: bucket, mountPath: /bucket}
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
    2> /dev/null || echo UNKNOWN
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
  kubectl get serviceaccount "$account" > /dev/null 2>&1 ||
    fail "the cluster has no service account $account, or cannot be asked"
  existing=$(kubectl get jobset "$name" --ignore-not-found -o name 2>&1) ||
    fail "cannot look up the JobSet $name: $existing"
  [[ -z "$existing" ]] ||
    fail "a JobSet $name exists already; choose another --name, or delete it yourself"
  check_bucket "$bucket"
  check_committed
fi
[[ -z "$plan" ]] || run bash launch/fits.sh "$plan" "$@" || exit 2

archive=gs://$bucket/jobs/$name.tar.gz
thing="the JobSet $name (and $archive)"
by_hand="kubectl delete jobset $name; gcloud storage rm $archive"
submitted=false
delete_created() {
  ! $submitted || run kubectl delete jobset "$name" --ignore-not-found || return
  run gcloud storage rm "$archive"
}

git archive --format=tar.gz --prefix=imagen-jax/ --output="$scratch/imagen-jax.tar.gz" HEAD
# Whoever may write the bucket could put other code there: pods run only what has this hash.
digest=$(sha256sum < "$scratch/imagen-jax.tar.gz")
digest=${digest%% *}
manifest "$@" > "$scratch/jobset.yaml"
! $dry || cat "$scratch/jobset.yaml"
run gcloud storage cp "$scratch/imagen-jax.tar.gz" "$archive"
created=true submitted=true  # before the command, which may be interrupted
if ! run kubectl create -f "$scratch/jobset.yaml"; then
  submitted=false  # the name may be that of someone else's by now
  fail "the cluster refused to create the JobSet $name"
fi
first=jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0
if $dry; then
  run kubectl logs --follow --selector="$first" --tail=-1
  exit 0
fi
say "the JobSet $name is created"
since=()
while true; do
  # Ends when the pod does; there is none until its nodes are there, and another after a restart.
  kubectl logs --follow --selector="$first" --tail=-1 "${since[@]}" 2> /dev/null &&
    since=(--since="${poll}s")
  case "$(conditions)" in
    *Completed*) say "done"; exit 0 ;;
    *Failed*) fail "the JobSet $name failed; what its first pod printed is above" ;;
  esac
  sleep "$poll"
done
