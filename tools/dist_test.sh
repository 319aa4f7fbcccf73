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

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="${tools%/*}${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$gpus" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$tools/test.py" "$config" "$checkpoint" "$@" --launcher pytorch
