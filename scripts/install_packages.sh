#!/usr/bin/env bash
# Installs the Debian packages that are missing for the purposes named: run, test, bench. Does nothing when all are there.
set -euo pipefail

declare -A needs=(
  # gcc, headers and OpenSSL build the C part; clang and libbpf build and load the part that runs in the kernel.
  [run]="python3-venv python3-dev gcc libc6-dev libssl-dev libbpf1 libbpf-dev clang llvm procps ca-certificates"
  [test]="chromium postgresql fonts-noto-cjk git util-linux e2fsprogs
          clamav-daemon clamdscan yara zip unzip p7zip-full cpio rsync sudo"
  [bench]="aide postgresql yara clamav clamav-daemon clamdscan mmdebstrap"
  [vm]="qemu-system-x86 cpio"
)

missing=()
for purpose in "$@"; do
  for package in ${needs[$purpose]}; do
    # "ii" alone: removed or half-installed packages have other states.
    [ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null | tr -d ' ')" = ii ] || missing+=("$package")
  done
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "Keibi needs these Debian packages: ${missing[*]}" >&2
  echo "Run this command as root, or install them yourself: apt-get install ${missing[*]}" >&2
  exit 1
fi
if ! command -v apt-get >/dev/null; then
  echo "This is not a Debian family system; install the equivalents of: ${missing[*]}" >&2
  exit 1
fi
echo "Installing Debian packages: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "apt-get could not install: ${missing[*]} (its last lines are above; is the package mirror reachable?)" >&2
  exit 1
fi
