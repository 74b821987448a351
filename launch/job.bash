# shellcheck shell=bash
# What the scripts share that start a job elsewhere: gke.sh, xpk.sh, tpu.sh and slurm.sh source it.
#
# What a script creates it names in `thing`, and how a person would delete it in `by_hand`; its
# function `delete_created` does that. From `created=true` on, whatever ends the script deletes it,
# unless `keep` is true. From `detached=true` on, the job runs without the script: Ctrl-C or a closed
# terminal leaves it, and `attach` is the command that follows it again.
#
# Everything here runs in bash 3.2, which macOS has.
# shellcheck disable=SC2034,SC2154  # variables of the scripts

self=launch/$(basename "$0")
scratch=$(mktemp -d)
created=false detached=false keep=false dry=false attach='' recalled=('')

fail() { echo "$self: $*" >&2; exit 2; }
say() { echo "$self: $*"; }

# check OPTION VALUE PATTERN WORDS  refuses a value of another form: what is taken stands in commands
# of other machines, in manifests and in names of files.
check() {
  local LC_ALL=C whole="^($3)\$"  # a range of letters is ASCII
  [[ "$2" =~ $whole ]] || fail "$1 is '${2//[[:cntrl:]]/?}'; it must be $4"
}
NAME='[a-z]([-a-z0-9]{0,38}[a-z0-9])?'
NAME_WORDS='of at most 40 small letters, digits and hyphens, and begin with a letter'
check_name() { check --name "$1" "$NAME" "$NAME_WORDS"; }
check_number() { check "$1" "$2" '[1-9][0-9]{0,8}' 'a whole number from 1'; }
check_word() { check "$1" "$2" '[a-z0-9]([-a-z0-9]*[a-z0-9])?' 'of small letters, digits and hyphens'; }
check_project() {
  check --project "$1" '[a-z]([-a-z0-9.:]*[a-z0-9])?' 'of small letters, digits, hyphens, dots and colons'
}
check_image() { check --image "$1" '[A-Za-z0-9][A-Za-z0-9._/:@-]*' 'the name of a container image'; }
check_poll() { check --poll "$1" '[0-9]+(\.[0-9]+)?' 'a number of seconds'; }
check_plan() {  # check_plan TOPOLOGY COMMAND
  [[ -n "$1" ]] || return 0
  check --plan "$1" '[a-z0-9]+:[0-9]+(x[0-9]+)*' 'a topology like v4:2x2x4'
  [[ "$2" == train ]] || fail "--plan is about imagen train, and the command is '$2'"
}

# run COMMAND...  runs a command that changes something; with --dry-run only prints it.
run() {
  if $dry; then
    printf '+'
    printf ' %q' "$@"
    echo
  else
    "$@"
  fi
}

check_committed() {
  [[ -z "$(git status --porcelain --untracked-files=no)" ]] ||
    fail "there are changes that are not committed; what runs there is the last commit"
}

check_bucket_name() {
  check --bucket "$1" '[a-z0-9]([a-z0-9._-]*[a-z0-9])?' 'the name of a bucket, without gs://'
}

check_bucket() {  # check_bucket NAME
  gcloud storage ls "gs://$1" > /dev/null 2>&1 ||
    fail "cannot list gs://$1; does it exist, and may you read it?"
}

# check_job COMMAND ARGUMENT...  refuses what several hosts cannot run together
check_job() {
  local argument
  (($#)) || fail "nothing to run: give a command of imagen behind --, such as -- train --config ..."
  case "$1 ${2:-}" in
    "train "* | "embed "* | "sample "* | "evaluate coco" | "doctor "*) ;;
    *) fail "behind -- is '$1'; it must be train, embed, sample, evaluate coco or doctor" ;;
  esac
  for argument in "$@"; do
    case "$argument" in
      --multi-host* | --process | --process=*)
        fail "$argument is set by this script; leave it out" ;;
    esac
  done
}

# check_kept FOLDER COMMAND ARGUMENT...  refuses to write to a disk that goes with its host; FOLDER:
# where the hosts have a bucket as a folder, or nothing
check_kept() {
  local folder=$1 wanted=--output last='' argument value=''
  case "$2" in
    doctor) return ;;
    train) wanted=--workdir ;;
  esac
  shift
  for argument in "$@"; do
    [[ "$last" != "$wanted" ]] || value=$argument
    [[ "$argument" != "$wanted="* ]] || value=${argument#*=}
    last=$argument
  done
  [[ -n "$value" ]] || fail "imagen $1 needs $wanted here, a folder at gs:// that all hosts share"
  case "$value" in
    gs://?*) return ;;
    /*) [[ -z "$folder" || "$value" != "$folder"/* ]] || return 0 ;;
  esac
  fail "$wanted is '${value//[[:cntrl:]]/?}', on a disk that goes with its host; give a folder at gs://"
}

# check_fits TOPOLOGY COMMAND ARGUMENT...  asks imagen plan, if there is a topology
check_fits() {
  local topology=$1
  shift 2
  [[ -n "$topology" ]] || return 0
  run bash launch/fits.sh "$topology" "$@" || exit 2
}

# on_every_host COMMAND ARGUMENT...  prints the line that every host runs in the repository
on_every_host() {
  printf '%s' '.venv/bin/imagen'
  printf ' %q' "$@"
  printf ' --multi-host'  # last, for it may take a value
}

# pack  writes the last commit to $scratch/imagen-jax.tar.gz, and its SHA-256 to `digest`: whoever may
# write to the bucket could put other code there, and hosts run only what has this hash
pack() {
  local archive=$scratch/imagen-jax.tar.gz
  git archive --format=tar.gz --prefix=imagen-jax/ --output="$archive" HEAD
  if command -v sha256sum > /dev/null; then
    digest=$(sha256sum < "$archive")
  else
    digest=$(shasum -a 256 < "$archive")
  fi
  digest=${digest%% *}
}

# remember ARGUMENT...  keeps the digest and the arguments of this script in NAME.job, for `attach`
remember() { $dry || printf '%q\n' "$digest" "$@" > "$name.job"; }

# recall NAME  sets `digest`, and `recalled` to the arguments that were kept
recall() {
  check NAME "$1" "$NAME" "$NAME_WORDS"
  [[ -f "$1.job" ]] || fail "there is no $PWD/$1.job: no job of that name was started from here"
  eval "recalled=($(tr '\n' ' ' < "$1.job"))"
  digest=${recalled[0]}
  recalled=("${recalled[@]:1}")
}

delete() {
  $created || return 0
  delete_created || return 1
  created=false
}

interrupted() {  # interrupted STATUS
  if $detached && $created && ! $keep; then
    keep=true
    say "this script ends, and the job does not"
    [[ -z "$attach" ]] || echo "  $attach    # follows it again"
  fi
  exit "$1"
}

finish() {
  local status=$?
  trap - EXIT
  if $created && $keep; then
    say "$thing is left, and its machines are paid for until you delete it:"
    echo "  $by_hand"
  elif ! delete; then
    say "could not delete $thing: IT MAY STILL BE PAID FOR. Delete it by hand:" >&2
    echo "  $by_hand" >&2
    ((status)) || status=1
  fi
  rm -rf "$scratch"
  exit "$status"
}
trap finish EXIT
trap 'interrupted 129' HUP
trap 'interrupted 130' INT
trap 'interrupted 143' TERM
