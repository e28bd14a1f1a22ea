#!/usr/bin/env bash
# Pins every Python package of the server and of development by hash, naming no index.
set -euo pipefail
cd "$(dirname "$0")/../.."
.venv/bin/uv --quiet pip compile pyproject.toml --all-extras --group dev --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock" --output-file requirements.lock "$@"
