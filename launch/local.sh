#!/usr/bin/env bash
# Runs a training job as N processes on this machine: launch/local.sh N --config=... --workdir=...
# Every process gets the same arguments; the first one that fails ends the others.
set -euo pipefail
if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local.sh N --config=FILE --workdir=DIR [...]" >&2
  exit 2
fi
number=$1
shift
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_ADDRESS="127.0.0.1:$port" JAX_NUM_PROCESSES="$number"
set -m # groups of their own, or Ctrl-C would reach them twice, and the second ends at once
pids=()
stop() { # SIGNAL CODE: every process saves at the same step and exits by itself
  trap - EXIT
  kill "-$1" "${pids[@]}" 2>/dev/null || true
  wait
  exit "$2"
}
trap 'stop INT 130' INT
trap 'stop TERM 143' TERM
# without the one that failed they can do nothing, and some would take JAX's 100 s to notice
trap 'kill -KILL "${pids[@]}" 2>/dev/null || true; wait' EXIT
for ((id = 0; id < number; id++)); do
  JAX_PROCESS_ID=$id python -m diffusion_lm.main "$@" &
  pids+=("$!")
done
for ((id = 0; id < number; id++)); do
  wait -n
done
