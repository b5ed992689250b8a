#!/usr/bin/env bash
# Resolves the locked requirement files anew from pyproject.toml. They hold versions and hashes, and no address.
set -euo pipefail
compile() { uv pip compile pyproject.toml --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q "$@"; }
compile --all-extras -o requirements/dev.txt
compile --extra agent --extra manager --extra build -c requirements/dev.txt -o requirements/run.txt
compile --extra agent --extra build -c requirements/dev.txt -o requirements/agent.txt
