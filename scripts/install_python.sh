#!/usr/bin/env bash
# Installs the locked Python packages into a virtual environment and builds Keibi's own native parts.
# usage: install_python.sh VENV_BIN LOCK_FILE
set -euo pipefail
bin=$1 lock=$2

echo "Installing Python packages at the versions and hashes of $lock"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
step() {
  if ! "$@" >"$log" 2>&1; then
    tail -n 25 "$log" >&2
    echo "failed: $*" >&2
    exit 1
  fi
}
step "$bin/pip" install --quiet --require-hashes -r "$lock"
# No build isolation: setuptools is among the locked packages, so that nothing is fetched without a hash.
step "$bin/pip" install --quiet --no-build-isolation --no-deps --editable .
echo "Building the kernel part for $(uname -r)"
if ! "$bin/python" -m keibi.agent.linux.bpf.build >"$log" 2>&1; then
  tail -n 5 "$log" >&2
  echo "The BPF part could not be built: who changed a file is then known less often (see 'keibi agent doctor')." >&2
fi
