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
