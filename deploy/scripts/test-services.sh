#!/usr/bin/env bash
# What the tests need beyond the engine: PostgreSQL's server programs (each test run starts its own private cluster),
# gVisor's runsc, and the tools that make images from Debian's packages. Idempotent.
set -euo pipefail

packages=(postgresql runsc mmdebstrap util-linux)
missing=()
for package in "${packages[@]}"; do
    dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "callgate: the tests need ${missing[*]}. Install them as root: apt-get install ${missing[*]}" >&2
    exit 1
fi
echo "callgate: installing from Debian's packages: ${missing[*]}"
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "${missing[@]}" >/dev/null
