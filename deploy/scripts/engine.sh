#!/usr/bin/env bash
# Makes sure that a container engine answers: installs Debian's docker.io if there is none, starts dockerd if none runs.
# Says what it does. Idempotent. Needs root only for what is missing.
set -euo pipefail

socket=${CALLGATE_ENGINE_SOCKET:-/var/run/docker.sock}

answers() { [ -S "$socket" ] && curl --silent --fail --max-time 5 --unix-socket "$socket" http://engine/_ping >/dev/null 2>&1; }

packages=$(dirname "$0")/packages.sh

"$packages" curl ca-certificates iproute2
if answers; then
    exit 0
fi

command -v dockerd >/dev/null || "$packages" docker.io iptables
if [ "$(id -u)" -ne 0 ]; then
    echo "callgate: no container engine answers at $socket. Start it as root (systemctl start docker, or dockerd)." >&2
    exit 1
fi
log=/var/log/callgate-dockerd.log
echo "callgate: starting the container engine (dockerd, log in $log)"
# Its own session: the engine outlives this script, as a service would.
setsid dockerd --host "unix://$socket" >"$log" 2>&1 </dev/null &
for _ in $(seq 1 120); do
    answers && exit 0
    sleep 0.5
done
echo "callgate: the container engine did not come up within a minute; its last words:" >&2
tail -n 20 "$log" >&2
exit 1
