#!/usr/bin/env bash
# Runs a command of imagen on the GPUs of a Slurm cluster: one process for each GPU.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash launch/slurm.sh --name NAME --nodes N --gpus-per-node N [OPTION ...]
                            -- COMMAND ARGUMENT ...

COMMAND is train, embed, sample, evaluate coco or doctor, with the arguments that imagen takes.
Submits a job that runs it with --multi-host, and returns. Some minutes before its time is up, or
when it is preempted, training writes a checkpoint and the job puts itself back into the queue, until
all is done. A job that fails is not queued again; the same command submits another, which resumes.

options:
  --name NAME          of the job; none of yours in the queue may have it
  --nodes N            how many
  --gpus-per-node N    each gets a process; the batch of the config must be divisible by all of them
  --cpus-per-gpu N     (default: 8)
  --time TIME          of one turn, as Slurm writes it (default: 24:00:00)
  --grace SECONDS      before its end, to write a checkpoint in (default: 300)
  --sbatch OPTION      a further option of sbatch, such as --sbatch=--partition=gpu; may be repeated
  --dry-run            print the job and every command in place of running it
  -h, --help           show this help and exit

example:
  bash launch/slurm.sh --name base64 --nodes 2 --gpus-per-node 8 --sbatch=--partition=gpu \
    -- train --config quickstart --stage base --data /shared/embeddings --workdir /shared/run

Runs in this folder, which all nodes must see, with its .venv, made by hand for GPUs (see bash
launch/setup.sh --help). Never run on a Slurm cluster by its authors: docs/run-on-tpu.md says what
was run, and against what.
HELP
}

# shellcheck source=launch/job.bash
source "$(dirname "${BASH_SOURCE[0]}")/job.bash"

name='' nodes='' gpus='' cpus=8 time=24:00:00 grace=300 options=()
while (($#)); do
  case "$1" in
    --name) name=${2:?--name needs a name}; shift 2 ;;
    --nodes) nodes=${2:?--nodes needs a number}; shift 2 ;;
    --gpus-per-node) gpus=${2:?--gpus-per-node needs a number}; shift 2 ;;
    --cpus-per-gpu) cpus=${2:?--cpus-per-gpu needs a number}; shift 2 ;;
    --time) time=${2:?--time needs a time}; shift 2 ;;
    --grace) grace=${2:?--grace needs seconds}; shift 2 ;;
    --sbatch=*) options+=("${1#--sbatch=}"); shift ;;
    --dry-run) dry=true; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown argument $1; see bash launch/slurm.sh --help" ;;
  esac
done
[[ -n "$name" ]] || fail "--name is missing; see bash launch/slurm.sh --help"
check --name "$name" '[A-Za-z0-9][A-Za-z0-9_-]{0,63}' 'of letters, digits, _ and -'
check_number --nodes "$nodes"
check_number --gpus-per-node "$gpus"
check_number --cpus-per-gpu "$cpus"
check --time "$time" '[0-9]+([-:][0-9]+)*' 'a time like 24:00:00 or 2-00:00:00'
check_number --grace "$grace"
for option in ${options[@]+"${options[@]}"}; do
  check --sbatch "$option" '--[a-z][-a-z]*(=[^[:cntrl:]]*)?' 'an option of sbatch like --partition=gpu'
done
check_job "$@"

cd "$(dirname "${BASH_SOURCE[0]}")/.."

job() {
  cat <<JOB
#!/usr/bin/env bash
# A step that is told to stop ends with status 75, of training, or 130: then this job queues itself
# again. srun does not take over the cpus of the job's tasks by itself (since Slurm 22.05).
status=0
srun --cpus-per-task=$cpus --kill-on-bad-exit=0 --wait=$grace \\
  $(on_every_host "$@") || status=\$?
if ((status == 75 || status == 130)); then
  echo "told to stop, and back in the queue"
  exec scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$status"
JOB
}

submit=(sbatch --parsable --job-name="$name" --nodes="$nodes" --gpus-per-node="$gpus"
  --ntasks-per-node="$gpus" --cpus-per-task="$cpus" --time="$time" --signal="TERM@$grace"
  --requeue --open-mode=append --output="$name.log" ${options[@]+"${options[@]}"})
if $dry; then
  job "$@"
  run "${submit[@]}"
  exit 0
fi

for program in sbatch squeue; do
  command -v $program > /dev/null || fail "needs the program $program, on a login node of Slurm"
done
[[ -x .venv/bin/imagen ]] || fail "there is no .venv; see bash launch/setup.sh --help"
.venv/bin/python -c 'import jax_plugins, pkgutil, sys
sys.exit(not any("cuda" in m.name for m in pkgutil.iter_modules(jax_plugins.__path__)))' \
  2> /dev/null || fail ".venv has JAX without CUDA; install it: bash launch/setup.sh --cuda13"
queued=$(squeue --noheader --user="$(id -un)" --name="$name" --format=%i) ||
  fail "squeue cannot be asked"
[[ -z "$queued" ]] ||
  fail "your job ${queued//$'\n'/, } is called $name; two would write to one place: scancel it first"
id=$(job "$@" | "${submit[@]}") || fail "Slurm refused the job"
cat <<DONE
Job ${id%%;*} is in the queue; its output goes to $PWD/$name.log
  squeue --job ${id%%;*}        where it stands
  scancel ${id%%;*}             give it up: it writes no checkpoint then
  scancel --signal=TERM ${id%%;*}   let it write one, and go back into the queue
DONE
