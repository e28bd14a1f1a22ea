#!/usr/bin/env bash
# Makes .venv with exactly what requirements.lock pins, checked by hash, and Callgate itself in editable form.
# Idempotent: does nothing while the lock and pyproject.toml are unchanged.
set -euo pipefail
cd "$(dirname "$0")/../.."

stamp=.venv/.callgate-lock
wanted=$(cat requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Debian's own, where there is one: it is built for speed, which those that are built on the spot often are not.
python=${PYTHON:-/usr/bin/python3}
[ -n "${PYTHON:-}" ] || new_enough "$python" || python=python3
if ! new_enough "$python"; then
    echo "callgate: Python 3.11 or newer is needed; set PYTHON to it" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    deploy/scripts/packages.sh python3-venv
fi
echo "callgate: installing Python packages into .venv"
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
echo "$wanted" >"$stamp"
