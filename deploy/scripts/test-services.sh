#!/usr/bin/env bash
# What the tests need beyond the engine: PostgreSQL's server programs (each test run starts its own private cluster),
# gVisor's runsc, the tools that make images from Debian's packages, networks and requests. Idempotent.
set -euo pipefail
"$(dirname "$0")/packages.sh" postgresql runsc mmdebstrap util-linux iproute2 curl
