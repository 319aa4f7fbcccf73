#!/usr/bin/env bash
# Train with one process a GPU, on this node or, called on each of several, on all of them.
#
#     tools/dist_train.sh CFG GPUS [train.py's arguments ...]
#
# GPUS is the number on this node; without any it is the number of CPU processes. For several nodes set NNODES, on each
# its NODE_RANK (0, 1, ...), and MASTER_ADDR to the address of node 0. PORT (29500) must be free: a second job on the
# same node needs another. PYTHON names the interpreter.
set -euo pipefail

if (($# < 2)); then
    echo "usage: $0 CFG GPUS [ARGS...]; environment: NNODES NODE_RANK MASTER_ADDR PORT PYTHON" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2

source "$(dirname "${BASH_SOURCE[0]}")/torchrun.sh"
torchrun_tool train.py "$gpus" "$config" "$@"
