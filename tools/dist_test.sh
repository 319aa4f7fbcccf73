#!/usr/bin/env bash
# Test with one process a GPU; the environment is that of dist_train.sh.
#
#     tools/dist_test.sh CFG CKPT GPUS [test.py's arguments ...]
set -euo pipefail

if (($# < 3)); then
    echo "usage: $0 CFG CKPT GPUS [ARGS...]; environment: NNODES NODE_RANK MASTER_ADDR PORT PYTHON" >&2
    exit 2
fi
config=$1 checkpoint=$2 gpus=$3
shift 3

source "$(dirname "${BASH_SOURCE[0]}")/torchrun.sh"
torchrun_tool test.py "$gpus" "$config" "$checkpoint" "$@"
