# shellcheck shell=bash
# What the scripts share that start a job elsewhere: tpu.sh, gke.sh, xpk.sh and slurm.sh source it.
#
# What a script creates it names in `thing`, and how a person would delete it in `by_hand`; its
# function `delete_created` does that. From `created=true` on, whatever ends the script, an error or
# Ctrl-C, deletes it, unless `keep` is true.
# shellcheck disable=SC2034,SC2154  # variables of the scripts

self=launch/$(basename "$0")
scratch=$(mktemp -d)
created=false keep=false dry=false

fail() { echo "$self: $*" >&2; exit 2; }
say() { echo "$self: $*"; }

# check OPTION VALUE PATTERN WORDS  refuses a value of another form: what is taken stands in commands
# of other machines, in manifests and in names of files.
check() {
  local LC_ALL=C  # a range of letters is ASCII
  [[ "$2" =~ ^($3)$ ]] || fail "$1 is ${2@Q}; it must be $4"
}
NAME='[a-z]([-a-z0-9]{0,38}[a-z0-9])?'
NAME_WORDS='of at most 40 small letters, digits and hyphens, and begin with a letter'
check_name() { check --name "$1" "$NAME" "$NAME_WORDS"; }
check_number() { check "$1" "$2" '[1-9][0-9]{0,8}' 'a whole number from 1'; }
check_word() { check "$1" "$2" '[a-z0-9]([-a-z0-9]*[a-z0-9])?' 'of small letters, digits and hyphens'; }
check_image() { check --image "$1" '[A-Za-z0-9][A-Za-z0-9._/:@-]*' 'the name of a container image'; }
check_poll() { check --poll "$1" '[0-9]+(\.[0-9]+)?' 'a number of seconds'; }
check_plan() {
  [[ -z "$1" ]] || check --plan "$1" '[a-z0-9]+:[0-9]+(x[0-9]+)*' 'a topology like v4:2x2x4'
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
    fail "there are changes that are not committed; what is trained is the last commit"
}

check_bucket_name() {
  check --bucket "$1" '[a-z0-9]([a-z0-9._-]*[a-z0-9])?' 'the name of a bucket, without gs://'
}

check_bucket() {  # check_bucket NAME
  gcloud storage ls "gs://$1" > /dev/null 2>&1 ||
    fail "cannot list gs://$1; does it exist, and may you read it?"
}

delete() {
  $created || return 0
  delete_created || return 1
  created=false
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
trap 'exit 130' INT
trap 'exit 143' TERM
