#!/usr/bin/env bash
# Sets up what the tests need and runs them: format and lint, types, shell scripts, pytest.
set -euo pipefail

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  cat <<'HELP'
usage: bash launch/test.sh [ARGUMENT OF pytest ...]

Sets up .venv (see launch/setup.sh --dev), then runs ruff, mypy, shellcheck and pytest. Where there
is no Chromium, installs it if run as root with apt-get at hand; else tests in a browser are skipped.

examples:
  bash launch/test.sh                          everything, as continuous integration does
  bash launch/test.sh -m 'not slow'            about five minutes: without the tests that take seconds
  bash launch/test.sh tests/test_cli.py -k help   some tests; the linters still run over all

environment:
  JAX_COMPILATION_CACHE_DIR  where compiled programs are kept between runs
                             (default: ~/.cache/imagen-jax/tests)
HELP
  exit 0
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# browser  the tests of the page of `imagen demo` are skipped where there is no Chromium
browser() {
  if command -v chromium || command -v chromium-browser || command -v google-chrome; then
    return 0
  fi > /dev/null
  if [[ $EUID == 0 ]] && command -v apt-get > /dev/null; then
    echo "Installing Chromium by apt-get, for the tests of the page ..."
    if apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
      --no-install-recommends chromium > /dev/null; then
      return 0
    fi
  fi
  echo "launch/test.sh: no Chromium: the tests of the page in a browser are skipped" >&2
}

step() {  # step COMMAND...  shows a command and runs it
  echo "+ $*"
  "$@"
}

bash launch/setup.sh --dev
browser
export PATH="$PWD/.venv/bin:$PATH"

step ruff check .
step ruff format --check .
step mypy
if command -v shellcheck > /dev/null; then
  step shellcheck launch/*.sh launch/*.bash .ci/run
else
  echo "launch/test.sh: no shellcheck: the scripts are not checked (on aarch64 it comes by apt-get)" >&2
fi
step pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
