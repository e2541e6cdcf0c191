#!/usr/bin/env bash
# One leg of the paper's tables on a GPU that is free for minutes only: goes on where the last leg stopped.
#
#   sweeps/gpu/leg.sh SECONDS [RESULTS] [SETUP]        defaults: results/gpu, cuda-bf16
#
# Keep RESULTS between the legs: finished cells stay finished, and the one that is cut off goes on after its last epoch.
# When all cells are finished it says so and has nothing to do.
set -euo pipefail
seconds=${1:?usage: sweeps/gpu/leg.sh SECONDS [RESULTS] [SETUP]}
results=${2:-results/gpu}
setup=${3:-cuda-bf16}
cd "$(dirname "$0")/../.."
python=$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)

status=0
timeout --signal=TERM --kill-after=30 "$seconds" \
  "$python" -m nasbench_grow.cli reproduce --profile table --setup "$setup" --results "$results" || status=$?
if [ "$status" = 124 ] || { [ "$status" = 137 ] && [ "$SECONDS" -ge "$seconds" ]; }; then
  echo "the time is over; give the same command again"
  status=0
fi
exit "$status"
