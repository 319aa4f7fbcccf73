#!/usr/bin/env bash
# Train on a Slurm cluster with one task a GPU.
#
#     [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS="--time=8:00:00"] \
#         tools/slurm_train.sh PARTITION JOB_NAME CFG [train.py's arguments ...]
#
# GPUS_PER_NODE=0 asks for no GPU and starts GPUS CPU tasks on one node. PORT is the port the tasks meet at (29500).
# In a batch job that Slurm may requeue give --resume: the first start finds no checkpoint and begins at the config's
# load_from, every later one goes on from the newest good checkpoint.
set -euo pipefail

if (($# < 3)); then
    echo "usage: $0 PARTITION JOB_NAME CFG [ARGS...]; environment: GPUS GPUS_PER_NODE CPUS_PER_TASK SRUN_ARGS PORT PYTHON" >&2
    exit 2
fi
partition=$1 job_name=$2 config=$3
shift 3

gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
placement=(--ntasks="$gpus")
if ((gpus_per_node > 0)); then
    placement+=(--ntasks-per-node="$gpus_per_node" --gres="gpu:$gpus_per_node")
else
    placement+=(--nodes=1)
fi
read -r -a srun_args <<< "${SRUN_ARGS:-}"

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="${tools%/*}${PYTHONPATH:+:$PYTHONPATH}"
export MASTER_PORT=${PORT:-${MASTER_PORT:-29500}}
exec srun --partition="$partition" --job-name="$job_name" "${placement[@]}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${srun_args[@]+"${srun_args[@]}"} \
    "${PYTHON:-python}" -u "$tools/train.py" "$config" "$@" --launcher slurm
