# Sourced by dist_train.sh and dist_test.sh: `torchrun_tool SCRIPT PROCESSES [ARGS...]` runs a tool of this folder with
# that many processes on this node; NNODES, NODE_RANK, MASTER_ADDR, PORT and PYTHON are those of dist_train.sh.
torchrun_tool() {
    local tools script=$1 processes=$2
    shift 2
    tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    export PYTHONPATH="${tools%/*}${PYTHONPATH:+:$PYTHONPATH}"
    exec "${PYTHON:-python}" -m torch.distributed.run \
        --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$processes" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
        "$tools/$script" "$@" --launcher pytorch
}
